"""``python -m orchestrator.runner.child``: a child in a new interpreter."""

from orchestrator.runner.child.child import main

main()
