"""``python -m orchestrator.runner.keeper OPTIONS``: the keeper of a worker, or the check of an
objective.
"""

import sys

from orchestrator.lazy import uncollected

with uncollected():
    from orchestrator.runner.protocol.contract import KeeperOptions

    options = KeeperOptions.from_argument(sys.argv[1])
    # All of ours before the objective, which may change how modules are found.
    if options.only_checks:
        from orchestrator.runner.keeper.importing import check as run
    else:
        from orchestrator.runner.keeper.keeper import main as run
run(options)
