"""The command `status`: what runs, where, and how far the study is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator import config
from orchestrator.cli import hints, probes, provenance, screen, stage_words
from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import read_running, unfollowed, unserved
from orchestrator.cli.named import study_of
from orchestrator.cli.running import Running
from orchestrator.cli.warm_start import Weighed
from orchestrator.model import StudySpec, count_label, span_label, value_label
from orchestrator.store import is_braked

if TYPE_CHECKING:
    from orchestrator.store import (
        AttemptRow,
        ChainRow,
        CodeRow,
        Held,
        ProbeRow,
        Progress,
        Reading,
        RevisionRow,
        StudyLine,
        StudyRow,
        TrialRow,
        WorkerRow,
    )

_MIN_WIDTH = 120
_MOST_STUDIES = 20


@dataclass(frozen=True)
class _Snapshot:
    """What `status` read from the database.

    All but the first five fields are about the chosen study.

    `older` studies are not listed. `held` has what each worker holds, `earlier` the earlier
    attempts of live trials by number. `best` is read for programs only. `mute` says why the
    study's pruner could judge none of the trials so far. `unserved` has, by study, why no worker
    serves it. `revisions` is empty for a study that was never extended. Of a stage, `chain` is its
    chain, and `bests` has the best trial of each stage in words.
    """

    studies: list[StudyLine]
    older: int
    workers: list[WorkerRow]
    held: dict[int, Held]
    unserved: dict[int, str | None]
    row: StudyRow
    spec: StudySpec
    progress: Progress
    live: list[TrialRow]
    running: Running
    earlier: dict[int, list[AttemptRow]]
    best: list[TrialRow]
    code: list[CodeRow]
    revisions: list[RevisionRow]
    failures: Failures
    mute: str | None
    probes: list[ProbeRow]
    chain: ChainRow | None
    bests: dict[int, str]
    weighed: Weighed


def run(call: Call) -> int:
    """The newest studies, the named or newest one with its cells and running trials, the
    workers.
    """
    most = _most_studies(call)
    with call.reading() as store:
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
        snapshot = _read(call, store, studies, workers, most)
    if call.json:
        print(screen.as_json(_as_data(snapshot)))
    else:
        _show(call, snapshot)
    return 0


def _most_studies(call: Call) -> int | None:
    """How many studies to list; None: all.

    Raises:
        ConfigError: the word `n` is neither a whole number nor ``all``.
    """
    if call.words.get("n") == "all":
        return None
    number = call.number("n", or_word="all")
    return _MOST_STUDIES if number is None else number


def _listed(
    studies: list[StudyRow], chosen: StudyRow, name: str | None, most: int | None
) -> list[StudyRow]:
    """The studies to list, the newest first: the named one alone; else the newest ones, and older
    ones that are still active.
    """
    if name is not None:
        return [chosen]
    newest = sorted(studies, key=lambda s: (s.created_at, s.study_id), reverse=True)
    return newest[:most] + ([] if most is None else [s for s in newest[most:] if s.active])


def _read(
    call: Call, store: Reading, studies: list[StudyRow], workers: list[WorkerRow], most: int | None
) -> _Snapshot:
    reads = store.reads
    row = study_of(call, store)
    spec = reads.spec(row.study_id)
    chain = store.chains.of(row.study_id)
    listed = _listed(studies, row, call.study_name, most)
    active = [study for study in listed if study.active]
    servers = reads.servers([study.study_id for study in active])
    progress = reads.progress(
        row,
        maximize=spec.directions[0] == "maximize",
        most=None if call.json else screen.MOST_CELLS,
    )

    observed = ""
    if progress.best is not None:
        where = f"trial {progress.best_trial}, {spec.metrics[0]}={progress.best:.6g}"
        observed = f"best observed {where}"
    live = reads.trials(row.study_id, live_only=True)
    failures = Failures(store, row)
    failures.read()

    return _Snapshot(
        studies=store.watch.lines(listed, {row.study_id: progress}),
        older=0 if call.study_name is not None else len(studies) - len(listed),
        workers=workers,
        held=store.watch.held(),
        unserved={s.study_id: unserved(call, s.name, servers[s.study_id]) for s in active},
        row=row,
        spec=spec,
        progress=progress,
        live=live,
        running=read_running(store, row.study_id),
        earlier={
            trial.number: reads.attempts(row.study_id, trial.number)[:-1]
            for trial in live
            if trial.attempts > 1
        },
        best=screen.best_trials(spec, reads.contenders(row.study_id, spec.directions))
        if call.json
        else [],
        code=reads.code(row.study_id),
        revisions=reads.revisions(row.study_id) if spec.revision > 1 else [],
        failures=failures,
        mute=config.nothing_to_judge(spec, reads.reported(row.study_id))
        if config.has_pruner(spec)
        else None,
        probes=store.measured.of(row.study_id) if spec.probes else [],
        chain=chain,
        bests={} if chain is None else stage_words.bests(store, chain, observed),
        weighed=Weighed.of(store, row.study_id, spec),
    )


def _as_data(snapshot: _Snapshot) -> dict[str, Any]:
    """The snapshot for programs: plain data for JSON."""
    spec = snapshot.spec
    return {
        "studies": [
            {
                "name": line.row.name,
                "state": line.row.state,
                "reason": line.row.reason,
                "launched_s": line.row.launched_s,
                "followed": line.row.followed,
                "unserved": snapshot.unserved.get(line.row.study_id),
                "trials": {"total": line.total, "spent": line.spent, "running": line.running},
                "best": line.best,
                "best_trial": line.best_trial,
                "idle_s": line.idle_s,
            }
            for line in snapshot.studies
        ],
        "older_studies": snapshot.older,
        "study": {
            **screen.as_data(spec, snapshot.progress, snapshot.best),
            "failures": snapshot.failures.data,
            "code": provenance.code_data(snapshot.code),
            "revision": spec.revision,
            "revisions": [
                {
                    "revision": one.revision,
                    "made": one.made_at.astimezone(UTC).isoformat(),
                    "changes": list(one.changes),
                }
                for one in snapshot.revisions
            ],
            "probes": probes.data(snapshot.row, snapshot.probes),
            "warm_start": snapshot.weighed.data(),
        },
        "chain": stage_words.data(snapshot.chain),
        "running": [
            {
                **screen.trial_data(spec, trial),
                "worker": trial.worker_id,
                "attempts": trial.attempts,
                "earlier": [
                    {"attempt": a.attempt, "ended": a.outcome, "why": a.reason}
                    for a in snapshot.earlier.get(trial.number, ())
                ],
                **snapshot.running.data(spec, trial.number),
            }
            for trial in snapshot.live
        ],
        "workers": [_worker_data(worker, snapshot.held) for worker in snapshot.workers],
    }


def _show(call: Call, snapshot: _Snapshot) -> None:
    """Prints the snapshot for people."""
    terminal = Console()
    console = Console(highlight=False, width=max(_MIN_WIDTH, terminal.width))
    with console.capture() as captured:
        _print(call, snapshot, console)
    text = captured.get()
    print(text if terminal.is_terminal else screen.unpadded(text), end="")


def _print(call: Call, snapshot: _Snapshot, console: Console) -> None:
    def line(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    console.print(_study_table(snapshot))
    if snapshot.older:
        more = "study" if snapshot.older == 1 else "studies"
        line(f"… {snapshot.older} older {more}: {hints.command(call, 'status', 'n=all')}")
    for study in snapshot.studies:
        if note := unfollowed(call, study.row):
            line(f"{study.row.name}: {note}")
        # Without any worker, the table of workers says so once, at the end.
        if snapshot.workers and (why := snapshot.unserved.get(study.row.study_id)):
            line(why)
    if snapshot.chain is not None:
        console.print()
        line(stage_words.headline(snapshot.chain))
        for text in stage_words.table(snapshot.chain, snapshot.bests):
            line(text)
    console.print()

    spec, progress = snapshot.spec, snapshot.progress
    line(f"{spec.name}: {screen.headline(spec, progress)}")
    if snapshot.revisions:
        last = snapshot.revisions[-1]
        made = last.made_at.astimezone()
        line(f"revision {last.revision} since {made:%Y-%m-%d %H:%M}: {'; '.join(last.changes)}")
    if mixed := provenance.changes_within(snapshot.code):
        line(mixed)
    console.print(screen.cell_table(spec, progress.cells, total=progress))
    for source in snapshot.weighed.lines():
        line(source)
    for remark in _remarks(call, snapshot):
        line(remark)
    if spec.probes:
        console.print()
        line(probes.summary(spec, snapshot.probes))
        if snapshot.probes:
            console.print(probes.table(spec, snapshot.probes))

    if snapshot.running.trials:
        console.print()
        console.print(snapshot.running.table(spec))
    for trial in snapshot.live:
        if trial.worker_id is None:
            line(_waiting_line(trial))
        for attempt in snapshot.earlier.get(trial.number, ()):
            ended = f"attempt {attempt.attempt} {attempt.outcome}: {attempt.reason}"
            line(f"trial {trial.number}, {ended}")
    console.print()
    console.print(_worker_table(call, snapshot))


def _study_table(snapshot: _Snapshot) -> Table:
    """One row per study; ``>`` marks the one that is shown below."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "study", "trials", "running", "best", "state"):
        right = name in ("trials", "running", "best")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "study")
    for line in snapshot.studies:
        row = line.row
        state = f"{row.state.lower()}{f' ({row.reason})' if row.reason else ''}"
        table.add_row(
            ">" if row.study_id == snapshot.row.study_id else "",
            Text(value_label(row.name)),
            f"{line.spent}/{line.total}",
            str(line.running),
            "" if line.best is None else f"{line.best:.6g}",
            Text(f"{state}, {_age(line)}"),
        )
    return table


