"""The command `rerun`: runs a trial again with its parameters and seed, and compares the value; or
has the workers repeat it with other seeds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import search
from orchestrator.cli import controls, provenance, replay, screen
from orchestrator.cli.beliefs import Beliefs
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.devices import Device, DeviceLock, discover, torch_device
from orchestrator.errors import ConfigError, DeviceError, OrchestratorError, StudyFailedError
from orchestrator.model import (
    ASK_KEY,
    Completed,
    Failed,
    Interrupted,
    JSONValue,
    Outcome,
    Pruned,
    StudySpec,
    TrialNews,
    cell_label,
    count_label,
    trial_seed,
)
from orchestrator.runner import (
    ABOUT,
    Job,
    PruneQuestion,
    Running,
    StudyQuestion,
    SuggestQuestion,
    check_allowed,
)
from orchestrator.runner.protocol import rundir
from orchestrator.worker.device_slot import HeldSlot

if TYPE_CHECKING:
    from orchestrator.store import Store, StudyRow, TrialRow

_DIFFERS = 1
_SILENCE_S = 60.0
_FINAL = ("COMPLETE", "PRUNED", "FAIL")
_MOST_SEEDS = 1000
_OF_THIS_HOST = ("worker.", "paths.runs=")
"""How the settings begin that only a trial which runs here has a use for."""


def run(call: Call) -> int:
    """Runs trial N, or the best one, again without changing the study.

    Returns 0 if its value is bit-identical, else 1. With ``seeds=N`` the study gets N more trials.
    """
    if "seeds" in call.words:
        return _with_other_seeds(call)
    wanted = _wanted(call)
    with call.store() as store:
        row = study_of(call, store)
        spec = store.reads.spec(row.study_id)
        trial = _chosen(store, row, spec, wanted)
        then = store.reads.attempts(row.study_id, trial.number)[-1].facts or {}
        seed = int(then["seed"]) if "seed" in then else _seed_of_ask(store, row, trial.number)
        suggested = any(not spec.declares(name) for name in trial.params)
        stored = replay.with_suggestion(store, row, trial.number) if suggested else None
        study_facts = {
            what: store.reads.about(what, row.study_id, trial.number, spec.directions)
            for what in ABOUT
        }

    check_allowed(spec.objective, call.host.worker.allow_targets)
    with _device(call, then) as held:
        threads = (
            "the libraries’ own threads"
            if held.threads is None
            else count_label(held.threads, "thread")
        )
        print(
            f"trial {trial.number} of {row.name} again: seed {seed}, {held.device.name}, {threads}",
            file=sys.stderr,
        )
        job = _job(call, row, spec, trial, seed, held.device)
        running = _run(job, spec, held, stored, study_facts)

    outcome = running.outcome
    differs = provenance.differences(then, running.facts) if then else []
    values = outcome.values if isinstance(outcome, Completed) else None
    same = values == trial.values if values is not None and trial.values is not None else None
    if call.json:
        data: dict[str, Any] = {
            "study": row.name,
            "trial": trial.number,
            "seed": seed,
            "same": same,
        }
        data |= {
            "values": _named(spec, values),
            "stored": _named(spec, trial.values),
            "differs": differs,
        }
        data |= {"problem": _problem(outcome), "log": str(running.log_path), "facts": running.facts}
        print(screen.as_json(data))
    else:
        _show(spec, trial, values, outcome, differs, running.log_path)
    return 0 if same or (values is not None and trial.values is None) else _DIFFERS


def _with_other_seeds(call: Call) -> int:
    """Adds trials with the parameters of trial N, or of the best one, on top of the budget."""
    seeds, wanted = call.number("seeds", within=(1, _MOST_SEEDS)), _wanted(call)
    controls.required_name(call)
    assert seeds is not None
    for word in call.flags.overrides:
        if word.lstrip("+").startswith(_OF_THIS_HOST):
            raise ConfigError(
                f"{word}: with seeds=… the trials run where the workers are, not here; leave out "
                "one of the two"
            )
    with call.store() as store:
        row = study_of(call, store)
        if wanted is None:
            wanted = _chosen(store, row, store.reads.spec(row.study_id), None).number
        values = store.interventions.repeat(row.study_id, wanted, seeds)
        times = count_label(seeds, "more trial")
        text = f"{times} with the parameters of trial {wanted}: {cell_label(values)}"
        data = {"repeated": {"trial": wanted, "seeds": seeds, "params": values}}
        controls.report(call, store, row, text, data)
    return 0


def _wanted(call: Call) -> int | None:
    """The number of the trial that is to run again; None for the best one."""
    return None if call.words.get("trial") == "best" else call.number("trial", or_word="best")


def _chosen(store: Store, row: StudyRow, spec: StudySpec, wanted: int | None) -> TrialRow:
    if wanted is None:
        progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=1)
        best = Beliefs.of(store, spec, progress, estimates=False).best
        if not best:
            raise StudyFailedError(f"study {row.name} has no complete trial yet")
        if len(best) > 1:
            numbers = ", ".join(str(t.number) for t in best)
            raise ConfigError(
                f"several trials are best (trials {numbers}); choose one with trial=N"
            )
        return best[0]
    for trial in store.reads.trials(row.study_id, number=wanted):
        if trial.number == wanted and trial.state in _FINAL:
            return trial
        if trial.number == wanted:
            raise ConfigError(f"trial={wanted}: it has not ended yet")
    raise ConfigError(
        f"trial={wanted}: study {row.name} has no trial with that number run by this program"
    )


def _seed_of_ask(store: Store, row: StudyRow, number: int) -> int:
    """The seed of a trial without recorded facts: its host died, or an older version ran it."""
    inputs = replay.with_suggestion(store, row, number).system_attrs[ASK_KEY]
    return trial_seed(inputs["study_seed"], inputs["ticket"], inputs["retry"])


def _device(call: Call, then: Mapping[str, Any]) -> HeldSlot:
    """A device of the trial's kind, unless `worker.devices` names one, and its threads."""
    settings = call.host.worker
    kind = (then.get("device") or {}).get("kind")
    selection = ["cpu"] if settings.devices is None and kind == "cpu" else settings.devices
    threads = settings.threads if settings.threads is not None else then.get("threads")
    for device in discover(selection):
        if device.kind == "cpu":
            return HeldSlot(device, 0, threads, None)
        for slot in range(settings.slots_per_device or 1):
            if (lock := DeviceLock.acquire(device.key, slot)) is not None:
                return HeldSlot(device, slot, threads, lock)
    raise DeviceError(
        "every device is in use by a worker; try again later, or name another one, such as "
        "worker.devices=[cpu]"
    )


