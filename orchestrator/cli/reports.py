"""The commands that read: status, best, logs."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator import config
from orchestrator.cli import estimates, hints, provenance, screen
from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import unfollowed, unserved
from orchestrator.config import rerun_words
from orchestrator.errors import ConfigError, OrchestratorError, StudyFailedError
from orchestrator.model import StudySpec, count_label, value_label
from orchestrator.overlay import overlay
from orchestrator.runner.child import resolvers
from orchestrator.runner.protocol import rundir
from orchestrator.store import Progress, Store, StudyRow, TrialRow, WorkerRow, is_braked

_STDOUT = "-"
_COUPLING = re.compile(r"\b(linear|sqrt)_scaling:")


def status(call: Call) -> int:
    """All studies, then one of them (the named or newest) with its cells and running trials, then
    workers and devices.
    """
    with call.store() as store:
        rows = store.reads.studies()
        workers = store.reads.workers()
        if not rows and call.study_name is None:
            data: dict[str, Any] = {
                "studies": [],
                "workers": [_worker_data(w, {}) for w in workers],
            }
            start = hints.command(call, "launch")
            print(
                screen.as_json(data)
                if call.json
                else f"no study yet; start one with: {start} experiment=…"
            )
            return 0
        row = store.reads.find(call.study_name)
        spec = store.reads.spec(row.study_id)
        most = None if call.json else screen.MOST_CELLS
        progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=most)
        live = store.reads.trials(row.study_id, live_only=True)
        held = _held(store, rows)
        servers = store.reads.servers([r.study_id for r in rows if r.active])
        best = screen.best_trials(spec, store.reads.contenders(row.study_id, spec.directions))
        code = store.reads.code(row.study_id)
        failures = Failures(store, row)
        failures.read()
        mute = store.reads.silently_complete(row.study_id) if config.has_pruner(spec) else 0
        earlier = {
            t.number: store.reads.attempts(row.study_id, t.number)[:-1]
            for t in live
            if t.attempts > 1
        }
    waits = {r.study_id: unserved(call, r.name, servers[r.study_id]) for r in rows if r.active}
    if call.json:
        data = {
            "studies": [
                {
                    "name": r.name,
                    "state": r.state,
                    "reason": r.reason,
                    "launched_s": r.launched_s,
                    "followed": r.followed,
                    "unserved": waits.get(r.study_id),
                }
                for r in rows
            ],
            "study": {
                **screen.as_data(spec, progress, best),
                "failures": failures.data,
                "code": provenance.code_data(code),
            },
            "running": [
                {
                    **screen.trial_data(spec, t),
                    "worker": t.worker_id,
                    "attempts": t.attempts,
                    "earlier": [
                        {"attempt": a.attempt, "ended": a.outcome, "why": a.reason}
                        for a in earlier.get(t.number, ())
                    ],
                }
                for t in live
            ],
            "workers": [_worker_data(w, held) for w in workers],
        }
        print(screen.as_json(data))
        return 0
    console = Console(highlight=False, width=max(120, Console().width))
    for r in rows:
        mark = ">" if r.study_id == row.study_id else " "
        told = [f"{r.state.lower()}{f' ({r.reason})' if r.reason else ''}", unfollowed(call, r)]
        console.print(Text(f"{mark} {r.name}: {'; '.join(filter(None, told))}"), soft_wrap=True)
        # that there is no worker at all is said below, once
        if workers and (why := waits.get(r.study_id)):
            console.print(Text(f"  {why}"), soft_wrap=True)
    console.print()
    console.print(Text(f"{spec.name}: {screen.headline(spec, progress)}"), soft_wrap=True)
    if mixed := provenance.changes_within(code):
        console.print(Text(mixed), soft_wrap=True)
    console.print(screen.cell_table(spec, progress.cells, n_cells=progress.n_cells))
    for remark in _remarks(call, spec, progress, failures, mute):
        console.print(Text(remark), soft_wrap=True)
    for t in live:
        runs = f"runs for {t.seconds or 0:.0f} s, attempt {t.attempts}, worker {t.worker_id}"
        after = f" after {count_label(t.attempts, 'attempt')}" if t.attempts else ""
        console.print(
            Text(f"trial {t.number} {runs if t.worker_id else f'waits for a worker{after}'}"),
            soft_wrap=True,
        )
        for a in earlier.get(t.number, ()):
            console.print(Text(f"  attempt {a.attempt} {a.outcome}: {a.reason}"), soft_wrap=True)
    console.print()
    console.print(_worker_table(workers, held, hints.command(call, "worker")))
    return 0


def _remarks(
    call: Call, spec: StudySpec, progress: Progress, failures: Failures, mute: int
) -> list[str]:
    """What is wrong, a paragraph each; `mute`: so many trials completed, and none has reported
    anything to the pruner.
    """
    said = [kind.text for kind in failures.kinds]
    if is_braked(progress.study.state, progress.study.reason):
        resume = hints.command(call, "resume", f"study.name={spec.name}")
        said.append(f"mend what failed, then launch again, or: {resume}")
    idle = config.never_prunes(spec)
    return said + ([idle] if idle else [config.nothing_reported(spec, mute)] if mute else [])


def _held(store: Store, rows: list[StudyRow]) -> dict[int, str]:
    """What each worker runs: ``trial 7 of digits``."""
    return {
        t.worker_id: f"trial {t.number} of {r.name}"
        for r in rows
        if r.state != "FINISHED"
        for t in store.reads.trials(r.study_id, live_only=True)
        if t.worker_id is not None
    }


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


def _worker_table(workers: list[WorkerRow], held: dict[int, str], start: str) -> Table | Text:
    if not workers:
        return Text(f"no workers; start one with: {start}")
    table = Table(box=None, pad_edge=False)
    for name in ("worker", "host", "pid", "device", "slot", "doing"):
        table.add_column(name)
    for w in workers:
        doing = held.get(w.worker_id, w.doing) + (
            f" (silent for {w.silent_s:.0f} s)" if w.silent_s > 0 else ""
        )
        slot = "" if w.slot is None else str(w.slot)
        # one host's GPUs have one name
        gpu = f" {w.device_key[:12]}" if w.device_key not in (None, "cpu") else ""
        table.add_row(
            *map(
                Text,
                (
                    str(w.worker_id),
                    w.host,
                    str(w.pid),
                    f"{w.device or 'none yet'}{gpu}",
                    slot,
                    doing,
                ),
            )
        )
    return table


def best(call: Call) -> int:
    """The best trial (or `trial=N`) as YAML and as overrides; `out=` writes the params to train
    with, `out=-` prints them.
    """
    wanted = call.number("trial")
    if call.words.get("out") == "":
        raise ConfigError("out=: needs a file name, such as out=best.yaml")
    if call.words.get("out") == _STDOUT and call.json:
        raise ConfigError(
            "out=- prints the params to train with and nothing else; leave out --json"
        )
    groups = call.composed.groups
    with call.store() as store:
        row = store.reads.find(call.study_name)
        spec = store.reads.spec(row.study_id)
        if wanted is None:
            chosen = screen.best_trials(spec, store.reads.contenders(row.study_id, spec.directions))
        else:
            chosen = store.reads.trials(row.study_id, number=wanted)
        most = None if call.json else estimates.MOST_CELLS
        progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=most)
        believed = estimates.of_cells(store, progress)
        origins = provenance.of_trials(store, row, chosen)
        code = store.reads.code(row.study_id)
    if not chosen and wanted is not None:
        raise ConfigError(
            f"trial={wanted}: study {row.name} has no trial of that number that this program ran"
        )
    if not chosen:
        raise StudyFailedError(f"study {row.name} has no complete trial yet")
    if "out" in call.words:
        _write_config(call.words["out"], spec, chosen)
    if call.words.get("out") == _STDOUT:
        return 0
    if call.json:
        data = {
            **screen.as_data(spec, progress, chosen, believed),
            "code": provenance.code_data(code),
        }
        for entry, trial, origin in zip(data["best"], chosen, origins, strict=True):
            entry |= {"overrides": overrides(spec, trial, groups), **origin}
        print(screen.as_json(data))
        return 0
    for trial, origin in zip(chosen, origins, strict=True):
        print(
            yaml.safe_dump(
                {"study": spec.name, **screen.trial_data(spec, trial)},
                sort_keys=False,
                allow_unicode=True,
            ),
            end="",
        )
        print(provenance.comment(origin))
        print(_overrides_comment(overrides(spec, trial, groups)))
    if mixed := provenance.changes_within(code):
        print(f"# {value_label(mixed)}")
    if spec.grid and any(believed):
        print(screen.cell_comments(spec, progress.cells, believed))
    return 0


def overrides(spec: StudySpec, trial: TrialRow, groups: Collection[str]) -> list[str] | None:
    """The words that make a launch of the same study take this trial's values, quoted for a shell;
    None where no word can.
    """
    try:
        declared = {name: value for name, value in trial.params.items() if spec.declares(name)}
        asked = {name: value for name, value in trial.params.items() if name not in declared}
        return [
            shlex.quote(word)
            for word in rerun_words(declared, asked, spec.params, groups, spec.grid)
        ]
    except ConfigError:
        return None


def _overrides_comment(overrides: list[str] | None) -> str:
    if overrides is None:
        return "# no override can say one of these values; out=FILE writes the config to train with"
    line = " ".join(overrides)
    if line != value_label(line):  # a line break would end the comment
        return "# as overrides: one of them holds a line break or the like; --json shows them"
    return f"# as overrides\n# {line}"


def _write_config(path: str, spec: StudySpec, chosen: list[TrialRow]) -> None:
    if len(chosen) != 1:
        numbers = ", ".join(str(t.number) for t in chosen)
        raise ConfigError(
            f"out={path}: several trials are best (trials {numbers}); choose one with trial=N"
        )
    text = OmegaConf.to_yaml(trained_with(spec, chosen[0]))
    if path == _STDOUT:
        print(text, end="")
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        elsewhere = "give a file where you can write, or out=- to print the params"
        raise OrchestratorError(
            f"out={path}: {error.strerror} ({Path(path).absolute().parent}); {elsewhere}"
        ) from error
    print(f"wrote the params of trial {chosen[0].number} to {path}", file=sys.stderr)


def trained_with(spec: StudySpec, trial: TrialRow) -> DictConfig:
    """The params with the trial's values in place, for plain OmegaConf: our own resolvers are
    answered, if they can be.

    Other interpolations stay as they are, and nothing is read from this process's environment: no
    secret may get in.
    """
    resolvers.register()
    config = OmegaConf.create(dict(spec.params))
    contents = spec.contents(trial.params)
    declared = {
        name: contents.get(name, value)
        for name, value in trial.params.items()
        if spec.declares(name)
    }
    overlay(config, {name: value for name, value in declared.items() if name not in spec.options})
    for name, value in trial.params.items():
        if name not in declared:
            _put_asked(config, name, value)
    with _no_environment():
        raw: dict[str, Any] = _uncoupled(config, OmegaConf.to_container(config, resolve=False))
    return OmegaConf.create(raw)


def _put_asked(config: DictConfig, name: str, value: Any) -> None:
    """Puts a value where an objective that asks for `name` finds it: at that path, else under the
    very name.
    """
    if all(name.split(".")):
        with suppress(OmegaConfBaseException):  # such as a.b beside a plain value called a
            OmegaConf.update(config, name, value, merge=False, force_add=True)
            return
    config[name] = value


def _uncoupled(node: Any, raw: Any) -> Any:
    for key, value in list(raw.items() if isinstance(raw, dict) else enumerate(raw)):
        if isinstance(value, (dict, list)):
            _uncoupled(node[key], value)
        elif isinstance(value, str) and _COUPLING.search(value):
            with suppress(OmegaConfBaseException):
                raw[key] = node[key]
    return raw


@contextmanager
def _no_environment() -> Iterator[None]:
    def refuse(*_: Any) -> NoReturn:
        raise ValueError("the environment is not read here")

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def logs(call: Call) -> int:
    """Prints a trial's log as it is; of the last attempt unless `attempt=K` says another."""
    number, attempt = call.number("trial"), call.number("attempt")
    if number is None:
        raise ConfigError("logs needs the trial's number: orchestrator logs trial=N")
    with call.store() as store:
        row = store.reads.find(call.study_name)
        attempts = store.reads.attempts(row.study_id, number)
    matching = [a for a in attempts if attempt in (None, a.attempt)]
    if not matching:
        raise ConfigError(f"attempt={attempt}: trial {number} had {len(attempts)} attempts")
    chosen = matching[-1]
    path = rundir.log_path(
        rundir.attempt_dir(Path(chosen.runs_dir), row.folder, number, chosen.attempt, chosen.token)
    )
    if call.json:
        data = {
            "trial": number,
            "attempt": chosen.attempt,
            "host": chosen.host,
            "log": str(path),
            "facts": chosen.facts,
        }
        print(json.dumps(data))
        return 0
    try:
        with path.open("rb") as log:
            while block := log.read(1 << 16):
                sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except FileNotFoundError:
        elsewhere = "" if chosen.host == socket.gethostname() else f"; it ran on {chosen.host}"
        raise OrchestratorError(f"trial {number}: no log at {path} here{elsewhere}") from None
    return 0
