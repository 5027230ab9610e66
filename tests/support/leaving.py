"""Objectives that leave something: artifacts, and traces of what they used."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def stores(cfg: Any, trial: Any) -> dict[str, Any]:
    """Stores a file and changes it afterwards."""
    file = trial.checkpoint_dir / "curve.csv"
    file.write_text("as it was")
    first = trial.log_artifact(file)
    file.write_text("changed since")
    second = trial.log_artifact(str(file), name="net.onnx", mimetype="model/onnx")
    file.unlink()
    return {"score": 1.0, "ids": [first, second]}


def tries_to_store(cfg: Any, trial: Any) -> dict[str, Any]:
    """Tells what each file that cannot be stored was refused with."""
    here = trial.checkpoint_dir
    file, pipe = here / "file", here / "pipe"
    file.write_text("x")
    os.mkfifo(pipe)
    calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "missing": (here / "gone.png", {}),
        "directory": (here, {}),
        "pipe": (pipe, {}),
        "name": (file, {"name": 3}),
        "empty": (file, {"name": ""}),
        "nul": (file, {"name": "a\0b"}),
        "type": (file, {"mimetype": "text/html\r\nX-Evil: 1"}),
        "place": (file, {}),
    }
    errors = {}
    for what, (path, words) in calls.items():
        try:
            trial.log_artifact(path, **words)
        except (OSError, TypeError, ValueError) as error:
            errors[what] = f"{type(error).__name__}: {error}"
    return {"score": 1.0, "errors": errors}


def uses_memory(cfg: Any, trial: Any, megabytes: int) -> float:
    """A process that it starts takes so much, and is waited for."""
    subprocess.run([sys.executable, "-c", f"x = bytearray({megabytes} << 20)"], check=True)
    return random.random()


def stores_when_stopped(cfg: Any, trial: Any) -> None:
    """Its last act before it gives up the trial is to store a file, soon after it said something
    else.
    """
    mark = Path(trial.checkpoint_dir, "mark")
    while not trial.should_stop():
        trial.set_user_attr("now", time.monotonic())
        mark.write_text("here")
        time.sleep(0.02)
    trial.log_artifact(mark)


def dies(cfg: Any, trial: Any) -> float:
    Path(trial.checkpoint_dir, "file").write_text("x")
    trial.log_artifact(Path(trial.checkpoint_dir, "file"))
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def trains(cfg: Any, trial: Any) -> float:
    """Trains a small network with dropout and returns its loss; stores a note."""
    import torch
    from torch import nn

    note = Path(trial.checkpoint_dir, "note.txt")
    note.write_text("a small network")
    trial.log_artifact(note)
    torch.manual_seed(trial.seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(cfg.dropout), nn.Linear(32, 1))
    inputs = torch.randn(256, 16)
    targets = inputs.sum(1, keepdim=True).sin()
    for _ in range(20):
        model.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():  # an optimizer takes as long to import as torch
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=cfg.lr)
    return loss.item()


def leaves_files(cfg: Any, trial: Any) -> float:
    """Prints a line, and leaves a checkpoint and an artifact."""
    print(f"trial {trial.number} leaves something")
    file = trial.checkpoint_dir / "weights.bin"
    file.write_bytes(b"w" * 1000)
    trial.log_artifact(file)
    return 1.0


def talks(cfg: Any, trial: Any, gate: str) -> float:
    """Prints a line, and once the file `gate` is there another one; the first attempt fails."""
    print(f"attempt {trial.attempt} begins")
    while not Path(gate).exists():
        time.sleep(0.05)
    print(f"attempt {trial.attempt} ends")
    if trial.attempt == 1:
        raise ConnectionError("the first one fails")
    return 1.0


def maps_its_loss(cfg: Any, trial: Any) -> float:
    """Stores the loss landscape of a small network; the second one covers the first."""
    import torch

    from orchestrator.training import loss_landscape

    torch.manual_seed(trial.number)
    model = torch.nn.Linear(4, 3)
    batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    file = trial.checkpoint_dir / "landscape.json"
    for points in (3, 5):
        found = loss_landscape(model, torch.nn.functional.cross_entropy, batches, points=points)
        found.save(file)
        trial.log_artifact(file)
    return found.centre
