"""What a process of ours needs: torch is the objective's to load, what only the examples need is an
extra, and what prints a text needs little.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.commands import ROOT
from tests.support.loaded import loaded

LOADS_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = sys.modules["sklearn"] = None  # importing them is an error now
import orchestrator
skipped = ("orchestrator.examples", "orchestrator.store.migrations.")
for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if not module.name.endswith(".__main__") and not module.name.startswith(skipped):
        importlib.import_module(module.name)
from orchestrator.search import HybridGPSampler, HybridTPESampler, Search
"""


def test_no_module_but_the_examples_needs_torch_or_scikit_learn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_what_only_prints_a_text_loads_nothing_slow(words: list[str]) -> None:
    slow = {"hydra", "omegaconf", "yaml", "rich", "sqlalchemy", "psycopg2", "optuna", "numpy"}
    assert not loaded(*words) & {*slow, "torch", "logging", "argparse", "psutil"}


def test_the_help_of_a_command_needs_no_database_and_no_optuna() -> None:
    slow = {"sqlalchemy", "psycopg2", "alembic", "optuna", "numpy", "scipy", "torch"}
    assert not loaded("status", "--help") & slow
