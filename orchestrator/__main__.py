"""The program ``orchestrator``, also as ``python -m orchestrator``."""

import atexit
import gc
import sys

from orchestrator import signals

# Before anything takes time to import: what is told to end now has nothing to undo yet.
if (
    code := {"worker": 0, "dashboard": 0, "launch": 130}.get(
        sys.argv[1] if len(sys.argv) > 1 else ""
    )
) is not None:
    signals.end_at_once(code)
    # as the last of them, when Python lets go of handlers: the exit code is settled
    atexit.register(signals.shut_out)

# What an import makes is no garbage: looked through time and again as it grows, it takes a fifth
# longer.
gc.disable()
from orchestrator.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
