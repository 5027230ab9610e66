"""Failed trials in `launch` and `status`: each kind of failure once in full, then counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cli.screen import View
from orchestrator.store import likeness

if TYPE_CHECKING:
    from orchestrator.store import Reading, StudyRow

MOST_KINDS = 5
"""Only the most frequent kinds of failure are shown."""


@dataclass
class Kind:
    """Failures of one kind: the first one's `message`, and the `numbers` of all the trials.

    `printed` is how many of them the last line printed by `show` counted.
    """

    message: str
    numbers: list[int] = field(default_factory=list)
    printed: int = 0

    @property
    def line(self) -> str:
        """A one-line summary: ``12 trials failed the same way, first trial 0: ValueError: no``."""
        first, line = self.numbers[0], self.message.partition("\n")[0]
        if len(self.numbers) == 1:
            return f"trial {first} failed: {line}"
        return f"{len(self.numbers)} trials failed the same way, first trial {first}: {line}"

    @property
    def text(self) -> str:
        """The summary, then the path and the end of the first trial's log."""
        return "\n".join([self.line, *self.message.splitlines()[1:]])


class Failures:
    """A study's failed trials since its last launch, by kind, as far as they were read."""

    def __init__(self, store: Reading, row: StudyRow) -> None:
        self._store = store
        self.reset(row)

    def reset(self, row: StudyRow) -> None:
        """Forgets what was read, for a study whose row or trials are no longer the same."""
        self._study_id = row.study_id
        self._seq = 0
        self._kinds: dict[str, Kind] = {}

    def read(self) -> dict[str, int]:
        """Reads the new failures.

        Returns:
            For each kind that grew, how many failures it had before; by the text that its messages
            share.

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
        """Prints what is new: a new kind in full, a known kind as a count when it has doubled.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        for shared, before in self.read().items():
            kind = self._kinds[shared]
            if not before:
                view.say(f"trial {kind.numbers[0]} failed: {kind.message}")
                kind.printed = 1
            doubled = before.bit_length() != len(kind.numbers).bit_length()
            if len(kind.numbers) > 1 and doubled:
                view.say(kind.line)
                kind.printed = len(kind.numbers)

    @property
    def data(self) -> list[dict[str, Any]]:
        """The most frequent kinds for programs: plain data for JSON."""
        return [{"message": kind.message, "trials": kind.numbers} for kind in self.kinds]

    @property
    def kinds(self) -> list[Kind]:
        """The `MOST_KINDS` most frequent kinds so far, the most frequent first."""
        kinds = sorted(self._kinds.values(), key=lambda kind: (-len(kind.numbers), kind.numbers[0]))
        return kinds[:MOST_KINDS]
