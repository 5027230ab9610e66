"""The program ``orchestrator``, also as ``python -m orchestrator``."""

import atexit
import gc
import sys

from orchestrator import signals

# Before the slow imports: a process that is signalled to end now has nothing to undo yet.
if (
    code := {"worker": 0, "dashboard": 0, "launch": 130}.get(
        sys.argv[1] if len(sys.argv) > 1 else ""
    )
) is not None:
    signals.end_at_once(code)
    # Runs last of all exit functions, before Python drops its handlers: a late signal must not
    # change the exit code.
    atexit.register(signals.shut_out)

# Imports create no garbage, and collections during them make them a fifth slower.
gc.disable()
from orchestrator.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
