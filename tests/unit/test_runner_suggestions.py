"""Objectives in Optuna's style: which ones are, and what goes back and forth when they ask for a
parameter.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest

from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Failed, Interrupted
from orchestrator.runner import Job, PruneQuestion, Runner, SuggestQuestion
from orchestrator.runner.protocol.target import arguments_of, check_call, locate
from tests.support.running import make_job, running_with
from tests.support.waiting import wait_until

THIS = "tests.unit.test_runner_suggestions"


class Objective:
    def __call__(self, trial: Any) -> float:
        return 0.0


class Unhashable(Objective):
    def __eq__(self, other: object) -> bool:
        return self is other


@hydra.main(version_base=None, config_path=None)
def main(anything: Any) -> float:
    return float(anything.optim.lr)


@pytest.mark.parametrize(
    ("function", "kwargs", "takes"),
    [
        (lambda trial: 0, [], "trial"),
        (lambda t: 0, [], "trial"),
        (lambda trial, data=None: 0, [], "trial"),
        (lambda trial, data: 0, ["data"], "trial"),
        (lambda trial, *, data: 0, ["data"], "trial"),
        (Objective(), [], "trial"),
        (Unhashable(), [], "trial"),
        (lambda cfg: 0, [], "cfg"),
        (lambda config, *, data: 0, ["data"], "cfg"),
        (lambda conf, **others: 0, ["data"], "cfg"),
        (main, [], "cfg"),
        (lambda cfg, trial: 0, [], "cfg trial"),
        (lambda cfg, trial, data: 0, ["data"], "cfg trial"),
        (lambda cfg, trial=None: 0, [], "cfg trial"),
        (lambda cfg, my_trial=None: 0, [], "cfg trial"),
        (lambda config, data=None: 0, [], "cfg"),
        (lambda cfg, verbose=False, trial=None: 0, [], "cfg"),
        (lambda anything, data=None: 0, [], "trial"),
        (lambda cfg, data, seed=0: 0, [], "cfg trial"),
        (functools.partial(lambda cfg, trial, lr: 0, lr=1), [], "cfg trial"),
        (functools.partial(lambda data, cfg: 0, None), [], "cfg"),
        (lambda *both: 0, [], "cfg trial"),
    ],
)
def test_a_function_is_called_with_what_it_takes(
    function: Callable[..., Any], kwargs: list[str], takes: str
) -> None:
    check_call("a.b", function, kwargs)
    assert arguments_of(function, kwargs) == tuple(takes.split())


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        (
            lambda cfg: 0,
            ["lr"],
            r"cannot be called as \(cfg, trial, lr=…\): too many positional arguments",
        ),
        (
            lambda trial, data: 0,
            [],
            r"cannot be called as \(trial\): missing a required argument: 'data'",
        ),
        (
            lambda trial: 0,
            ["lr"],
            r"cannot be called as \(trial, lr=…\): got an unexpected keyword argument 'lr'",
        ),
        (
            lambda trial, cfg: 0,
            [],
            (
                r"\(trial\): missing a required argument: 'cfg'; a function that takes both must "
                r"take cfg first"
            ),
        ),
        (lambda: 0, [], r"cannot be called as \(cfg, trial\): too many positional arguments"),
    ],
)
def test_a_function_that_fits_neither_call_is_refused(
    function: Callable[..., Any], kwargs: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_call("a.b", function, kwargs)


class Training:
    """What people have in place of a function."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def run(self, cfg: Any, trial: Any) -> float:
        return 0.0

    @staticmethod
    def train(cfg: Any, trial: Any) -> float:
        return 0.0


training = Training(1)


async def coroutine(trial: Any) -> float:
    return 0.0


def generator(trial: Any) -> Iterator[float]:
    yield 0.0


async def stream(trial: Any) -> AsyncIterator[float]:
    yield 0.0


class Asynchronous:
    async def __call__(self, trial: Any) -> float:
        return 0.0


