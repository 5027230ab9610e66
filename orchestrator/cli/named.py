"""The study that a command is about: by its name, by that of a chain of stages, or the newest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orchestrator.cli.call import Call

if TYPE_CHECKING:
    from orchestrator.store import Reading, StudyRow


def study_of(call: Call, store: Reading) -> StudyRow:
    """The study of ``study.name``, or the newest one; says which it is where the name is a chain's:
    the study of its newest stage.

    Raises:
        ConfigError: there is none.
    """
    row = store.reads.find(call.study_name)
    if call.study_name not in (None, row.name):
        print(
            f"{call.study_name} is a chain of stages; this is about its newest, {row.name}",
            file=sys.stderr,
        )
    return row
