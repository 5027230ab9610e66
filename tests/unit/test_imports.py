"""What a process of ours needs: torch is the objective's to load, what only the examples need is an
extra, and what prints a text needs little.
"""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from orchestrator.lazy import uncollected
from tests.support.commands import ROOT
from tests.support.loaded import loaded, run

LOADS_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = sys.modules["sklearn"] = None  # importing them is an error now
import orchestrator
skipped = ("orchestrator.examples", "orchestrator.training", "orchestrator.store.migrations.")
for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if not module.name.endswith(".__main__") and not module.name.startswith(skipped):
        importlib.import_module(module.name)
from orchestrator.search import HybridGPSampler, HybridTPESampler, Search
"""


def test_only_the_examples_and_the_toolkit_need_torch_or_scikit_learn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_checks_an_objective_loads_little_besides_it() -> None:
    code = "import sys, orchestrator.runner.keeper.importing; print(*sys.modules)"
    done = run(code)
    assert done.returncode == 0, done.stderr
    slow = {"omegaconf", "yaml", "antlr4", "numpy", "orchestrator.model", "orchestrator.settings"}
    assert not slow & set(done.stdout.split())


COUNTS = """
import gc, runpy, sys
counts = []
gc.callbacks.append(lambda phase, info: counts.append(info["generation"]))
try:
    runpy.run_module("orchestrator", run_name="__main__", alter_sys=True)
finally:
    print("collections:", len(counts), file=sys.stderr)
"""


def test_a_command_collects_no_garbage_while_it_imports() -> None:
    words = ("experiment=digits", "objective._target_=math.hypot", "probes.lr=null")
    done = run(COUNTS, "launch", *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("collections:")]
    assert int(line.split()[1]) < 60, "hundreds, if it did"


def test_a_pause_of_collections_ends_with_its_block_and_begins_where_there_were_some() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_what_only_prints_a_text_loads_nothing_slow(words: list[str]) -> None:
    slow = {"hydra", "omegaconf", "yaml", "rich", "sqlalchemy", "psycopg2", "optuna", "numpy"}
    assert not loaded(*words) & {*slow, "torch", "logging", "argparse", "psutil"}


def test_the_help_of_a_command_needs_no_database_and_no_optuna() -> None:
    slow = {"sqlalchemy", "psycopg2", "alembic", "optuna", "numpy", "scipy", "torch"}
    assert not loaded("status", "--help") & slow
