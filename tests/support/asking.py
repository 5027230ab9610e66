"""Optuna objectives run in this process: a study in memory whose trials are answered as a worker
answers them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from orchestrator.model import Param, StudySpec, TrialNews
from orchestrator.runner.child.suggestions import Suggests
from orchestrator.search import FIXED_KEY, Answers, Search


class HasValues(Protocol):
    """As `orchestrator.runner.child.merge.Settled` has it."""

    def value(self, path: str) -> tuple[Any, ...]: ...


class AskedTrial(Suggests):
    """A trial whose questions travel as JSON to `Answers`; `added` are the parameters it got by
    asking.
    """

    def __init__(
        self, answers: Answers, created: TrialNews, settled: HasValues | None = None
    ) -> None:
        super().__init__()
        self._settled = settled
        self._answers = answers
        self.created = created
        self.added: list[Param] = []

    @property
    def params(self) -> dict[str, Any]:
        return self._suggested()

    def _fixed(self, name: str) -> tuple[Any, ...]:
        return () if self._settled is None else self._settled.value(name)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        sent = json.loads(json.dumps(question))
        name, kind, arguments = sent["suggest"]
        try:
            answer = self._answers.answer(name, kind, arguments, sent.get("fixed", ()))
        except (ValueError, TypeError) as error:
            return {"name": name, "refused": [type(error).__name__, str(error)]}
        if answer.new is not None:
            self._answers.keep(answer.new)
            self.added.append(answer.new)
        return {"name": name, "internal": answer.internal, "warnings": answer.warnings}


class AskedStudy:
    """Trials of one study, one after the other or several at once."""

    def __init__(self, spec: StudySpec) -> None:
        self.search = Search(spec)
        self._cells = list(spec.cells())
        self._count = 0

    def start(
        self,
        by_hand: Mapping[str, Any] | None = None,
        *,
        cell: int | None = None,
        settled: HasValues | None = None,
    ) -> AskedTrial:
        """The next trial; the cells take turns unless one is named. `settled` are the values of its
        `params`.
        """
        number, self._count = self._count, self._count + 1
        cell = number % len(self._cells) if cell is None else cell
        created = self.search.ask(self._cells[cell], ticket=number, retry=0)
        attrs = {**created.system_attrs, **({FIXED_KEY: dict(by_hand)} if by_hand else {})}
        mine = TrialNews(number, "RUNNING", created.params, system_attrs=attrs, cell=cell)
        self.search.feed([mine])
        return self.again(mine, settled)

    def again(self, stored: TrialNews, settled: HasValues | None = None) -> AskedTrial:
        """Another attempt of a trial of which this is stored."""
        return AskedTrial(
            self.search.answers(stored, ticket=stored.number, retry=0), stored, settled
        )

    def stored(self, trial: AskedTrial) -> TrialNews:
        """What is stored of the trial as it runs."""
        return replace(trial.created, params=(*trial.created.params, *trial.added))

    def end(self, trial: AskedTrial, value: float) -> None:
        self.search.feed([replace(self.stored(trial), state="COMPLETE", values=(value,))])
