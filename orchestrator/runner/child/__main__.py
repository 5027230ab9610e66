"""``python -m orchestrator.runner.child``: a child in an interpreter of its own."""

from orchestrator.runner.child.child import main

main()
