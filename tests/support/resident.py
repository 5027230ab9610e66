"""Objectives for a process that runs many trials: what they find there, and what they leave."""

from __future__ import annotations

import atexit
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.runner import TrialPruned

trials_here = 0
opened: list[int] = []


def look(cfg: Any, trial: Any) -> dict[str, Any]:
    """Says what it sees, in every way there is to say something."""
    global trials_here
    trials_here += 1
    print(f"this is trial {trial.number}")
    subprocess.run(["echo", f"a program of trial {trial.number}"], check=True)
    trial.report(float(trial.number), 1)
    trial.set_user_attr("number", trial.number)
    seen = {"score": 1.0, "pid": os.getpid(), "before": trials_here - 1, "lr": cfg.optim.lr}
    return {**seen, "random": [random.random(), float(np.random.random())]}


def leave(cfg: Any, trial: Any, what: str) -> dict[str, Any]:
    """Leaves `what` behind, then returns its process and what it left there."""
    left = []
    match what:
        case "failure":
            (trial.checkpoint_dir / "pids.json").write_text(f"[{os.getpid()}]")
            raise ValueError("as asked")
        case "prune":
            (trial.checkpoint_dir / "pids.json").write_text(f"[{os.getpid()}]")
            raise TrialPruned
        case "thread":
            threading.Thread(target=time.sleep, args=(0.2,), name="mine").start()
        case "process":
            left = [subprocess.Popen(["sleep", "300"]).pid]
        case "daemon":
            script = (
                "import subprocess; print(subprocess.Popen(['sleep', '300'], "
                "start_new_session=True, stdout=-3).pid)"
            )
            left = [
                int(
                    subprocess.run(
                        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE
                    ).stdout
                )
            ]
        case "cwd":
            os.chdir(tempfile.gettempdir())
        case "environment":
            os.environ["MY_SETTING"] = "1"
        case "limit":
            resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        case "files":
            opened.extend(
                os.open(os.devnull, os.O_RDONLY)
                for _ in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 6 // 10)
            )
        case "stdout":
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for good
        case "garbage":
            loop: list[Any] = []
            loop += [
                loop,
                subprocess.Popen(["sleep", "300"]),
            ]  # as a data loader, which ends its processes when it is collected
            _EndsItsProcess(loop)
        case "exit function":
            atexit.register((Path(trial.checkpoint_dir) / "exited").touch)
        case "reporter":
            threading.Thread(target=_report_for_ever, args=(trial,), daemon=True).start()
    return {"score": 1.0, "pid": os.getpid(), "left": left}


class _EndsItsProcess:
    def __init__(self, loop: list[Any]) -> None:
        self.process = loop[1]
        loop.append(self)

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()


def _report_for_ever(trial: Any) -> None:
    step = 100
    while True:
        step += 1
        trial.report(1.0, step)
        time.sleep(0.001)