asynchronous = Asynchronous()
later = partial(coroutine)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Training",
            (
                r"Training' is a class: instantiate it in its module, as in objective = "
                r"Training\(…\), and name that instance"
            ),
        ),
        (
            "Training.run",
            (
                r"is a method of the class 'Training': instantiate it in its module and name the "
                r"method of that instance"
            ),
        ),
        ("coroutine", r"is an async function, so a call runs nothing: .*asyncio\.run"),
        ("asynchronous", "is an async function"),
        ("later", "is an async function"),
        ("generator", r"is a generator, so a call runs nothing: return the final result"),
        ("stream", "is a generator"),
    ],
)
def test_what_trains_nothing_when_it_is_called_is_refused_at_once(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective\._target_: .*{message}"):
        check_call(f"{THIS}.{name}", locate(f"{THIS}.{name}"), [])


@pytest.mark.parametrize("name", ["training.run", "Training.train"])
def test_a_method_of_an_instance_and_a_static_one_are_functions(name: str) -> None:
    check_call(f"{THIS}.{name}", locate(f"{THIS}.{name}"), [])


# -------------------------------------------------------------------------- in a process of its own


def conditional(trial: Any, most: int = 3) -> dict[str, Any]:
    trial.suggest_categorical("kind", ["a", "b"])
    depth = trial.suggest_int("depth", 1, most)
    again = trial.suggest_int("depth", 1, most)
    trial.report(0.5, 1)
    return {
        "score": trial.suggest_float("x", 0, 1),
        "same": depth == again,
        "should": trial.should_prune(),
        **trial.params,
    }


def with_cfg(cfg: Any, trial: Any) -> dict[str, Any]:
    return {"score": trial.suggest_float("x", 0, 1), "lr": cfg.optim.lr, "params": trial.params}


def refused(trial: Any) -> float:
    try:
        trial.suggest_float("x", 1, 0)
    except ValueError as error:
        trial.set_user_attr("why", str(error))
    return float(trial.suggest_int("x", 0, 1))


def cfg_alone(cfg: Any) -> float:
    return float(cfg.optim.lr)


def wants_the_storage(trial: Any) -> float:
    return float(trial.storage.get_best())


def wants_to_stop_the_study(trial: Any) -> None:
    trial.study.stop()


def uploads(trial: Any) -> None:
    import optuna

    store: Any = optuna.artifacts.FileSystemArtifactStore(str(trial.checkpoint_dir))
    optuna.artifacts.upload_artifact(artifact_store=store, file_path=__file__, study_or_trial=trial)


def distributes(trial: Any) -> None:
    """As ``TorchDistributedTrial`` of optuna-integration 5.0.0 begins, in a module of that name."""
    text = (
        "def init(trial):\n    raise ValueError('Rank 0 node expects an optuna.trial.Trial "
        "instance as the trial argument.')"
    )
    module: dict[str, Any] = {
        "__name__": "optuna_integration.pytorch_distributed.pytorch_distributed"
    }
    exec(text, module)
    module["init"](trial)


def mistypes(trial: Any) -> float:
    return float(trial.sugest_float("x", 0, 1))


def catches_what_it_can(trial: Any) -> float:
    try:
        return float(trial.suggest_float("x", 0, 1))
    except Exception:  # noqa: BLE001 - as users write it
        return 0.0


def answered(
    runner: Runner, job: Job, answers: dict[str, dict[str, Any]]
) -> tuple[Any, list[SuggestQuestion]]:
    """Serves the attempt to its end with these answers; returns its outcome and what it asked."""
    running, asked = runner.start(job), []

    def ended() -> bool:
        for message in running.poll(1.0):
            if isinstance(message, SuggestQuestion):
                asked.append(message)
                # a late answer to another question changes nothing
                running.answer_suggest("another", 99.0)
                running.answer_suggest(message.name, **answers[message.name])
            elif isinstance(message, PruneQuestion):
                running.answer_prune(True)
        return running.outcome is not None

    wait_until(ended)
    return running.outcome, asked


def test_what_is_asked_reaches_the_worker_once_and_its_answer_the_objective(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.conditional", "most": 4}, params={}, values={})
    answers = {"kind": {"internal": 1.0}, "depth": {"internal": 3.0}, "x": {"internal": 0.25}}
    with running_with(dict(job.objective)) as runner:
        outcome, asked = answered(runner, job, answers)
    got = {"same": True, "should": True, "kind": "b", "depth": 3, "x": 0.25}
    assert outcome == Completed((0.25,), got)
    assert asked == [
        SuggestQuestion("kind", "categorical", {"choices": ["a", "b"]}),
        SuggestQuestion("depth", "int", {"low": 1, "high": 4, "step": 1, "log": False}),
        SuggestQuestion("x", "float", {"low": 0, "high": 1, "step": None, "log": False}),
    ]


def asks_for_lr(trial: Any, look: bool = False, rate: float = 0.0) -> float:
    return float(trial.suggest_float("lr", 0, 1)) + (trial.params["optim.lr"] if look else rate)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, ["optim.lr"]), ({"look": True}, []), ({"rate": "${optim.lr}"}, [])],
    ids=str,
)
def test_a_name_of_the_study_that_is_never_asked_for_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], said: list[str]
) -> None:
    objective = {"_target_": f"{THIS}.asks_for_lr", **arguments}
    with running_with(objective) as runner:
        for number in range(3):
            outcome, _ = answered(
                runner, make_job(tmp_path, objective, number=number), {"lr": {"internal": 0.5}}
            )
            assert isinstance(outcome, Completed)
    remarks = [
        record.getMessage() for record in caplog.records if "without asking" in record.getMessage()
    ]
    text = "trial 0 completed without asking for {}, which the study sets (did you mean 'lr'?)"
    assert remarks == [text.format(name) for name in said]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"lr": 0.5, "lrr": 0.5, "open": None}, ["lrr"]),
        ({"optim": {"lr": 1}}, ["optim.lr"]),
        ({"lrr": 1, "x": "${lrr}"}, []),
    ],
    ids=str,
)
def test_a_value_in_params_that_a_function_of_the_trial_never_asks_for_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, params: dict[str, Any], said: list[str]
) -> None:
    objective = {"_target_": f"{THIS}.asks_for_lr"}
    with running_with(objective) as runner:
        answered(
            runner,
            make_job(tmp_path, objective, params=params, values={}),
            {"lr": {"internal": 0.5}},
        )
    remarks = [
        record.getMessage() for record in caplog.records if "without asking" in record.getMessage()
    ]
    text = "trial 0 completed without asking for {}, which the study sets (did you mean 'lr'?)"
    assert remarks == [text.format(name) for name in said]


