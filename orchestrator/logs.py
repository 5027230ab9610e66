"""Log lines of the commands: one line each on standard error, with the time and who speaks."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("orchestrator")


def configure(speaker: str) -> None:
    """Sends our log lines to standard error as ``12:03:59 worker 3: text``; other libraries speak
    from WARNING on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s {speaker}: %(message)s", datefmt="%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
