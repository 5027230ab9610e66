"""Command lines that people are told to type next: on this storage, and in the words of the place
they are in.
"""

from __future__ import annotations

import os
import shlex
from typing import Final

from orchestrator import config
from orchestrator.cli.call import Call

COMPOSE: Final = "ORCHESTRATOR_IN_COMPOSE"
"""Set in the containers of docker-compose.yml, where people type `docker compose …` on the host."""
_IN_COMPOSE: Final = {
    "launch": "docker compose run --rm launch",
    "worker": "docker compose up -d worker",
}
# it runs where no worker does
_ELSE_IN_COMPOSE: Final = "docker compose exec dashboard orchestrator"


def command(call: Call, name: str, *words: str) -> str:
    """The command line that runs `name` with `words` on the storage of this call: ``orchestrator
    stop study.name=digits``.
    """
    if os.environ.get(COMPOSE):
        begin = _IN_COMPOSE.get(name) or f"{_ELSE_IN_COMPOSE} {name}"
        more = () if name == "worker" else words
        return " ".join([begin, *map(shlex.quote, more)])
    return " ".join(["orchestrator", name, *map(shlex.quote, words), *_storage_words(call)])


def _storage_words(call: Call) -> list[str]:
    """What another command must be told to find this storage; a URL, which may hold a password, is
    only hinted at.
    """
    storage = call.composed.host.storage
    if storage.kind == "postgres":
        return [] if storage.url == os.environ.get(config.URL_VARIABLE) else ["storage.url=…"]
    if storage.path == config.default_storage_path():
        return []
    return [shlex.quote(f"storage.path={config.hydra_word(str(storage.path))}")]


def staying(call: Call, study: str, left: int) -> str:
    """For whoever leaves a study that is not finished: what stays, how to go on with it, and how to
    end it.
    """
    return (
        f"study {study} stays active, {left} {'trial is' if left == 1 else 'trials are'} left: "
        "any worker goes on with it\n"
        f"go on: the same command; end it: {command(call, 'stop', f'study.name={study}')}"
    )
