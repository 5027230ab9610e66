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

# The last collection of a process looks at all that it has imported, to free what ends with it.
atexit.register(gc.freeze)

from orchestrator.lazy import uncollected  # noqa: E402

with uncollected():
    from orchestrator.cli import main
gc.freeze()
# A large study is a million long-lived objects. To scan them in a collection takes as long as to
# read them from the database, so collect less often.
gc.set_threshold(20_000, *gc.get_threshold()[1:])

if __name__ == "__main__":
    sys.exit(main())
