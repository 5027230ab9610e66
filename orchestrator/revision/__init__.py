"""Revisions of a study: what a launch with another declaration changes, and what may be changed.

A study that is extended keeps one distribution for each parameter, which covers all that the
parameter has ever been: `Axis.stored` and `Searched.stored`. Values are only ever added to it, at
its end, because Optuna's tables hold a choice as its place in the list. What is taken away is no
longer suggested, and no longer a cell of the grid. Pure.
"""

from __future__ import annotations

from orchestrator.revision.change import Change, Extend, Extension
from orchestrator.revision.form import continued
from orchestrator.revision.rules import changes, defaults

__all__ = ["Change", "Extend", "Extension", "changes", "continued", "defaults"]
