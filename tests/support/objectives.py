"""Objectives for the runner's tests, most of them misbehaving. They run in child processes and
return what they saw.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
    "mapping": {
        "score": np.float64(0.5),
        "epochs": np.int64(7),
        "curve": np.array([1.0, float("nan")]),
        "model": object(),
    },
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
    calls: dict[str, Callable[[], Any]] = {
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


class OwnInterrupt(BaseException):
    pass


def raises_outside_exception(cfg: Any, trial: Any) -> float:
    raise OwnInterrupt("not an Exception")


def raises_connection_reset(cfg: Any, trial: Any) -> float:
    raise ConnectionResetError("by peer")


def recurses(cfg: Any, trial: Any) -> float:
    return recurses(cfg, trial)


def returns_what_raises(cfg: Any, trial: Any) -> Any:
    class Lazy:
        def __float__(self) -> float:
            raise RuntimeError("computed only now")

    return Lazy()


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


def starts_many(cfg: Any, trial: Any, count: int) -> dict[str, Any]:
    """Returns while `count` processes still run, every other one in a session of its own."""
    left = [
        subprocess.Popen(["sleep", "300"], start_new_session=i % 2 == 0).pid for i in range(count)
    ]
    return {"score": 1.0, "left": left}


def leaves_one_that_prints(cfg: Any, trial: Any) -> dict[str, Any]:
    """Returns while a process in a session of its own prints as fast as it can."""
    return {"score": 1.0, "left": [subprocess.Popen(["yes"], start_new_session=True).pid]}


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


def holds_the_interpreter(cfg: Any, trial: Any, seconds: int) -> float:
    """Native code that never lets go of the interpreter's lock."""
    ctypes.PyDLL(None).sleep(seconds)
    return 1.0


def kills_its_parent(cfg: Any, trial: Any) -> float:
    _write_pids(trial, [os.getpid()])
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return 1.0


def result_then_hangs(cfg: Any, trial: Any) -> float:
    """Its result is there, but the process does not end (a thread is left)."""
    trial.report(0.5, 1)
    trial.set_user_attr("note", "as sent")
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


def garbles_every_descriptor(cfg: Any, trial: Any) -> float:
    """Writes nonsense into everything it has open."""
    nonsense = (
        b'nonsense\n[1]\n{"report": 3}\n{"report": [1, "x"]}\n{"attr": [1, 2]}\n{"prune": {}}\n'
        + b"x" * 100
        + b"\n"
    )
    for fd in range(256):
        with contextlib.suppress(OSError):
            os.write(fd, nonsense)
    return 1.0


def counts_attempts(cfg: Any, trial: Any) -> dict[str, Any]:
    file = trial.checkpoint_dir / "attempts.json"
    attempts = json.loads(file.read_text()) if file.exists() else []
    attempts.append(trial.attempt)
    file.write_text(json.dumps(attempts))
    return {"score": 1.0, "attempts": attempts}


def prints_much(cfg: Any, trial: Any, megabytes: int) -> float:
    """Prints numbered lines of 100 bytes."""
    for number in range(megabytes * 10_000):
        print(f"{number:<99}")
    return 1.0


def prints_then_waits(cfg: Any, trial: Any) -> float:
    print("epoch 1")
    while not trial.should_stop():
        time.sleep(0.005)
    return 1.0


def closes_its_output(cfg: Any, trial: Any) -> float:
    """Closes stdout and stderr with all that is under them, and then fails."""
    sys.stdout.close()
    sys.stderr.close()
    os.close(1)
    os.close(2)
    raise LookupError("nobody hears me")


def replaces_its_output(cfg: Any, trial: Any) -> float:
    """Has no stdout, and a stderr that fails."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    sys.stdout = None
    sys.stderr = Broken()
    raise LookupError("nobody hears me")


def loses_its_directory(cfg: Any, trial: Any) -> float:
    gone = Path(trial.checkpoint_dir) / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    return 1.0


def deletes_its_run_directory(cfg: Any, trial: Any, value: float | None) -> float | None:
    while trial.checkpoint_dir.parent.exists():  # the keeper may be writing there
        shutil.rmtree(trial.checkpoint_dir.parent, ignore_errors=True)
    trial.report(1.0, 1)
    print("still here")
    return value


def opens_all_it_can(cfg: Any, trial: Any, fail: bool) -> float:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            opened.append(open(os.devnull))  # noqa: SIM115 - never closed, as in a leak
    except OSError:
        if fail:
            raise
    trial.report(1.0, 1)
    return 1.0


opened: list[Any] = []


def closes_every_descriptor(cfg: Any, trial: Any) -> dict[str, Any]:
    """Closes all that it inherited, as daemons do, then reports while files of its own have the
    same numbers.
    """
    os.closerange(3, 256)
    with contextlib.ExitStack() as stack:
        paths = [Path(trial.checkpoint_dir) / str(n) for n in range(64)]
        for path in paths:
            stack.enter_context(path.open("wb"))
        trial.report(1.0, 1)
        trial.set_user_attr("a", 1)
    return {"score": 1.0, "written_to": [path.name for path in paths if path.stat().st_size]}


def returns_much(cfg: Any, trial: Any, what: str) -> Any:
    """50 MB in one value."""
    values: dict[str, Callable[[], Any]] = {
        "text": lambda: {"score": 1.0, "text": "x" * 50_000_000},
        "curve": lambda: {"score": 1.0, "curve": np.zeros(6_000_000)},
        "list": lambda: [0.5] * 6_000_000,
    }
    return values[what]()


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


def sum_of_xyz(cfg: Any, trial: Any, reports: int = 0) -> float:
    """Does nothing but report so often: what is left is what a trial costs."""
    for step in range(reports):
        trial.report(float(step), step)
    return float(cfg.x + cfg.y + cfg.z)