def test_an_objective_of_cfg_and_trial_may_ask_as_well(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.with_cfg"})
    with running_with(dict(job.objective)) as runner:
        outcome, _ = answered(runner, job, {"x": {"internal": 0.5}})
    assert outcome == Completed((0.5,), {"lr": 0.01, "params": {"optim.lr": 0.01, "x": 0.5}})


@pytest.mark.parametrize("name", ["cfg_alone", "main"])
def test_a_function_of_cfg_alone_is_an_objective_and_so_is_one_below_hydra_main(
    tmp_path: Path, name: str
) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.{name}"})
    with running_with(dict(job.objective)) as runner:
        outcome, _ = answered(runner, job, {})
    assert outcome == Completed((0.01,))


def takes_stock(cfg: Any, trial: Any) -> float:
    cfg.optim.lr = 5.0
    for name in ("optim.momentum", "optim.lr", "optim", "opt", "wd", "free"):
        trial.suggest_float(name, 0, 1)
    return 0.0


def test_the_values_of_params_travel_with_the_questions_whatever_is_done_to_cfg(
    tmp_path: Path,
) -> None:
    params = {"optim": {"lr": 0.1, "momentum": 0.9}, "opt": [1, None], "wd": "${.optim.lr}"}
    job = make_job(
        tmp_path, {"_target_": f"{THIS}.takes_stock"}, params=params, values={"optim.lr": 0.5}
    )
    names = ("optim.momentum", "optim.lr", "optim", "opt", "wd", "free")
    with running_with(dict(job.objective)) as runner:
        _, asked = answered(runner, job, {name: {"internal": 0.5} for name in names})
    fixed = {message.name: message.fixed for message in asked}
    assert fixed == {
        "optim.momentum": (0.9,),
        "optim.lr": (),
        "optim": (),
        "opt": ([1, None],),
        "wd": (0.5,),
        "free": (),
    }


def test_a_refusal_is_raised_where_the_objective_asked(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.refused"})
    with running_with(dict(job.objective)) as runner:
        outcome, _ = answered(
            runner, job, {"x": {"internal": None, "refused": ("ValueError", "no such range")}}
        )
    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("ValueError: no such range")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "wants_the_storage",
            (
                "no attribute 'storage': the objective has no access to the study's storage; use "
                "trial.set_user_attr and"
            ),
        ),
        (
            "wants_to_stop_the_study",
            "trial.study has no attribute 'stop': to end the study: orchestrator stop",
        ),
        (
            "uploads",
            (
                "storage is required for FrozenTrial. Use trial.log_artifact(path) to store a "
                "file with the trial."
            ),
        ),
        (
            "distributes",
            (
                "as the trial argument. Use the trial directly, only in the process that called "
                "the objective"
            ),
        ),
        ("mistypes", "no attribute 'sugest_float' (did you mean 'suggest_float'?)"),
    ],
)
def test_what_a_trial_does_not_have_is_named(tmp_path: Path, name: str, message: str) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.{name}"})
    with running_with(dict(job.objective)) as runner:
        outcome, _ = answered(runner, job, {})
    assert isinstance(outcome, Failed)
    assert message in outcome.message


def test_an_attempt_that_asks_a_worker_that_is_gone_is_no_failure_of_the_trial(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.catches_what_it_can"})
    with running_with(dict(job.objective)) as runner:
        running = runner.start(job)
        wait_until(
            lambda: any(isinstance(message, SuggestQuestion) for message in running.poll(0.1))
        )
        running._channel.close()
        wait_until(lambda: running.poll(0.1) == [] and running.outcome is not None)
    assert isinstance(running.outcome, Interrupted)
