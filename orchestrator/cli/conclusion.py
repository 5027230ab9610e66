"""The end of a launch: how the study stands, and what to do next."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.cli import hints, probes, provenance, screen
from orchestrator.cli.beliefs import Beliefs
from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.errors import OrchestratorError, StoreUnavailableError, StudyFailedError
from orchestrator.model import MOST_CELLS, StudySpec, count_label
from orchestrator.store import is_braked

if TYPE_CHECKING:
    from orchestrator.store import CodeRow, ProbeRow, Progress, Reading, StudyRow

T = TypeVar("T")
_RETRY_S = 0.5


@dataclass(frozen=True)
class _Standing:
    """What the database has of the study at the end of the launch; another one may have extended it
    meanwhile.
    """

    spec: StudySpec
    progress: Progress
    beliefs: Beliefs
    code: list[CodeRow]
    probes: list[ProbeRow]


def conclude(
    call: Call,
    store: Reading,
    row: StudyRow,
    spec: StudySpec,
    failures: Failures,
    *,
    revive: Callable[[], None],
    interrupted: bool,
    give: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Prints how the study stands: failures, best trial, best of every cell, and how to go
    on from there.

    Args:
        revive: called where the database does not answer, see `Store.revive`.
        give: takes the results for programs in place of standard output.

    Raises:
        StudyFailedError: the study paused itself, or no trial completed.
        OrchestratorError: the study is not finished although nobody interrupted.
    """
    try:
        standing = _insist(
            lambda: _read(call, store, row, failures), None if interrupted else revive
        )
    except StoreUnavailableError as error:
        print(f"{error}; the study stays", file=sys.stderr)
        return
    progress = standing.progress
    _show(call, standing, failures, give)

    if interrupted:
        if progress.study.state == "ACTIVE":
            stays = hints.staying(call, spec.name, progress.total - progress.spent)
            print(stays, file=sys.stderr if call.json else sys.stdout)
        return
    if is_braked(progress.study.state, progress.study.reason):
        named = f"study.name={spec.name}"
        resume = hints.command(call, "resume", named)
        retry = hints.command(call, "retry", named, "trial=failed")
        raise StudyFailedError(
            f"study {spec.name} is {progress.study.reason}. Fix the cause and launch again"
            f" (or: {resume}); {retry} runs the failed trials again, with the same parameters"
        )
    if progress.study.state != "FINISHED":
        left = count_label(progress.total - progress.spent, "trial")
        raise OrchestratorError(
            f"study {spec.name} is not finished, {left} left to run: the workers of this launch "
            "ended by themselves (worker.max_trials, worker.idle_timeout_s); the same command "
            "continues it"
        )
    if not standing.beliefs.best:
        closed = progress.study.reason == "every cell is closed"
        how = f"; {hints.how_to_retry(call, spec.name)}" if closed else ""
        why = "".join(f"; {kind.line}" for kind in failures.kinds[:1]) or _only_pruned(progress)
        raise StudyFailedError(
            f"no trial of study {spec.name} completed ({progress.study.reason}){why}{how}"
        )


def _show(
    call: Call,
    standing: _Standing,
    failures: Failures,
    give: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Prints the results, as JSON or for people."""
    spec, progress, believed = standing.spec, standing.progress, standing.beliefs
    if call.json:
        data = {
            **screen.as_data(spec, progress, believed.best, believed.cells),
            **believed.data(spec),
            "failures": failures.data,
            "code": provenance.code_data(standing.code),
        }
        if spec.probes:
            data["probes"] = probes.data(progress.study, standing.probes)
        if give is not None:
            give(data)
        else:
            print(screen.as_json(data))
        return

    for kind in failures.kinds:
        if len(kind.numbers) > kind.printed:
            print(kind.line)
    named = f"study.name={spec.name}"
    how = f" ({hints.command(call, 'best', named, 'observed=true')})"
    notes = believed.lines(spec, how=how)
    print(screen.results(spec, progress, believed.best, believed.cells, notes))
    if spec.probes:
        for line in probes.failures(standing.probes):
            print(line)
        how = hints.command(call, "probe", named)
        print(f"{probes.summary(spec, standing.probes)}; what they found: {how}")
    if mixed := provenance.changes_within(standing.code):
        print(mixed)
    paths = [o for o in call.composed.overrides if o.startswith("paths.")]
    where = call.host.dashboard.url or hints.command(call, "dashboard", *paths)
    print(f"what it found, as a page: {hints.report(call, spec.name)}")
    print(f"browse it: {where}")


def _read(call: Call, store: Reading, row: StudyRow, failures: Failures) -> _Standing:
    spec = store.reads.spec(row.study_id)
    most = None if call.json else MOST_CELLS
    maximize = spec.directions[0] == "maximize"
    progress = store.reads.progress(row, maximize=maximize, most=most)
    failures.read()
    believed = Beliefs.of(store, spec, progress)
    measured = store.measured.of(row.study_id) if spec.probes else []
    return _Standing(spec, progress, believed, store.reads.code(row.study_id), measured)


def _insist(read: Callable[[], T], revive: Callable[[], None] | None) -> T:
    """What `read` returns, retried until the database answers: it may be down as the study ends.

    Raises:
        StoreUnavailableError: it does not answer, and without `revive` there is one try only.
    """
    reported = False
    while True:
        try:
            return read()
        except StoreUnavailableError as error:
            if revive is None:
                raise
            if not reported:
                print(f"{error}; trying again", file=sys.stderr)
                reported = True
            revive()
        time.sleep(_RETRY_S)


def _only_pruned(progress: Progress) -> str:
    pruned = sum(cell.pruned for cell in progress.cells)
    return f"; {screen.pruned_themselves(pruned)}" if pruned else ""
