"""The long-running commands: `worker` and `dashboard`."""

from __future__ import annotations

import functools
import gc
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from orchestrator import logs
from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.errors import StoreUnavailableError
from orchestrator.lazy import uncollected
from orchestrator.logs import logger
from orchestrator.runner.files.artifacts import ArtifactPlace, checked_place
from orchestrator.runner.system import linux
from orchestrator.signals import Ending
from orchestrator.worker.contact import HealthFile

if TYPE_CHECKING:
    from orchestrator.store import Store
    from orchestrator.worker.notifying import Notifier

LAUNCHER_PID = "ORCHESTRATOR_LAUNCHER_PID"
"""Set by `launch` for the workers it starts: they shut down in an orderly way when it dies."""
_RETRY_S = 2.0


def worker(call: Call) -> int:
    """Serves all active studies until it is signalled to end.

    Waits for a database that is not up yet.
    """
    logs.configure("worker")
    with Ending(0) as ending, ExitStack() as stack:
        host = call.host
        artifacts = checked_place(host.paths.artifacts, host.paths.data)
        # Checks the path and removes an earlier worker's file before the wait for the database.
        HealthFile(host.worker.health_file)
        if launcher := os.environ.pop(LAUNCHER_PID, None):
            linux.die_with_parent(signal.SIGTERM, int(launcher))

        # Imports Optuna, which most commands do not need.
        with uncollected():
            from orchestrator.worker.worker import Worker

        telling = notifying(call)
        gc.freeze()
        store = _open_patiently(call, stack)
        command = functools.partial(hints.command, call)
        notifier = None if telling is None else telling(store, host.worker.studies)
        served = Worker(
            store,
            host.worker,
            host.paths.runs,
            host.paths.checkpoints,
            artifacts,
            command,
            notifier,
        )
        with served.signals():
            # Already requested if an import swallowed the `SystemExit` of an early signal.
            if not ending.requested:
                served.run()
            ending.requested = True  # a late signal must not cut the shutdown short
            if notifier is not None:
                notifier.close()
    return 0


def notifying(call: Call) -> Callable[[Store, Sequence[str] | None], Notifier] | None:
    """What makes the notifier of a database and some studies; None if this host has no webhook.

    Raises:
        ConfigError: the webhook's URL is wrong, or its file cannot be read.
    """
    settings = call.host.notify
    if not settings.url and settings.url_file is None:
        return None
    from orchestrator.worker.notifying import Notifier, webhook  # imports what HTTP needs

    hook = webhook(settings)
    return None if hook is None else lambda store, studies: Notifier(store, hook, studies)


def dashboard(call: Call) -> int:
    """Serves optuna-dashboard until interrupted."""
    from orchestrator.dashboard import Access, serve  # slow to import, needed only here

    logs.configure("dashboard")
    host = call.host
    access = Access.checked(host.dashboard)
    artifacts = ArtifactPlace(checked_place(host.paths.artifacts, host.paths.data))
    with Ending(0), ExitStack() as stack:
        serve(_open_patiently(call, stack), access, artifacts)
    return 0


def _open_patiently(call: Call, stack: ExitStack) -> Store:
    """Opens the database, however long it takes to answer; closes it with `stack`."""
    last_problem = ""
    while True:
        try:
            return stack.enter_context(call.store())
        except StoreUnavailableError as error:
            if str(error) != last_problem:
                logger.warning("%s; waiting for it", error)
                last_problem = str(error)
        time.sleep(_RETRY_S)
