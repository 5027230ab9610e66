"""The command `status`: what runs, where, and how far the study is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator import config
from orchestrator.cli import hints, provenance, screen
from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import unfollowed, unserved
from orchestrator.model import StudySpec, count_label
from orchestrator.store import (
    AttemptRow,
    CodeRow,
    Progress,
    Store,
    StudyRow,
    TrialRow,
    WorkerRow,
    is_braked,
)

_MIN_WIDTH = 120


@dataclass(frozen=True)
class _Snapshot:
    """What `status` read from the database.

    All but the first four fields are about the chosen study.

    `held` has what each worker runs, `earlier` the earlier attempts of running trials by number.
    `mute` counts completed trials if none of them reported anything to the study's pruner.
    `unserved` has, by study, why no worker serves it.
    """

    studies: list[StudyRow]
    workers: list[WorkerRow]
    held: dict[int, str]
    unserved: dict[int, str | None]
    row: StudyRow
    spec: StudySpec
    progress: Progress
    live: list[TrialRow]
    earlier: dict[int, list[AttemptRow]]
    best: list[TrialRow]
    code: list[CodeRow]
    failures: Failures
    mute: int


def run(call: Call) -> int:
    """All studies, the named or newest one with its cells and running trials, and the workers."""
    with call.store() as store:
        studies, workers = store.reads.studies(), store.reads.workers()
        if not studies and call.study_name is None:
            data: dict[str, Any] = {
                "studies": [],
                "workers": [_worker_data(worker, {}) for worker in workers],
            }
            start = hints.command(call, "launch")
            nothing = f"no study yet; start one with: {start} experiment=…"
            print(screen.as_json(data) if call.json else nothing)
            return 0
        snapshot = _read(call, store, studies, workers)
    if call.json:
        print(screen.as_json(_as_data(snapshot)))
    else:
        _show(call, snapshot)
    return 0


def _read(call: Call, store: Store, studies: list[StudyRow], workers: list[WorkerRow]) -> _Snapshot:
    reads = store.reads
    row = reads.find(call.study_name)
    spec = reads.spec(row.study_id)
    active = [study for study in studies if study.active]
    servers = reads.servers([study.study_id for study in active])
    progress = reads.progress(
        row,
        maximize=spec.directions[0] == "maximize",
        most=None if call.json else screen.MOST_CELLS,
    )

    live = reads.trials(row.study_id, live_only=True)
    failures = Failures(store, row)
    failures.read()

    return _Snapshot(
        studies=studies,
        workers=workers,
        held=_held(store, studies),
        unserved={s.study_id: unserved(call, s.name, servers[s.study_id]) for s in active},
        row=row,
        spec=spec,
        progress=progress,
        live=live,
        earlier={
            trial.number: reads.attempts(row.study_id, trial.number)[:-1]
            for trial in live
            if trial.attempts > 1
        },
        best=screen.best_trials(spec, reads.contenders(row.study_id, spec.directions)),
        code=reads.code(row.study_id),
        failures=failures,
        mute=reads.silently_complete(row.study_id) if config.has_pruner(spec) else 0,
    )


def _held(store: Store, studies: list[StudyRow]) -> dict[int, str]:
    """What each worker runs: ``trial 7 of digits``."""
    return {
        trial.worker_id: f"trial {trial.number} of {study.name}"
        for study in studies
        if study.state != "FINISHED"
        for trial in store.reads.trials(study.study_id, live_only=True)
        if trial.worker_id is not None
    }


def _as_data(snapshot: _Snapshot) -> dict[str, Any]:
    """The snapshot for programs: plain data for JSON."""
    spec = snapshot.spec
    return {
        "studies": [
            {
                "name": study.name,
                "state": study.state,
                "reason": study.reason,
                "launched_s": study.launched_s,
                "followed": study.followed,
                "unserved": snapshot.unserved.get(study.study_id),
            }
            for study in snapshot.studies
        ],
        "study": {
            **screen.as_data(spec, snapshot.progress, snapshot.best),
            "failures": snapshot.failures.data,
            "code": provenance.code_data(snapshot.code),
        },
        "running": [
            {
                **screen.trial_data(spec, trial),
                "worker": trial.worker_id,
                "attempts": trial.attempts,
                "earlier": [
                    {"attempt": a.attempt, "ended": a.outcome, "why": a.reason}
                    for a in snapshot.earlier.get(trial.number, ())
                ],
            }
            for trial in snapshot.live
        ],
        "workers": [_worker_data(worker, snapshot.held) for worker in snapshot.workers],
    }


def _show(call: Call, snapshot: _Snapshot) -> None:
    """Prints the snapshot for people."""
    console = Console(highlight=False, width=max(_MIN_WIDTH, Console().width))

    def line(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    for study in snapshot.studies:
        mark = ">" if study.study_id == snapshot.row.study_id else " "
        state = f"{study.state.lower()}{f' ({study.reason})' if study.reason else ''}"
        notes = filter(None, [state, unfollowed(call, study)])
        line(f"{mark} {study.name}: {'; '.join(notes)}")
        # Without any worker, the table of workers says so once, at the end.
        if snapshot.workers and (why := snapshot.unserved.get(study.study_id)):
            line(f"  {why}")
    console.print()

    spec, progress = snapshot.spec, snapshot.progress
    line(f"{spec.name}: {screen.headline(spec, progress)}")
    if mixed := provenance.changes_within(snapshot.code):
        line(mixed)
    console.print(screen.cell_table(spec, progress.cells, n_cells=progress.n_cells))
    for remark in _remarks(call, snapshot):
        line(remark)

    for trial in snapshot.live:
        line(_trial_line(trial))
        for attempt in snapshot.earlier.get(trial.number, ()):
            line(f"  attempt {attempt.attempt} {attempt.outcome}: {attempt.reason}")
    console.print()
    console.print(_worker_table(call, snapshot))


def _remarks(call: Call, snapshot: _Snapshot) -> list[str]:
    """What is wrong, one paragraph each."""
    spec, study = snapshot.spec, snapshot.progress.study
    remarks = [kind.text for kind in snapshot.failures.kinds]
    if is_braked(study.state, study.reason):
        resume = hints.command(call, "resume", f"study.name={spec.name}")
        remarks.append(f"fix what failed, then launch again, or: {resume}")
    if idle := config.never_prunes(spec):
        remarks.append(idle)
    elif snapshot.mute:
        remarks.append(config.nothing_reported(spec, snapshot.mute))
    return remarks


def _trial_line(trial: TrialRow) -> str:
    if trial.worker_id:
        running = f"running for {trial.seconds or 0:.0f} s"
        return f"trial {trial.number} {running}, attempt {trial.attempts}, worker {trial.worker_id}"
    after = f" after {count_label(trial.attempts, 'attempt')}" if trial.attempts else ""
    return f"trial {trial.number} waits for a worker{after}"


def _worker_data(worker: WorkerRow, held: dict[int, str]) -> dict[str, Any]:
    return {
        "worker": worker.worker_id,
        "host": worker.host,
        "pid": worker.pid,
        "device": worker.device,
        "device_key": worker.device_key,
        "slot": worker.slot,
        "doing": held.get(worker.worker_id, worker.doing),
        "lease_overdue_s": worker.silent_s,
    }


def _worker_table(call: Call, snapshot: _Snapshot) -> Table | Text:
    if not snapshot.workers:
        return Text(f"no workers; start one with: {hints.command(call, 'worker')}")
    table = Table(box=None, pad_edge=False)
    for name in ("worker", "host", "pid", "device", "slot", "doing"):
        table.add_column(name)
    for worker in snapshot.workers:
        doing = snapshot.held.get(worker.worker_id, worker.doing)
        if worker.silent_s > 0:
            doing += f" (silent for {worker.silent_s:.0f} s)"
        slot = "" if worker.slot is None else str(worker.slot)
        # The GPUs of one host share a name; the key tells them apart.
        key = f" {worker.device_key[:12]}" if worker.device_key not in (None, "cpu") else ""
        device = f"{worker.device or 'none yet'}{key}"
        cells = (str(worker.worker_id), worker.host, str(worker.pid), device, slot, doing)
        table.add_row(*map(Text, cells))
    return table
