"""The commands that stay: worker, dashboard; and the ones about the database itself."""

from __future__ import annotations

import functools
import gc
import os
import signal
import time
from contextlib import ExitStack

from orchestrator import logs
from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError, StoreUnavailableError
from orchestrator.logs import logger
from orchestrator.runner.files.artifacts import ArtifactPlace, checked_place
from orchestrator.runner.system import linux
from orchestrator.signals import Ending
from orchestrator.store import Store
from orchestrator.store.embedded import server as embedded
from orchestrator.worker.contact import HealthFile

LAUNCHER_PID = "ORCHESTRATOR_LAUNCHER_PID"
"""Set by `launch` for the workers it starts: they end, in order, when it dies."""
_RETRY_S = 2.0
_COLLECT_EVERY = 20_000


def worker(call: Call) -> int:
    """Serves all active studies until told to end; waits for a database that is not up yet."""
    logs.configure("worker")
    with Ending(0) as ending, ExitStack() as stack:
        host = call.composed.host
        artifacts = checked_place(host.paths.artifacts, host.paths.data)
        # checked before the wait for the database, and the file of a worker before is gone
        HealthFile(host.worker.health_file)
        if launcher := os.environ.pop(LAUNCHER_PID, None):
            linux.die_with_parent(signal.SIGTERM, int(launcher))
        # A study's trials are a million objects that stay; collections that look through them take
        # as long as to read them.
        gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
        from orchestrator.worker.worker import Worker  # brings Optuna, which no other command needs

        gc.freeze()
        store = _patiently(call, stack)
        command = functools.partial(hints.command, call)
        served = Worker(
            store, host.worker, host.paths.runs, host.paths.checkpoints, artifacts, command
        )
        with served.signals():
            if not ending.asked:  # by a signal whose `SystemExit` an import swallowed
                served.run()
            ending.asked = True  # nothing is to cut short how it takes its leave
    return 0


def dashboard(call: Call) -> int:
    """Serves optuna-dashboard until interrupted."""
    # slow to import, and no other command needs it
    from orchestrator.dashboard import Access, serve

    logs.configure("dashboard")
    host = call.composed.host
    access = Access.checked(host.dashboard)
    artifacts = ArtifactPlace(checked_place(host.paths.artifacts, host.paths.data))
    with Ending(0), ExitStack() as stack:
        serve(_patiently(call, stack), access, artifacts)
    return 0


def database(call: Call) -> int:
    """`db start|stop|url|upgrade`."""
    storage = call.composed.host.storage
    if call.action in ("start", "stop") and storage.kind != "embedded":
        raise ConfigError(
            f"db {call.action} is for the embedded server; storage.url names a server that is "
            "run by others"
        )
    if call.action == "stop":
        assert storage.path is not None
        print("stopped" if embedded.stop(storage.path) else "no embedded server was running")
        return 0
    if storage.kind == "embedded":
        assert storage.path is not None
        embedded.keep_up(storage.path)
    with call.store() as store:
        if call.action == "url":
            print(store.url)
        elif call.action == "start":
            print(f"the embedded server is up until 'orchestrator db stop': {store.masked_url}")
        else:
            print(f"the schemas of {store.masked_url} are up to date")
            if (told := store.doctor.older_optuna()) is not None:
                print(f"note: {told}")
    return 0


def _patiently(call: Call, stack: ExitStack) -> Store:
    """Opens the database, waiting as long as it takes for it to answer; what was opened is closed
    with `stack`.
    """
    said = ""
    while True:
        try:
            return stack.enter_context(call.store())
        except StoreUnavailableError as error:
            if str(error) != said:
                logger.warning("%s; waiting for it", error)
                said = str(error)
        time.sleep(_RETRY_S)
