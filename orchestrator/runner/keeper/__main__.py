"""``python -m orchestrator.runner.keeper``: the keeper of a worker."""

from orchestrator.runner.keeper.keeper import main

main()
