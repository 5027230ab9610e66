"""A trial without a study, for objectives that are called directly."""

from __future__ import annotations

from pathlib import Path


class FakeTrial:
    """Keeps what is reported, and asks for an early end after given epochs."""

    def __init__(
        self,
        checkpoint_dir: Path,
        *,
        stop_after: int | None = None,
        prune_after: int | None = None,
        device: str = "cpu",
        seed: int = 7,
    ) -> None:
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.seed = seed
        self.reports: dict[int, float] = {}
        self._stop_after, self._prune_after = stop_after, prune_after

    def report(self, value: float, step: int) -> None:
        self.reports[step] = value

    def should_prune(self) -> bool:
        return self._prune_after is not None and max(self.reports) >= self._prune_after

    def should_stop(self) -> bool:
        return self._stop_after is not None and max(self.reports) >= self._stop_after
