"""`launch` of an experiment with stages: goes through them, each a study that begins with what the
one before it found.

Read `_Chain.run` from the top. What a stage inherits is written with its study, in one transaction
(`store.stages`); until then nothing is decided, and from then on every launch finds it there. So a
launch may be killed anywhere, and started again any number of times.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import config, search
from orchestrator.cli import hints, preflight, screen, stage_words
from orchestrator.cli.beliefs import Beliefs
from orchestrator.cli.call import Call
from orchestrator.cli.commands import CONFIRM, INTERRUPTED, RETRY
from orchestrator.cli.foreseen import Foreseen, foreseen
from orchestrator.cli.launch import checked
from orchestrator.cli.launch_study import Way, database, followed, prepared
from orchestrator.cli.waiting import waiting
from orchestrator.errors import OrchestratorError, StudyFailedError
from orchestrator.faults import step as crash_step
from orchestrator.model import MOST_CELLS, StudySpec
from orchestrator.revision import continued
from orchestrator.signals import Ending
from orchestrator.stages import Chain, Inherited, Stage, inherit
from orchestrator.store import Launched, NotBegun

if TYPE_CHECKING:
    from orchestrator.store import ChainRow, Reading, StageRow, Store, StudyRow


def run(call: Call, chain: Chain, ending: Ending) -> int:
    """Returns 0 once every stage has ended, one is to be confirmed, or a person stopped the chain;
    130 if the user interrupted.

    Raises:
        StudyFailedError: no trial of a stage completed.
    """
    confirm = call.flag(CONFIRM)
    with ExitStack() as stack:
        with waiting("checking the stages", only_on_terminal=True):
            importing = [
                stack.enter_context(preflight.Importing(call, spec)) for spec in _distinct(chain)
            ]
            distributions = [checked(stage.spec) for stage in chain.stages]
            for _, spec in chain.examples():  # with what a stage inherits it is searched as well
                checked(spec)
        if ending.requested:  # an import has swallowed the `SystemExit`
            return INTERRUPTED
        if "--dry-run" in call.switches:
            for one in importing:
                one.finish()
            stages = [chain.name, *(stage.spec.name for stage in chain.stages)]
            seen = foreseen(
                call,
                f"chain {chain.name}",
                stages,
                lambda begun, whole: _Chain(
                    call, chain, Way(begun, whole, 0, Path(), ending), confirm=confirm
                ).rehearsed(),
            )
            _show_plan(call, chain, distributions, seen)
            return 0
        count, output = prepared(call, importing)
        with database(call) as (begun, whole):
            way = Way(begun, whole, count, output, ending)
            return _Chain(call, chain, way, confirm=confirm).run()


def _distinct(chain: Chain) -> list[StudySpec]:
    """Of the stages that import the same, the first."""
    found: dict[str, StudySpec] = {}
    for stage in chain.stages:
        data = stage.spec.to_json()
        key = json.dumps([data["objective"], data.get("probes"), data["runner"]["start"]])
        found.setdefault(key, stage.spec)
    return list(found.values())


class _Chain:
    """One launch of a chain."""

    def __init__(self, call: Call, chain: Chain, way: Way, *, confirm: bool) -> None:
        self._call = call
        self._chain = chain
        self._way = way
        self._confirm = confirm
        self._results: list[dict[str, Any]] = []
        self._shown = False

    def run(self) -> int:
        code, last = 0, False
        try:
            ordinal, inherited, launched = self._first()
            while True:
                if code := self._run(ordinal, inherited, launched):
                    self._say(stage_words.how_to_go_on(self._call, self._chain.name))
                    return code
                last = ordinal + 1 == len(self._chain.stages)
                goes_on = not last and self._goes_on(ordinal)
                crash_step("stage-shown")
                if last or goes_on or not self._asks:
                    self._way.begun.stages.settle(launched.study_id)
                if not goes_on:
                    return 0
                found = self._next(ordinal)
                if found is None:
                    return 0
                ordinal, inherited, launched = found
        finally:
            self._tell_end(finished=last and not code)

    def rehearsed(self) -> tuple[str, Launched]:
        """What `run` does first, for a database in which nothing is kept: what it launches, and
        what became of it.
        """
        ordinal, _, launched = self._first()
        return f"stage {self._chain.stages[ordinal].name} of chain {self._chain.name}", launched

    # ----------------------------------------------------------------------------- where it stands

    def _first(self) -> tuple[int, Inherited, Launched]:
        """Launches the stage at which the chain stands: its newest, or if that is over, the next.

        Raises:
            ConfigError: as `Stages.launch`.
            StudyFailedError: the newest one is over without a complete trial.
        """
        store = self._way.begun
        while True:
            row = store.chains.find(self._chain.name)
            newest = None if row is None else row.newest
            ordinal, inherited = 0, Inherited()
            if row is not None and newest is not None:
                ordinal, inherited = newest.ordinal, newest.inherited
                if self._is_over(row, newest) and self._may_begin_after(newest):
                    inherited = self._inherited(ordinal)
                    ordinal += 1
            extend = search.extension if config.extends(self._call.composed) else None
            begun = store.stages.launch(self._chain, ordinal, inherited, extend)
            if isinstance(begun, Launched):
                crash_step("stage-begun")
                return ordinal, inherited, begun

    def _is_over(self, row: ChainRow, newest: StageRow) -> bool:
        """Whether a launch has nothing to add to the newest stage, and another comes after it."""
        if newest.state != "FINISHED" or newest.ordinal + 1 >= len(self._chain.stages):
            return False
        if RETRY in self._call.switches or row.state == "STOPPED" or row.late:
            return False
        old = self._way.begun.reads.spec(newest.study_id)
        new = newest.inherited.of(self._chain.stages[newest.ordinal])
        return continued(new, old).is_same(old)

    def _may_begin_after(self, newest: StageRow) -> bool:
        """Whether somebody has seen how the newest stage ended, where that is to be confirmed."""
        return newest.settled or not self._confirm

    def _next(self, ordinal: int) -> tuple[int, Inherited, Launched] | None:
        """Begins the stage after `ordinal`, or finds that another launch did; None if the chain
        does not go on.
        """
        store = self._way.begun
        inherited = self._inherited(ordinal)
        crash_step("stage-chosen")
        begun = store.stages.go_on(self._chain, ordinal + 1, inherited)
        if isinstance(begun, Launched):
            crash_step("stage-begun")
            return ordinal + 1, inherited, begun
        if begun.why == "stopped":
            self._say(f"chain {self._chain.name} does not go on: {begun.reason}")
            return None
        if begun.why == "late":
            hours = f"budget.hours={self._chain.hours:g}" if self._chain.hours else "its time"
            self._say(
                f"chain {self._chain.name} ends before stage "
                f"{self._chain.stages[ordinal + 1].name}: {hours} is over"
            )
            return None
        row = store.chains.find(self._chain.name)
        newest = None if row is None else row.newest
        if newest is None:
            raise OrchestratorError(f"the chain {self._chain.name} was deleted from the database")
        return newest.ordinal, newest.inherited, self._as_it_is(newest)

    def _as_it_is(self, stage: StageRow) -> Launched:
        """A stage that another launch has begun or continued."""
        reads = self._way.begun.reads
        maximize = self._chain.stages[0].spec.directions[0] == "maximize"
        progress = reads.progress(reads.find(stage.study), maximize=maximize, most=0)
        left = 0 if stage.state == "FINISHED" else progress.total - progress.spent
        return Launched(stage.study_id, False, 0, left, (), stage.reason)

    def _inherited(self, ordinal: int) -> Inherited:
        """What the stage after `ordinal` inherits from its best trial.

        Raises:
            StudyFailedError: it has none.
        """
        store = self._way.begun
        newest = self._stage_row(ordinal)
        spec = store.reads.spec(newest.study_id)
        stage = self._chain.stages[ordinal]
        row = store.reads.find(newest.study)
        best = best_of(store, row, spec)
        if best is None:
            raise StudyFailedError(
                f"chain {self._chain.name} ends at stage {stage.name}: no trial of "
                f"{newest.study} completed, so the next stage has nothing to begin with"
            )
        number, values = best
        after = self._chain.stages[ordinal + 1]
        return inherit(after, spec, newest.inherited, values, number)

    def _stage_row(self, ordinal: int) -> StageRow:
        row = self._way.begun.chains.find(self._chain.name)
        found = next((s for s in row.begun if s.ordinal == ordinal), None) if row else None
        if found is None:
            raise OrchestratorError(
                f"stage {self._chain.stages[ordinal].name} of chain {self._chain.name} was deleted "
                "from the database; the same command goes on where it stands"
            )
        return found

    # ----------------------------------------------------------------------------------- one stage

    def _run(self, ordinal: int, inherited: Inherited, launched: Launched) -> int:
        """Follows the study of a stage to its end; returns the exit code."""
        stage = self._chain.stages[ordinal]
        spec = inherited.of(stage)
        preflight.check_checkpoint_places(self._call, self._way.begun, spec, self._way.workers)
        self._say("\n".join(self._opening(ordinal, stage, inherited)))
        return followed(
            self._call,
            self._way,
            self._stage_row(ordinal).study,
            launched,
            launch_again=partial(self._launch_again, ordinal, inherited),
            startup=config.startup_label(spec),
            give=self._results.append,
        )

    def _launch_again(self, ordinal: int, inherited: Inherited, store: Store) -> Launched:
        begun = store.stages.launch(self._chain, ordinal, inherited, search.extension)
        if isinstance(begun, NotBegun):
            raise OrchestratorError(
                f"the database has lost stages of {self._chain.name} that were there; the same "
                "command goes on where it stands"
            )
        return begun

    def _opening(self, ordinal: int, stage: Stage, inherited: Inherited) -> Iterator[str]:
        if self._shown:
            yield ""
        self._shown = True
        yield f"stage {ordinal + 1} of {len(self._chain.stages)}: {stage.name}"
        if ordinal == 0:
            return
        earlier = self._stage_row(ordinal - 1)
        before = self._way.begun.reads.spec(earlier.study_id)
        lines = inherited.lines(before)
        lines += stage_words.defaults_again(stage, before, earlier.inherited)
        for line in lines:
            yield f"  {line}"

    # ------------------------------------------------------------------------------ between stages

    def _goes_on(self, ordinal: int) -> bool:
        """Whether to begin the next stage, as the user wants to confirm it.

        Without a terminal to ask on, the same command again is the answer. One that is killed
        before it has said how the stage ended, or that is told no, leaves that to the next one.
        """
        after = self._chain.stages[ordinal + 1]
        if not self._confirm:
            return True
        self._say("\n".join(self._findings(ordinal)))
        self._say(f"next is stage {after.name}: {stage_words.intended(after.inherits)}")
        for line in self._would_inherit(ordinal):
            self._say(f"  {line}")
        if self._asks:
            print(f"begin stage {after.name}? [y/n] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                return True
        self._say(stage_words.how_to_go_on(self._call, self._chain.name))
        return False

    def _would_inherit(self, ordinal: int) -> list[str]:
        """The values that the stage after `ordinal` will begin with, and what speaks against
        them.
        """
        reads, earlier = self._way.begun.reads, self._stage_row(ordinal)
        inherited, before = self._inherited(ordinal), reads.spec(earlier.study_id)
        row, maximize = reads.find(earlier.study), before.directions[0] == "maximize"
        progress = reads.progress(row, maximize=maximize, most=MOST_CELLS)
        believed = Beliefs.of(self._way.begun, before, progress)
        after = self._chain.stages[ordinal + 1]
        return [
            *inherited.lines(before),
            *stage_words.likelier(after, inherited, progress.cells, believed.cells),
        ]

    @property
    def _asks(self) -> bool:
        """Whether the user is asked between stages."""
        return self._confirm and sys.stdin.isatty() and not self._call.json

    def _findings(self, ordinal: int) -> Iterator[str]:
        """What the report of a stage says, in sentences."""
        from orchestrator.report.reading import read  # slow to import, and seldom needed

        stage = self._stage_row(ordinal)
        yield f"\nwhat stage {stage.name} found"
        for one in read(self._way.begun, stage.study).statements:
            yield f"- {one.text}"
            if one.advice:
                yield f"  {one.advice}"

    def _tell_end(self, *, finished: bool) -> None:
        name = self._chain.name
        if self._call.json:
            if not self._results:
                return
            row = self._way.begun.chains.find(name)
            told = stage_words.data(row)
            print(screen.as_json({"chain": told, "launched": self._results}))
        elif finished:
            count = len(self._chain.stages)
            best = hints.command(self._call, "best", f"study.name={name}")
            self._say(f"chain {name} is finished, all {count} stages; its best: {best}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr if self._call.json else sys.stdout, flush=True)


def best_of(store: Reading, row: StudyRow, spec: StudySpec) -> tuple[int, dict[str, Any]] | None:
    """The number and the values of the trial that is believed to be the best; None without one."""
    progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=0)
    believed = Beliefs.of(store, spec, progress, estimates=False)
    if not believed.best:
        return None
    return believed.best[0].number, believed.best[0].params


def _show_plan(
    call: Call, chain: Chain, distributions: list[list[tuple[str, str]]], seen: Foreseen
) -> None:
    if call.json:
        data = {**_plan_data(chain, distributions), "stored": seen.data()}
        print(json.dumps(data, indent=2))
        return
    from orchestrator.cli.probes import plan_lines  # imports what a launch has no use for

    hours = f", no trial starts after {chain.hours:g} h" if chain.hours else ""
    print(f"chain {chain.name}: {len(chain.stages)} stages, {chain.trials} trials{hours}")
    for k, (stage, words) in enumerate(zip(chain.stages, distributions, strict=True)):
        print(f"\nstage {k + 1} of {len(chain.stages)}: {stage.name}")
        if k:
            before = chain.stages[k - 1].spec
            print(f"  {stage_words.intended(stage.inherits)}")
            for line in stage_words.defaults_again(stage, before, Inherited()):
                print(f"  {line}")
        spec, remarks = stage.spec, preflight.remarks(stage.spec)
        print(screen.plan(spec, words, remarks, plan_lines(spec), alone=False))
    print("\n".join(["", *seen.lines()]))
    print("dry run: nothing was created")


def _plan_data(chain: Chain, distributions: list[list[tuple[str, str]]]) -> dict[str, Any]:
    return {
        "chain": chain.name,
        "trials": chain.trials,
        "hours": chain.hours,
        "stages": [
            {
                "name": stage.name,
                "inherits": stage.inherits.to_json(),
                **screen.plan_data(stage.spec, words),
                "remarks": preflight.remarks(stage.spec),
            }
            for stage, words in zip(chain.stages, distributions, strict=True)
        ],
    }