def _job(
    call: Call, row: StudyRow, spec: StudySpec, trial: TrialRow, seed: int, device: Device
) -> Job:
    runs = call.host.paths.runs
    place = rundir.trial_dir(runs, row.folder, trial.number)
    try:
        place.mkdir(parents=True, exist_ok=True)
        run_dir = Path(tempfile.mkdtemp(prefix="rerun-", dir=place))
    except OSError as error:
        raise OrchestratorError(
            f"paths.runs={runs}: {error.strerror} ({error.filename})"
        ) from error

    values = {name: value for name, value in trial.params.items() if spec.declares(name)}
    return Job(
        study=row.name,
        number=trial.number,
        attempt=1,
        seed=seed,
        device=torch_device(device),
        params=spec.params,
        values=values,
        contents=spec.contents(values),
        options=spec.options,
        objective=spec.objective,
        directions=spec.directions,
        metrics=spec.metrics,
        run_dir=run_dir,
        checkpoint_dir=run_dir / "checkpoints",
        resumed=False,
    )


def _run(
    job: Job,
    spec: StudySpec,
    held: HeldSlot,
    stored: TrialNews | None,
    study_facts: Mapping[str, JSONValue],
) -> Running:
    """Runs the job to its end, without pruning.

    Args:
        stored: the trial, whose suggested values the objective gets again; None if it has none.
        study_facts: the answers to what the objective may ask about its study (`ABOUT`), as of now.
    """
    from orchestrator.worker.studies import runner_for  # imports Optuna

    answers = None if stored is None else search.Search(spec).answers(stored, ticket=0, retry=0)
    runner = runner_for(spec, held, _SILENCE_S)
    try:
        runner.check()
        running = runner.start(job)
        while running.outcome is None:
            for message in running.poll(1.0):
                if isinstance(message, PruneQuestion):
                    running.answer_prune(False)
                elif isinstance(message, SuggestQuestion):
                    _answer(running, message, answers)
                elif isinstance(message, StudyQuestion):
                    running.answer_study(message.about, study_facts[message.about])
        return running
    finally:
        runner.close()


def _answer(running: Running, question: SuggestQuestion, answers: search.Answers | None) -> None:
    name = question.name
    try:
        answer = None
        if answers is not None:
            answer = answers.answer(name, question.kind, question.arguments, question.fixed)
    except (ValueError, TypeError) as error:
        running.answer_suggest(name, None, refused=(type(error).__name__, str(error)))
        return
    if answer is None or answer.new is not None:
        text = f"the trial had no parameter {name!r}: its objective has changed since"
        running.answer_suggest(name, None, refused=("ValueError", text))
    else:
        running.answer_suggest(name, answer.internal, warnings=answer.warnings)


def _show(
    spec: StudySpec,
    trial: TrialRow,
    values: tuple[float, ...] | None,
    outcome: Outcome | None,
    differs: list[str],
    log: Path,
) -> None:
    for metric, new, old in zip(
        spec.metrics, values or (), trial.values or [None] * len(spec.metrics), strict=False
    ):
        verdict = (
            "" if old is None else ", as before" if new == old else f", but the trial has {old!r}"
        )
        print(f"{metric} = {new!r}{verdict}")
    if (problem := _problem(outcome)) is not None:
        print(problem)
    if trial.values is None:
        print(f"trial {trial.number} is {trial.state}: it has no value to compare with")
    if differs:
        print(f"differs from the original run: {'; '.join(differs)}")
    if trial.attempts > 1:
        print(f"the trial took {trial.attempts} attempts, the rerun a single one")
    print(f"log: {log}")
    if values is not None and trial.values is not None:
        print("reproduced bit for bit" if values == trial.values else "not reproduced")


def _problem(outcome: Outcome | None) -> str | None:
    match outcome:
        case Failed(kind, message):
            return f"failed ({kind}): {message}"
        case Pruned(step):
            return f"it pruned itself{'' if step is None else f' at step {step}'}"
        case Interrupted(reason):
            return f"interrupted: {reason}"
    return None


def _named(spec: StudySpec, values: tuple[float, ...] | None) -> dict[str, float] | None:
    return None if values is None else dict(zip(spec.metrics, values, strict=True))
