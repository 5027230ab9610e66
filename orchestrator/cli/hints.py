"""Suggested next commands, with what they need to reach this storage, also from Docker Compose."""

from __future__ import annotations

import os
import shlex
from typing import Final

from orchestrator import config
from orchestrator.cli.call import Call
from orchestrator.cli.commands import RETRY
from orchestrator.model import count_label

COMPOSE: Final = "ORCHESTRATOR_IN_COMPOSE"
"""Set in the containers of docker-compose.yml, where people type `docker compose …` on the host."""
_IN_COMPOSE: Final = {
    "launch": "docker compose run --rm launch",
    "worker": "docker compose up -d worker",
}
# It always runs, a worker may not.
_ELSE_IN_COMPOSE: Final = "docker compose exec dashboard orchestrator"


def command(call: Call, name: str, *words: str) -> str:
    """The command line for `name` with `words` on this call's storage: ``orchestrator stop …``."""
    if os.environ.get(COMPOSE):
        begin = _IN_COMPOSE.get(name) or f"{_ELSE_IN_COMPOSE} {name}"
        more = () if name == "worker" else words
        return " ".join([begin, *map(shlex.quote, more)])
    return " ".join(["orchestrator", name, *map(shlex.quote, words), *_storage_words(call)])


def report(call: Call, study: str) -> str:
    """How to get the study's report; from a container, past its files."""
    named = f"study.name={study}"
    if not os.environ.get(COMPOSE):
        return command(call, "report", named)
    words = f"docker compose exec -T dashboard orchestrator report {shlex.quote(named)} out=-"
    return f"{words} > report.html"


def _storage_words(call: Call) -> list[str]:
    """The overrides another command needs to find this storage.

    A URL is elided, as it may hold a password.
    """
    storage = call.host.storage
    if storage.kind == "postgres":
        return [] if storage.url == os.environ.get(config.URL_VARIABLE) else ["storage.url=…"]
    if storage.path == config.default_storage_path():
        return []
    return [shlex.quote(f"storage.path={config.hydra_word(str(storage.path))}")]


def staying(call: Call, study: str, left: int) -> str:
    """For an interrupted launch: what stays, how to continue the study, and how to end it."""
    trials = count_label(left, "trial")
    return (
        f"study {study} stays active with {trials} left: any running worker continues it\n"
        f"to continue: the same command; to end it: {command(call, 'stop', f'study.name={study}')}"
    )


def how_to_retry(call: Call, study: str) -> str:
    """How to run the failed trials of a study again once their cause is fixed."""
    retry = command(call, "retry", f"study.name={study}", "trial=failed")
    return (
        f"once the cause of the failures is fixed, the same command with {RETRY} runs the failed "
        f"trials again (or: {retry})"
    )
