"""The program ``orchestrator``, also as ``python -m orchestrator``."""

import gc
import sys

# What an import makes is no garbage: looked through time and again as it grows, it takes a fifth longer.
gc.disable()
from orchestrator.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
