"""How failed trials are told: one of a kind in full, the others by their number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.cli.failures import Failures
from orchestrator.store import FailureRow


def test_a_kind_of_failure_is_told_once_and_then_ever_more_seldom() -> None:
    rows: list[FailureRow] = []
    said: list[str] = []
    reads = SimpleNamespace(
        failures=lambda study_id, *, after: [row for row in rows if row.seq > after]
    )
    store: Any = SimpleNamespace(reads=reads)
    view: Any = SimpleNamespace(say=said.append)
    failures = Failures(store, SimpleNamespace(study_id=1))  # type: ignore[arg-type]
    for number in range(9):
        rows.append(
            FailureRow(
                number,
                number + 10,
                f"ValueError: {number} is odd\nlog: /runs/{number}\n  line {number}",
            )
        )
        failures.show(view)
        failures.show(view)
    rows.append(FailureRow(9, 99, "KeyError: 'lr'\nlog: /runs/9"))
    failures.show(view)
    alike = "trials failed the same way, first trial 0: ValueError: 0 is odd"
    assert said == [
        "trial 0 failed: ValueError: 0 is odd\nlog: /runs/0\n  line 0",
        *(f"{n} {alike}" for n in (2, 4, 8)),
        "trial 9 failed: KeyError: 'lr'\nlog: /runs/9",
    ]
    assert [kind.text for kind in failures.kinds] == [
        f"9 {alike}\nlog: /runs/0\n  line 0",
        "trial 9 failed: KeyError: 'lr'\nlog: /runs/9",
    ]
    assert failures.data[0]["trials"] == list(range(9))
