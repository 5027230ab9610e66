"""The commands' log: one line per message on standard error, with time and process name."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("orchestrator")


def configure(name: str) -> None:
    """Logs to standard error as ``12:03:59 worker 3: text``.

    Other libraries log only from WARNING on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name}: %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
