"""Objectives for the runner's tests, most of them misbehaving. They run in child processes and return what they saw."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

IMPORTED_BY = os.getpid()
not_callable = 3


class TrialPruned(Exception):  # noqa: N818
    """As ``optuna.TrialPruned``: recognised by its name."""


class DeepPruned(TrialPruned):
    pass


RETURNED: dict[str, Any] = {
    "float": 0.5,
    "int": 3,
    "float32": np.float32(0.25),
    "array0": np.array(0.75),
    "fraction": Fraction(1, 4),
    "decimal": Decimal("0.5"),
    "mapping": {"score": np.float64(0.5), "epochs": np.int64(7), "curve": np.array([1.0, float("nan")]), "model": object()},
    "one_of_one": [0.5],
    "nan": float("nan"),
    "inf": float("-inf"),
    "none": None,
    "bool": True,
    "np_bool": np.bool_(True),
    "str": "1.5",
    "huge": 10**400,
    "array1": np.array([1.0, 2.0]),
    "complex": 1j,
    "missing": {"scor": 0.5, "loss": 1.0},
    "nan_in_mapping": {"score": float("nan")},
    "object": object(),
    "empty": [],
}


def give(cfg: Any, trial: Any, what: str) -> Any:
    return RETURNED[what]


def see(cfg: Any, trial: Any, factor: int = 1, extra: Any = None) -> dict[str, Any]:
    """Returns all that a child can observe about itself."""
    return {
        "score": 0.5 * factor,
        "cfg": cfg,
        "extra": extra,
        "number": trial.number,
        "params": trial.params,
        "device": trial.device,
        "seed": trial.seed,
        "attempt": trial.attempt,
        "resumed": trial.resumed,
        "checkpoint_dir": str(trial.checkpoint_dir),
        "checkpoint_dir_exists": trial.checkpoint_dir.is_dir(),
        "random": [random.random(), float(np.random.random())],
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "leads_its_session": os.getsid(0) == os.getpid() == os.getpgrp(),
        "imported_by": IMPORTED_BY,
        "path0": sys.path[0],
        "environment": dict(os.environ),
        "threads": threading.active_count(),
        "descriptors": _descriptors(),
    }


def report_and_ask(cfg: Any, trial: Any, steps: int) -> float:
    for step in range(steps):
        trial.report(np.float32(step), np.int64(step))
        if trial.should_prune():
            raise TrialPruned
    return 1.0


def pruned_like_optuna(cfg: Any, trial: Any) -> float:
    trial.report(1.0, 3)
    trial.report(float("nan"), 9)
    trial.report(2.0, 5)
    trial.report(2.5, 5)
    raise DeepPruned


def refused(cfg: Any, trial: Any) -> dict[str, Any]:
    """Every call that the trial must refuse, with the error it gave."""
    loop: list[Any] = []
    loop.append(loop)
    calls = {
        "str": lambda: trial.report("1.5", 1),
        "bool": lambda: trial.report(True, 1),
        "none": lambda: trial.report(None, 1),
        "huge": lambda: trial.report(10**400, 1),
        "float_step": lambda: trial.report(1.0, 1.5),
        "negative_step": lambda: trial.report(1.0, -1),
        "big_step": lambda: trial.report(1.0, 2**31),
        "nul": lambda: trial.set_user_attr("a", "x\0y"),
        "surrogate": lambda: trial.set_user_attr("a", "\ud800"),
        "nul_key": lambda: trial.set_user_attr("a\0", 1),
        "int_key": lambda: trial.set_user_attr(1, 1),
        "set": lambda: trial.set_user_attr("a", {1}),
        "bytes": lambda: trial.set_user_attr("a", [b"x"]),
        "loop": lambda: trial.set_user_attr("a", loop),
        "long": lambda: trial.set_user_attr("a", "x" * (1 << 20)),
    }
    errors = {}
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
    trial.set_user_attr("kept", {"a": (np.int8(1), np.array([1.5])), 3: float("inf"), "none": None})
    return {"score": 1.0, "errors": errors, "attrs": trial.user_attrs}


def several(cfg: Any, trial: Any) -> Any:
    for call in (lambda: trial.report(1.0, 1), trial.should_prune):
        try:
            call()
        except NotImplementedError:
            continue
        return None
    return np.array([1.0, 2.0])


def raises(cfg: Any, trial: Any) -> float:
    print("about to fail")
    raise ValueError("first line\nsecond\0line \ud800")


def unprintable(cfg: Any, trial: Any) -> float:
    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    raise BadError


def runs_out_of_memory(cfg: Any, trial: Any) -> float:
    raise MemoryError("no memory left")


def wrong_key(cfg: Any, trial: Any) -> float:
    return float(cfg.optim.lrr)


def exits(cfg: Any, trial: Any, code: int) -> float:
    sys.exit(code)


def vanishes(cfg: Any, trial: Any, code: int) -> float:
    print("nearly there", end="", flush=True)
    os._exit(code)


def dies_of(cfg: Any, trial: Any, signum: int) -> float:
    os.kill(os.getpid(), signum)
    time.sleep(60)
    return 1.0


def segfaults(cfg: Any, trial: Any) -> float:
    ctypes.string_at(0)
    return 1.0


def forks_and_returns(cfg: Any, trial: Any) -> float:
    if os.fork() == 0:
        return 111.0
    os.wait()
    return 1.0


def leaves_processes(cfg: Any, trial: Any) -> dict[str, Any]:
    """Returns while a background process and a daemon in a session of its own still run."""
    group = subprocess.Popen(["sleep", "300"])
    daemon = subprocess.Popen(["sleep", "300"], start_new_session=True)
    return {"score": 1.0, "left": [group.pid, daemon.pid]}


def leaves_thread(cfg: Any, trial: Any) -> float:
    threading.Thread(target=time.sleep, args=(300,)).start()
    return 1.0


def hangs_with_grandchild(cfg: Any, trial: Any, stubborn: bool = True) -> float:
    """Never ends by itself, ignores SIGTERM, and so does its grandchild; says both pids."""
    ignore = signal.SIG_IGN if stubborn else signal.SIG_DFL
    signal.signal(signal.SIGTERM, ignore)
    grandchild = os.fork()
    if grandchild == 0:
        signal.signal(signal.SIGTERM, ignore)
        while True:
            time.sleep(60)
    _write_pids(trial, [os.getpid(), grandchild, os.getppid()])
    while True:
        time.sleep(60)


def result_then_hangs(cfg: Any, trial: Any) -> float:
    """Its result is there, but the process does not end (a thread is left)."""
    _write_pids(trial, [os.getpid(), os.getppid()])
    threading.Thread(target=time.sleep, args=(300,)).start()
    return 0.75


def cleans_up(cfg: Any, trial: Any) -> float:
    _write_pids(trial, [os.getpid()])
    try:
        time.sleep(60)
    finally:
        (trial.checkpoint_dir / "cleaned").touch()
    return 1.0


def finishes_when_terminated(cfg: Any, trial: Any) -> float:
    _write_pids(trial, [os.getpid()])
    try:
        time.sleep(60)
    except BaseException:  # noqa: BLE001 - what users write
        return 0.5
    return 1.0


def stops_when_asked(cfg: Any, trial: Any, value: float | None = None) -> float | None:
    _write_pids(trial, [os.getpid()])
    while not trial.should_stop():
        time.sleep(0.005)
    return value


def chatty(cfg: Any, trial: Any, count: int) -> float:
    for step in range(count):
        trial.report(step, step)
        trial.set_user_attr("last", step)
    return 1.0


def noisy(cfg: Any, trial: Any) -> float:
    for i in range(2000):
        print(f"\x1b[31mline {i}\x1b[0m")
    print("progress 1%\rprogress 100%")
    os.write(2, b"raw \xff\x00 bytes\n")
    subprocess.run(["echo", "from a subprocess"], check=True)
    raise RuntimeError("after much noise")


def garbles_the_socket(cfg: Any, trial: Any) -> float:
    """Writes nonsense into every socket it has."""
    for fd in range(3, 64):
        try:
            if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("socket:"):
                os.write(fd, b'nonsense\n[1]\n{"report": 3}\n{"prune": {}}\n' + b"x" * 100 + b"\n")
        except OSError:
            continue
    return 1.0


def counts_attempts(cfg: Any, trial: Any) -> dict[str, Any]:
    file = trial.checkpoint_dir / "attempts.json"
    attempts = json.loads(file.read_text()) if file.exists() else []
    attempts.append(trial.attempt)
    file.write_text(json.dumps(attempts))
    return {"score": 1.0, "attempts": attempts}


def wants_epochs(cfg: Any, trial: Any, epochs: int) -> float:
    return float(epochs)


def _descriptors() -> list[str]:
    targets = []
    for fd in range(3, 256):
        try:
            targets.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        except OSError:
            continue
    return targets


def _write_pids(trial: Any, pids: list[int]) -> None:
    file = Path(trial.checkpoint_dir) / "pids.json"
    file.with_suffix(".new").write_text(json.dumps(pids))
    file.with_suffix(".new").rename(file)
