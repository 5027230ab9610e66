"""What every fork starts with: the program, with all that a command or a worker imports late, and
with Hydra's plugins found and the shipped config read.
"""

from __future__ import annotations

import gc
import importlib

from orchestrator.cli.commands import COMMANDS
from orchestrator.config.loader import Loader
from orchestrator.runner.system import linux

for _module in (
    *(f"orchestrator.cli.{command.run.partition('.')[0]}" for command in COMMANDS.values()),
    "alembic.command",
    "joblib",
    "optuna.storages._rdb.storage",
    "orchestrator.config.plain",
    "orchestrator.config.showing",
    "orchestrator.config.study",
    "orchestrator.dashboard",
    "orchestrator.runner.keeper.keeper",
    "orchestrator.runner.runner",
    "orchestrator.search.answers",
    "orchestrator.search.gp.sampler",
    "orchestrator.search.search",
    "orchestrator.search.tpe.sampler",
    "orchestrator.store.embedded.server",
    "orchestrator.store.reading",
    "orchestrator.store.store",
    "orchestrator.worker.worker",
    "psycopg2.extras",
    "pynvml",
    "rich._emoji_codes",
    "scipy.optimize",
    "scipy.stats",
    "tests.support.fleet",
):
    importlib.import_module(_module)

Loader(None, "config").load([])
gc.collect()
gc.freeze()
linux.gather_pages()  # here once, instead of in every keeper