def _age(line: StudyLine) -> str:
    """``last trial 3 h ago``: when something last happened in the study."""
    what = "last activity" if line.spent or line.running else "launched"
    return f"{what} {span_label(line.idle_s)} ago"


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
        remarks.append(snapshot.mute)
    return remarks


def _waiting_line(trial: TrialRow) -> str:
    after = f" after {count_label(trial.attempts, 'attempt')}" if trial.attempts else ""
    return f"trial {trial.number} waits for a worker{after}"


def _doing(worker: WorkerRow, held: dict[int, Held]) -> str:
    """What the worker does: by the rows of the trials, which are current; else by what it said
    last, and how long ago.
    """
    holds = held.get(worker.worker_id)
    if holds is None:
        # What it said it ran has ended since.
        if worker.doing.startswith("trial "):
            return "between two trials"
        return f"{worker.doing} ({span_label(worker.doing_s)} ago)"
    if holds.number is None:
        return f"choosing the parameters of a trial of {holds.study}"
    prepared = "preparing " if holds.state == "PREPARED" else ""
    return f"{prepared}trial {holds.number} of {holds.study}"


def _worker_data(worker: WorkerRow, held: dict[int, Held]) -> dict[str, Any]:
    return {
        "worker": worker.worker_id,
        "host": worker.host,
        "pid": worker.pid,
        "device": worker.device,
        "device_key": worker.device_key,
        "slot": worker.slot,
        "doing": _doing(worker, held),
        "lease_overdue_s": worker.silent_s,
    }


def _worker_table(call: Call, snapshot: _Snapshot) -> Table | Text:
    if not snapshot.workers:
        return Text(f"no workers; start one with: {hints.command(call, 'worker')}")
    table = Table(box=None, pad_edge=False)
    for name in ("worker", "host", "pid", "device", "slot", "doing"):
        table.add_column(name)
    for worker in snapshot.workers:
        doing = _doing(worker, snapshot.held)
        if worker.silent_s > 0:
            doing += f" (silent for {worker.silent_s:.0f} s)"
        slot = "" if worker.slot is None else str(worker.slot)
        # The GPUs of one host share a name; the key tells them apart.
        key = f" {worker.device_key[:12]}" if worker.device_key not in (None, "cpu") else ""
        device = f"{worker.device or 'none yet'}{key}"
        cells = (str(worker.worker_id), worker.host, str(worker.pid), device, slot, doing)
        table.add_row(*map(Text, cells))
    return table
