"""A checkpoint in one file: whatever has a `state_dict`, and how many epochs are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, parts: dict[str, Any], epochs: int) -> None:
    """Writes the state after `epochs` epochs atomically: the process may be killed at any time."""
    partial = path.with_suffix(".partial")
    torch.save(
        {"epochs": epochs} | {name: part.state_dict() for name, part in parts.items()}, partial
    )
    partial.replace(path)


def load_checkpoint(path: Path, parts: dict[str, Any]) -> int:
    """Restores the saved state and returns how many epochs are done; 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["epochs"])
