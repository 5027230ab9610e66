"""Exhausted memory: however a library says it, and how much it was."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.model import Failed
from orchestrator.runner import Running, read_result
from orchestrator.runner.protocol import rundir
from orchestrator.runner.system import memory
from tests.support import memory_errors
from tests.support.running import finish, make_job, objective, running_with


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


class CuPyOutOfMemoryError(MemoryError):
    """As CuPy has it."""


CuPyOutOfMemoryError.__name__ = "OutOfMemoryError"


class ResourceExhaustedError(Exception):
    """As TensorFlow has it."""


class XlaRuntimeError(RuntimeError):
    """As JAX has it."""


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised_while_handling(error: Exception, handled: Exception) -> Exception:
    error.__context__ = handled
    return error


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        *((RuntimeError(text), "device") for text in memory_errors.DEVICE),
        *((RuntimeError(text), "host") for text in memory_errors.HOST),
        *((RuntimeError(text), None) for text in memory_errors.NEITHER),
        (OutOfMemoryError(memory_errors.CUDA), "device"),
        (CuPyOutOfMemoryError("Out of memory allocating 8 bytes"), "device"),
        (
            XlaRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."
            ),
            "device",
        ),
        (ResourceExhaustedError("OOM when allocating tensor with shape[1024,1024]"), "device"),
        (raised_from(ValueError("fold 3 failed"), OutOfMemoryError("")), "device"),
        (ExceptionGroup("folds", [ValueError("a"), OutOfMemoryError("")]), "device"),
        (MemoryError(), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
        # the smaller batch it tried then
        (raised_while_handling(ValueError("nan"), OutOfMemoryError("")), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (NoTextError(), None),
    ],
)
def test_whose_memory_ran_out(error: Exception, whose: str | None) -> None:
    assert memory.ran_out(error) == whose


def test_causes_that_lead_in_a_circle_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert memory.ran_out(first) is None


def test_the_peak_is_what_torch_reserved_on_any_device_it_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 2, max_memory_reserved=lambda k: (7, 9)[k]
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert memory.peak_bytes("device") == 9
    cuda.is_initialized = lambda: False
    assert memory.peak_bytes("device") is None
    cuda.is_initialized = lambda: (_ for _ in ()).throw(
        RuntimeError("CUDA error: unspecified launch failure")
    )
    assert memory.peak_bytes("device") is None
    monkeypatch.delitem(sys.modules, "torch")
    assert memory.peak_bytes("device") is None
    assert (memory.peak_bytes("host") or 0) > 10_000_000


def test_a_child_that_the_kernel_killed_for_memory_says_what_it_held(tmp_path: Path) -> None:
    job = make_job(tmp_path, objective("fine"))
    running = object.__new__(Running)  # a verdict needs no processes
    running.job = job
    verdict = running._judge(-9, None, True, 60_000_000)
    assert isinstance(verdict, Failed)
    assert (verdict.kind, verdict.memory, verdict.peak_bytes) == ("oom", "host", 60_000_000)


def test_the_outcome_says_whose_and_how_much_also_when_it_is_read_later(tmp_path: Path) -> None:
    target = objective("runs_out_of_memory")
    with running_with(target) as runner:
        outcome, _ = finish(runner.start(make_job(tmp_path, target)))
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.memory) == ("oom", "host")
    assert (outcome.peak_bytes or 0) > 1_000_000
    run_dir = next(tmp_path.glob("**/result.json")).parent
    later = read_result(run_dir)
    assert isinstance(later, Failed)
    assert (later.memory, later.peak_bytes) == (outcome.memory, outcome.peak_bytes)
    older = json.loads((run_dir / "result.json").read_text())
    del older["memory"], older["peak_bytes"]
    read = rundir.result_from_json(older, run_dir)
    assert isinstance(read, Failed)
    assert (read.kind, read.memory) == ("oom", None)
