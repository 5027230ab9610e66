"""The web server: optuna-dashboard, its plugins and the guard, behind one listening socket."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import optuna_dashboard
import waitress

from orchestrator.dashboard.access import Access
from orchestrator.dashboard.guard import BODY_BYTES, Guard
from orchestrator.dashboard.live import Downloads, LiveStudies
from orchestrator.errors import ConfigError
from orchestrator.logs import logger
from orchestrator.runner.files.artifacts import ArtifactPlace
from orchestrator.search import open_storage

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from orchestrator.store import Store

_SERVER = {
    "threads": 8,
    "channel_timeout": 30,  # seconds a client may be silent within a request
    "cleanup_interval": 5,
    "max_request_header_size": 1 << 16,
    # The guard refuses bodies that are a little too long; beyond this, nothing is read.
    "max_request_body_size": 16 * BODY_BYTES,
    "ident": None,
    "asyncore_use_poll": True,
}


def serve(store: Store, access: Access, artifacts: ArtifactPlace) -> None:
    """Serves optuna-dashboard for the studies of `store`, with artifacts, until the program ends.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        listening = socket.create_server((access.address, access.port), family=access.family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        settings = f"dashboard.host={access.address} dashboard.port={access.port}"
        raise ConfigError(f"{settings}: {why}; choose another port: dashboard.port=…") from None
    with listening:
        # It warns whenever a page sends more requests at once than there are threads, which is
        # normal.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        app = pages(store, open_storage(store.url), artifacts)
        server = waitress.create_server(Guard(app, access), sockets=[listening], **_SERVER)
        logger.info("optuna-dashboard at %s (%s; press Ctrl-C to end it)", access.url, access.terms)
        server.run()


def pages(store: Store, storage: Any, artifact_store: Any = None) -> WSGIApplication:
    """optuna-dashboard on `storage`, which cannot change live studies of `store`."""
    app = optuna_dashboard.wsgi(storage, artifact_store)
    app.install(LiveStudies(store.reads, storage))
    app.install(Downloads())
    return app  # type: ignore[no-any-return]
