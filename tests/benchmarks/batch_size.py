"""Finders of the largest batch, on steps of which it is known what fits.

A step raises torch's error of memory above a given size. Each finder says what fits; how often it
ran the step, and the largest size that it tried, are counted. Needs the peers:

    pip install accelerate==1.15.0 lightning==2.6.6
    python -m tests.benchmarks.batch_size
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training import find_batch_size

CASES = ((100, 2000), (40, 2000), (1500, 1000), (0, 2000))  # what fits, rows of the data set
Step = Callable[[int], None]


def ours(step: Step, rows: int) -> int:
    return find_batch_size(step, device="cpu", n_samples=rows).batch_size


def accelerate(step: Step, rows: int) -> int:
    utilities: Any = import_module("accelerate.utils")

    def run(batch_size: int) -> int:
        step(batch_size)
        return batch_size

    found: int = utilities.find_executable_batch_size(run, starting_batch_size=128)()
    return found


def lightning(mode: str) -> Callable[[Step, int], int]:
    def find(step: Step, rows: int) -> int:
        library: Any = import_module("lightning")
        tuner: Any = import_module("lightning.pytorch.tuner")

        class Model(library.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.batch_size = 2
                self.layer = nn.Linear(1, 1)

            def training_step(self, batch: Any, _index: int) -> Any:
                step(len(batch[0]))
                return self.layer(batch[0]).mean()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

            def train_dataloader(self) -> Any:
                return DataLoader(TensorDataset(torch.zeros(rows, 1)), batch_size=self.batch_size)

        trainer = library.Trainer(
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        found: int = tuner.Tuner(trainer).scale_batch_size(Model(), mode=mode, init_val=2)
        return found

    return find


FINDERS: dict[str, Callable[[Step, int], int]] = {
    "ours": ours,
    "Lightning `power` (default)": lightning("power"),
    "Lightning `binsearch`": lightning("binsearch"),
    "accelerate": accelerate,
}


def measured(find: Callable[[Step, int], int], fits: int, rows: int) -> str:
    runs: list[int] = []

    def step(size: int) -> None:
        runs.append(size)
        if size > fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    try:
        found = str(find(step, rows))
    except Exception as error:  # noqa: BLE001 - how a finder fails is a result
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:50]}…"
    return f"{found} ({len(runs)}, {max(runs, default=0)})"


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("Found (steps run, largest size tried).\n")
    heads = [f"{fits} fit of {rows} rows" for fits, rows in CASES]
    print("| | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    for name, find in FINDERS.items():
        print(f"| {name} | " + " | ".join(measured(find, *case) for case in CASES) + " |")


if __name__ == "__main__":
    main()
