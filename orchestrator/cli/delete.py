"""The command `delete`: a study with its trials, run directories, checkpoints and artifacts."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.cli.controls import required_name, who
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.model import count_label
from orchestrator.runner.files.removal import Removal
from orchestrator.runner.protocol import rundir
from orchestrator.store import DELETING, Alive, Leavings
from orchestrator.worker.maintenance import Maintenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.store import ChainRow, RunsPlace, Store, StudyRow

_MB = 1e6
_MOST_PROBLEMS = 5
_CANCELLED = 1


def run(call: Call) -> int:
    """Deletes the study's files on this host, then all its rows, ours and Optuna's.

    In this order, because the rows say where the files are: whatever ends this half-way, the same
    command completes it. The study counts as finished as soon as it begins. Of a chain, all stages
    go, the newest first.
    """
    name = required_name(call)
    asks = "--yes" not in call.switches
    if asks and not sys.stdin.isatty():
        raise ConfigError(
            "delete asks for the study's name on a terminal, but standard input is not one; add "
            f"--yes to delete without being asked: orchestrator delete study.name={name} --yes"
        )
    with call.store() as store:
        chain = store.chains.find(name)
        rows = [store.reads.find(name)] if chain is None else _stages(store, chain)
        if chain is None:
            _refuse_stage(call, store, rows[0])
        found = [(row, _examined(call, store, row)) for row in rows]
        if asks and not _confirmed(call, name, found):
            print("nothing was deleted", file=sys.stderr)
            return _CANCELLED
        if chain is not None:
            store.stages.hold(name, "STOPPED", f"{DELETING}{who()}")
        for row in rows:
            _delete(call, store, row)
        if chain is not None:
            store.stages.delete(name)
            _say_chain(call, chain)
    return 0


def _stages(store: Store, chain: ChainRow) -> list[StudyRow]:
    """The studies of a chain's stages, the newest first: what is left is a chain at any time."""
    return [store.reads.find(stage.study) for stage in reversed(chain.begun)]


def _refuse_stage(call: Call, store: Store, row: StudyRow) -> None:
    """Raises ConfigError for a stage that others have inherited from."""
    chain = store.chains.of(row.study_id)
    if chain is None or chain.newest is None or chain.newest.study_id == row.study_id:
        return
    whole = hints.command(call, "delete", f"study.name={chain.name}")
    raise ConfigError(
        f"study.name={row.name}: is a stage of chain {chain.name} that later stages inherited "
        f"from; delete the newest first ({chain.newest.study}), or the whole chain: {whole}"
    )


def _say_chain(call: Call, chain: ChainRow) -> None:
    text = f"deleted chain {chain.name}: {count_label(len(chain.begun), 'stage')}"
    print(text, file=sys.stderr if call.json else sys.stdout)


def _examined(call: Call, store: Store, row: StudyRow) -> Leavings:
    """What would be deleted of a study.

    Raises:
        OrchestratorError: it is live.
    """
    found = store.deletion.examine(row.study_id)
    if isinstance(found, Alive):
        # A worker of this host that died counts as alive until its lease ends.
        Maintenance(store, 0.0).sweep()
        found = store.deletion.examine(row.study_id)
    return _unless_alive(call, row, found)


def _delete(call: Call, store: Store, row: StudyRow) -> None:
    leavings = _unless_alive(call, row, store.deletion.begin(row.study_id, who()))
    elsewhere = [place for place in leavings.places if not _is_here(row, leavings, place)]
    removal = _remove_files(call, row, leavings)
    if removal.problems:
        raise OrchestratorError(_incomplete(row, removal))
    store.deletion.finish(row.study_id)
    _report(call, row, leavings, removal, elsewhere)


def _unless_alive(call: Call, row: StudyRow, found: Leavings | Alive) -> Leavings:
    if isinstance(found, Leavings):
        return found
    reasons = []
    if found.held:
        work = "workers hold" if found.held > 1 else "a worker holds"
        reasons.append(f"{work} {count_label(found.held, 'trial')} of it")
    if found.followed:
        reasons.append("a launch follows it")
    stop = hints.command(call, "stop", "--now", f"study.name={row.name}")
    raise OrchestratorError(
        f"study {row.name} is live and was not deleted: {' and '.join(reasons)}; end it first "
        f"with: {stop}"
    )


