"""What a process of ours needs: torch is the objective's to load, and what only the examples need
is an extra.
"""

from __future__ import annotations

import subprocess
import sys

from tests.support.commands import ROOT

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
