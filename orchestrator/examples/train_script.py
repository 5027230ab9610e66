"""A standalone program: arguments in, JSON lines out. `conf/experiment/command.yaml` tunes it.

    python -m orchestrator.examples.train_script --lr 0.1 --decay 1e-4 --batch-size 32 --epochs 10

Multinomial logistic regression on scikit-learn's handwritten digits, in numpy.
"""

from __future__ import annotations

import argparse
import json
import os

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Trains a classifier and prints its validation accuracy after each epoch."
    )
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))  # one split for all
    features = np.hstack([images / 16.0, np.ones((len(images), 1))])[order]
    targets = np.eye(10)[labels][order]
    training, validation = slice(0, 1300), slice(1300, None)

    dice = np.random.default_rng(int(os.environ.get("ORCHESTRATOR_TRIAL_SEED", "0")))
    weights = np.zeros((features.shape[1], 10))
    for epoch in range(1, options.epochs + 1):
        loss = 0.0
        for rows in np.array_split(dice.permutation(1300), 1300 // options.batch_size):
            scores = features[training][rows] @ weights
            probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            loss -= (
                float(np.log((probabilities * targets[training][rows]).sum(axis=1) + 1e-12).sum())
                / 1300
            )
            gradient = (
                features[training][rows].T @ (probabilities - targets[training][rows]) / len(rows)
            )
            weights -= options.lr * (gradient + options.decay * weights)
        right = (features[validation] @ weights).argmax(axis=1) == targets[validation].argmax(
            axis=1
        )
        print(
            json.dumps({"step": epoch, "val_accuracy": float(right.mean()), "train_loss": loss}),
            flush=True,
        )


if __name__ == "__main__":
    main()
