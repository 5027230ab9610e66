"""The web pages: optuna-dashboard over the study's storage."""

from __future__ import annotations

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from orchestrator.errors import ConfigError
from orchestrator.logs import logger
from orchestrator.search import open_storage


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser that keeps its connection open does not hold up the end


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def serve(url: str, host: str, port: int) -> None:
    """Serves optuna-dashboard at `host`:`port` until interrupted.

    Args:
        url: full database URL, password included.

    Raises:
        ConfigError: the address cannot be bound.
    """
    app = optuna_dashboard.wsgi(open_storage(url))
    try:
        httpd = make_server(host, port, app, server_class=_Server, handler_class=_QuietHandler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"dashboard.host={host} dashboard.port={port}: {error}; choose another: dashboard.port=…") from None
    with httpd:
        logger.info("optuna-dashboard at http://%s:%d/ (Ctrl-C ends it)", "127.0.0.1" if host == "0.0.0.0" else host, port)
        httpd.serve_forever()
