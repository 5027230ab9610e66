"""The peak of the tensors alive on the CPU, as a share of what torch's allocator counted.

Two steps with AdamW, in models of several kinds, at several batch sizes. The difference is scratch
memory within operations, which no operation shows:

    python -m tests.benchmarks.tensor_memory
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.training.memory import peak_memory

BATCHES = (1, 32, 256)


class Encoder(nn.Module):
    """One transformer layer over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, words: Tensor) -> Any:
        return self.out(self.layer(self.words(words)).mean(1))


class Recurrent(nn.Module):
    """An LSTM over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(16, 64, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, sequences: Tensor) -> Any:
        return self.out(self.layer(sequences)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 64, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "MLP 64-256-256-10": (mlp, lambda batch: torch.randn(batch, 64)),
    "CNN with batch norm": (cnn, lambda batch: torch.randn(batch, 3, 16, 16)),
    "Transformer layer": (Encoder, lambda batch: torch.randint(100, (batch, 32))),
    "LSTM": (Recurrent, lambda batch: torch.randn(batch, 20, 16)),
}


def share(make: Callable[[], nn.Module], inputs: Callable[[int], Tensor], batch: int) -> float:
    tensors = _peak(make(), inputs, batch, _of_tensors)
    return tensors / _peak(make(), inputs, batch, _of_allocator)


def _peak(
    model: nn.Module,
    inputs: Callable[[int], Tensor],
    batch: int,
    measure: Callable[[nn.Module, Callable[[], None]], int],
) -> int:
    optimizer = torch.optim.AdamW(model.parameters())

    def steps() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            targets = torch.zeros(batch, dtype=torch.long)
            cross_entropy(model(inputs(batch)), targets).backward()
            optimizer.step()

    return measure(model, steps)


def _of_tensors(_model: nn.Module, steps: Callable[[], None]) -> int:
    with peak_memory(torch.device("cpu")) as peak:
        steps()
    assert peak.allocated is not None
    return peak.allocated


def _of_allocator(model: nn.Module, steps: Callable[[], None]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        steps()
    assert profile.profiler is not None
    now = highest = sum(
        one.numel() * one.element_size() for one in chain(model.parameters(), model.buffers())
    )
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| model | " + " | ".join(map(str, BATCHES)) + " |\n|" + "---|" * (len(BATCHES) + 1))
    for name, (make, inputs) in MODELS.items():
        print(
            f"| {name} | "
            + " | ".join(f"{share(make, inputs, batch):.3f}" for batch in BATCHES)
            + " |"
        )


if __name__ == "__main__":
    main()
