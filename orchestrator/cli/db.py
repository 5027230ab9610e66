"""The command `db`: the embedded server and the schemas."""

from __future__ import annotations

from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError
from orchestrator.store.embedded import server as embedded


def run(call: Call) -> int:
    """Starts or stops the embedded server, prints the URL, or upgrades the schemas."""
    storage = call.host.storage
    if call.action in ("start", "stop") and storage.kind != "embedded":
        raise ConfigError(
            f"db {call.action} is only for the embedded server; storage.url names a server that "
            "this program does not manage"
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
            print(f"the embedded server runs until 'orchestrator db stop': {store.masked_url}")
        else:
            print(f"the schemas of {store.masked_url} are up to date")
            if (note := store.doctor.older_optuna()) is not None:
                print(f"note: {note}")
    return 0
