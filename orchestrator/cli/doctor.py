"""The command `doctor`: checks the invariants of the database."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.cli.call import Call
from orchestrator.model import value_label

if TYPE_CHECKING:
    from orchestrator.store import Examination, Finding

_UNWELL = 1


def run(call: Call) -> int:
    """Prints what is wrong, one line per finding; returns 0 if nothing is, else 1.

    With `study.name` it checks that study, or all stages of that chain, and the workers only.
    """
    with call.store() as store:
        if call.study_name is not None:
            store.reads.find(call.study_name)
        examination = store.doctor.examine(call.study_name)
    if call.json:
        print(json.dumps(asdict(examination), indent=2))
    else:
        for finding in examination.findings:
            print(_line(finding))
        for note in examination.notes:
            print(f"note: {_line(note)}")
        print(_summary(examination))
    return _UNWELL if examination.findings else 0


def _line(finding: Finding) -> str:
    where = "fleet" if finding.study is None else f"study {finding.study}"
    return value_label(f"{where}: {finding.kind}: {finding.message}")


def _summary(examination: Examination) -> str:
    found = len(examination.findings)
    wrong = "nothing wrong" if not found else _count(found, "thing") + " wrong"
    return (
        f"{_count(examination.studies, 'study', 'studies')}, "
        f"{_count(examination.trials, 'trial')}: {wrong}"
    )


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
