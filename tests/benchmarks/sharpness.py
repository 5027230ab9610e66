"""What SGD, SAM and ASAM find on scikit-learn's digits, with as many passes and as many epochs as
each other: accuracy, loss, and average-case sharpness with either batch-norm statistics.

    python -m tests.benchmarks.sharpness --seeds 3
"""

from __future__ import annotations

import argparse
from typing import Any, Final

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.training import SAM, average_sharpness, loss_landscape

_EPOCHS: Final = 20
_TRAINING: Final = 1200
_RHO: Final = {False: 0.1, True: 1.0}
_LINES: Final = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    print("seed method epochs accuracy loss | rise at 0.5: stored, recomputed | of single lines")
    for seed in range(seeds):
        for method, epochs in (
            ("sgd", _EPOCHS),
            ("sam", _EPOCHS // 2),
            ("sam", _EPOCHS),
            ("asam", _EPOCHS // 2),
            ("asam", _EPOCHS),
        ):
            print(f"{seed} {method:<4} {epochs:>2}  {_found(seed, method, epochs)}", flush=True)


def _found(seed: int, method: str, epochs: int) -> str:
    (inputs, targets), (held, answers) = _digits()
    model = _trained(seed, method, epochs, inputs, targets)
    with torch.no_grad():
        accuracy = float((model(held).argmax(1) == answers).float().mean())
        loss = float(cross_entropy(model(inputs), targets))
    batches = list(zip(inputs.split(300), targets.split(300), strict=True))
    rises = []
    for batch_norm in ("stored", "recomputed"):
        found = average_sharpness(model, cross_entropy, batches, batch_norm=batch_norm)
        rises.append(f"{found.mean:.3f} ± {found.standard_error:.3f}")
    words: dict[str, Any] = {"dimensions": 1, "points": 3, "radius": 0.5}
    lines = [
        loss_landscape(model, cross_entropy, batches, seed=line, **words).sharpness(0.5).mean
        for line in range(_LINES)
    ]
    return f"{accuracy:.4f} {loss:.4f} | {', '.join(rises)} | {min(lines):.2f} to {max(lines):.2f}"


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    targets = torch.tensor(digits.target)[order]
    return (inputs[:_TRAINING], targets[:_TRAINING]), (inputs[_TRAINING:], targets[_TRAINING:])


def _trained(seed: int, method: str, epochs: int, inputs: Tensor, targets: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    ]
    model = nn.Sequential(*layers)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4
    )
    if method != "sgd":
        adaptive = method == "asam"
        optimizer = SAM(optimizer, model, adaptive=adaptive, rho=_RHO[adaptive])
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(64):

            def closure(rows: Tensor = rows) -> Any:
                optimizer.zero_grad()
                loss = cross_entropy(model(inputs[rows]), targets[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
    return model.eval()


if __name__ == "__main__":
    main()