def _confirmed(call: Call, name: str, found: Sequence[tuple[StudyRow, Leavings]]) -> bool:
    """Whether the user typed the name of the study, or of the chain of these studies."""
    lines = []
    for row, leavings in found:
        state = f"{row.state.lower()}{f' ({row.reason})' if row.reason else ''}"
        lines.append(f"study {row.name}, {state}: {count_label(leavings.trials, 'trial')}")
        lines += [f"  run directories {folder}" for folder in _run_folders(row, leavings)]
        if call.host.paths.checkpoints is not None:
            lines.append(f"  its checkpoints in {call.host.paths.checkpoints}")
        if leavings.artifacts:
            artifacts = count_label(len(leavings.artifacts), "artifact")
            lines.append(f"  {artifacts} in {_artifact_place(call)}")
    print("\n".join(lines), file=sys.stderr)
    what = "study" if len(found) == 1 and found[0][0].name == name else "chain"
    print(f"type the {what}'s name to delete all of this: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n") == name


# ---------------------------------------------------------------------------------------- files


def _folders(row: StudyRow, leavings: Leavings) -> list[str]:
    """The study's folder under each name that it has had."""
    return [row.folder_of(name) for name in leavings.names]


def _run_folders(row: StudyRow, leavings: Leavings) -> list[Path]:
    """The folders of run directories that there are here.

    They may be those of another host, on a disk that it shares: their names are the study's alone.
    """
    roots = dict.fromkeys(place.runs_dir for place in leavings.places)
    folders = [
        rundir.study_dir(Path(root), folder) for root in roots for folder in _folders(row, leavings)
    ]
    return [folder for folder in folders if folder.exists()]


def _is_here(row: StudyRow, leavings: Leavings, place: RunsPlace) -> bool:
    """Whether run directories of that host are on a disk of this one."""
    if place.host == socket.gethostname():
        return True
    return any(
        rundir.attempt_dir(
            Path(place.runs_dir), folder, sample.number, sample.attempt, sample.token
        ).exists()
        for folder in _folders(row, leavings)
        for sample in place.samples
    )


def _remove_files(call: Call, row: StudyRow, leavings: Leavings) -> Removal:
    removal = Removal()
    for folder in _run_folders(row, leavings):
        removal.folder(folder)
    if (checkpoints := call.host.paths.checkpoints) is not None:
        for name in _folders(row, leavings):
            removal.checkpoints(checkpoints, name)
    removal.artifacts_of(_artifact_place(call), leavings.artifacts)
    return removal


def _artifact_place(call: Call) -> str:
    paths = call.host.paths
    if paths.artifacts is None:
        return str(paths.data / "artifacts")
    return (
        paths.artifacts
        if "://" in paths.artifacts
        else str(Path(paths.artifacts).expanduser().absolute())
    )


# ------------------------------------------------------------------------------------- what is said


def _incomplete(row: StudyRow, removal: Removal) -> str:
    problems = removal.problems[:_MOST_PROBLEMS]
    more = len(removal.problems) - len(problems)
    if more:
        problems.append(f"and {more} more")
    return (
        f"study {row.name} is still in the database, because some of its files could not be "
        f"deleted: {'; '.join(problems)}. Mend this and run the same command again"
    )


def _report(
    call: Call,
    row: StudyRow,
    leavings: Leavings,
    removal: Removal,
    elsewhere: Sequence[RunsPlace],
) -> None:
    missing = len(leavings.artifacts) - removal.artifacts
    if call.json:
        data = {
            "study": row.name,
            "trials": leavings.trials,
            "bytes": removal.bytes,
            "folders": removal.places,
            "artifacts": removal.artifacts,
            "artifacts_not_here": missing,
            "not_here": [
                {"host": place.host, "runs_dir": place.runs_dir, "attempts": place.attempts}
                for place in elsewhere
            ],
        }
        print(json.dumps(data, indent=2))
        return
    files = [count_label(len(removal.places), "folder")]
    if removal.artifacts:
        files.append(count_label(removal.artifacts, "artifact"))
    print(
        f"deleted study {row.name}: {count_label(leavings.trials, 'trial')}, "
        f"{' and '.join(files)} ({removal.bytes / _MB:.1f} MB)"
    )
    for folder in removal.places:
        print(f"  {folder}")
    for place in elsewhere:
        folders = " and ".join(
            str(rundir.study_dir(Path(place.runs_dir), folder))
            for folder in _folders(row, leavings)
        )
        print(
            f"not reached from here: {folders} on host {place.host} "
            f"({count_label(place.attempts, 'attempt')}); delete it there"
        )
    if missing:
        print(
            f"{count_label(missing, 'artifact')} not found in {_artifact_place(call)}; other hosts "
            "may keep them elsewhere (paths.artifacts)"
        )
