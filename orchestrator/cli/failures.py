"""What `launch` and `status` tell of failed trials: each kind of failure once in full, and how many
trials failed so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.cli.screen import View
from orchestrator.store import Store, StudyRow, likeness

MOST_KINDS = 5
"""Of more kinds of failures the most frequent are told."""


@dataclass
class Kind:
    """Failures that are alike: the first one's `message`, and the trials' `numbers`; `said` of them
    were told by `show`.
    """

    message: str
    numbers: list[int] = field(default_factory=list)
    said: int = 0

    @property
    def line(self) -> str:
        """All in one line: ``12 trials failed alike, trial 0 first: ValueError: no``."""
        first, line = self.numbers[0], self.message.partition("\n")[0]
        n = len(self.numbers)
        return (
            f"trial {first} failed: {line}"
            if n == 1
            else f"{n} trials failed alike, trial {first} first: {line}"
        )

    @property
    def text(self) -> str:
        """The same with the path and the end of the first one's log."""
        return "\n".join([self.line, *self.message.splitlines()[1:]])


class Failures:
    """The failed trials of a study since it was last launched, by kind, as far as they
    were read.
    """

    def __init__(self, store: Store, row: StudyRow) -> None:
        self._store = store
        self.begin_anew(row)

    def begin_anew(self, row: StudyRow) -> None:
        """Forgets what was read: the study is another row now, or its trials are."""
        self._study_id = row.study_id
        self._seq = 0
        self._kinds: dict[str, Kind] = {}

    def read(self) -> dict[str, int]:
        """Reads those that are new; returns how many of their kinds there were before, by what each
        kind shares.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        before: dict[str, int] = {}
        for failed in self._store.reads.failures(self._study_id, after=self._seq):
            self._seq = max(self._seq, failed.seq)
            shared = likeness(failed.message)
            kind = self._kinds.setdefault(shared, Kind(failed.message))
            before.setdefault(shared, len(kind.numbers))
            kind.numbers.append(failed.number)
        return before

    def show(self, view: View) -> None:
        """Says what is new: a kind that was not met before in full, of others how many there are,
        ever more seldom.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        for shared, had in self.read().items():
            kind = self._kinds[shared]
            if not had:
                view.say(f"trial {kind.numbers[0]} failed: {kind.message}")
                kind.said = 1
            if len(kind.numbers) > 1 and had.bit_length() != len(kind.numbers).bit_length():
                view.say(kind.line)
                kind.said = len(kind.numbers)

    @property
    def data(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [{"message": kind.message, "trials": kind.numbers} for kind in self.kinds]

    @property
    def kinds(self) -> list[Kind]:
        """Those met so far, the most frequent first."""
        return sorted(self._kinds.values(), key=lambda kind: (-len(kind.numbers), kind.numbers[0]))[
            :MOST_KINDS
        ]
