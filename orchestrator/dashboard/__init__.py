"""The web pages: optuna-dashboard behind a guard that makes it safe to leave running."""

from orchestrator.dashboard.access import Access
from orchestrator.dashboard.server import serve

__all__ = ["Access", "serve"]
