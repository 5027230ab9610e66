"""The web pages: optuna-dashboard on the study's storage, behind a guard that makes it safe to
leave running.
"""

from orchestrator.dashboard.access import Access
from orchestrator.dashboard.server import serve

__all__ = ["Access", "serve"]
