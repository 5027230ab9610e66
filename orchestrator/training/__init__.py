"""Tools for those who train networks with torch: in a notebook, in an objective, in a probe.

This package knows nothing of studies, workers or databases, and needs only torch. What needs more
says so: `pip install 'orchestrator[training]'`.
"""

from orchestrator.training.parts import Parts
from orchestrator.training.state import preserved

__all__ = ["Parts", "preserved"]
