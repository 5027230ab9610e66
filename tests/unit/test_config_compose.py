"""Whole command lines, composed by Hydra: what becomes of them, and what is said to the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from orchestrator.cli.call import Call
from orchestrator.cli.preflight import output_directory
from orchestrator.config import compose, parse_flags, show, study_spec
from orchestrator.config.composing import Composed
from orchestrator.config.schema import STUDY_SECTIONS
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Searched, StudySpec
from orchestrator.settings import PRUNERS, SAMPLERS, HyperbandSettings

URL = "postgresql+psycopg2://ann:s3cret@db/o"
OWN = ("study.name=own", "objective._target_=my.train", "budget.trials=9")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ORCHESTRATOR_STORAGE_URL",
        "ORCHESTRATOR_STORAGE_PASSWORD_FILE",
        "ORCHESTRATOR_DATA_DIR",
        "ORCHESTRATOR_DASHBOARD_URL",
    ):
        monkeypatch.delenv(name, raising=False)


def launch(*argv: str) -> Composed:
    flags = parse_flags(argv)
    return compose(
        "launch", flags.overrides, config_dir=flags.config_dir, config_name=flags.config_name
    )


def spec(*argv: str) -> StudySpec:
    return study_spec(launch(*argv))


def refusal(*argv: str, command: str = "launch") -> str:
    flags = parse_flags(argv)
    with pytest.raises(ConfigError) as caught:
        study_spec(
            compose(
                command, flags.overrides, config_dir=flags.config_dir, config_name=flags.config_name
            )
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    """Writes files of a config directory of the user's and returns its flag."""

    def write(**files: str) -> str:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return f"--config-dir={tmp_path}"

    return write


def test_the_digits_experiment() -> None:
    digits = spec("experiment=digits")
    assert (digits.name, digits.directions, digits.metrics) == (
        "digits",
        ("maximize",),
        ("val_accuracy",),
    )
    assert digits.grid == (
        Axis("data.batch_size", (32, 64, 128)),
        Axis("model.hidden_units", (64, 256)),
    )
    assert digits.search == (
        Searched("optim.lr", "float", 1e-4, 1e-1, log=True),
        Searched("optim.weight_decay", "float", 1e-6, 1e-2, log=True),
        Searched("model.dropout", "float", 0.0, 0.5),
        Searched("model.activation", "categorical", choices=("relu", "gelu", "tanh")),
        Searched("model.depth", "int", 1, 3),
    )
    assert (digits.budget.trials, digits.budget.per_cell, digits.n_cells) == (48, 4, 6)
    stored = digits.to_json()
    assert stored["sampler"] == {"name": "tpe", "n_startup_trials": 10, "n_ei_candidates": 24}
    assert stored["pruner"] == {"name": "none"}
    assert stored["runner"] == {
        "max_runtime_min": None,
        "grace_s": 5.0,
        "isolation": "trial",
        "start": "forkserver",
        "max_attempts": 5,
        "retries": 0,
        "retry_on": None,
        "resume": True,
        "log_limit_mb": 10.0,
    }
    again = StudySpec.from_json(stored)
    assert again.identity() == digits.identity()
    assert (again.sampler, again.pruner) == (digits.sampler, digits.pruner)
    assert (again.runner, again.infeasible) == (digits.runner, digits.infeasible)


def test_the_last_word_wins_through_hydra() -> None:
    changed = spec(
        "experiment=digits",
        "data.batch_size=16",
        "optim.lr=0.1,0.2",
        "+train.warmup=interval(0, 1)",
        "budget.hours=1.5",
    )
    assert changed.params["data"] == {"batch_size": 16}
    assert [axis.path for axis in changed.grid] == ["model.hidden_units", "optim.lr"]
    assert "train.warmup" in [searched.path for searched in changed.search]
    assert changed.budget.hours == 1.5


def test_confirming_trials_are_stored_only_where_there_are_any() -> None:
    for words, confirm in (((), 0), (("budget.confirm=3", "budget.trials=13"), 3)):
        made = spec(*OWN, *words)
        assert made.budget.confirm == confirm
        stored = json.loads(json.dumps(made.to_json()))
        assert ("confirm" in stored["budget"]) == (confirm > 0), "readable by versions without it"
        assert StudySpec.from_json(stored).budget == made.budget


def test_the_stored_config_is_the_study_alone_and_composes_to_the_same_study(mine: Any) -> None:
    first = spec(
        "experiment=digits",
        "sampler=gp",
        "optim.lr=range(0, 1, 0.25)",
        f"storage.url={URL}",
        "worker.count=3",
    )
    stored = yaml.safe_load(first.config)
    assert tuple(stored) == tuple(name for name in STUDY_SECTIONS if name != "stages")
    assert "s3cret" not in first.config
    again = spec(
        mine(again="defaults: [config, _self_]\n" + first.config),
        "--config-name=again",
        "sampler=gp",
    )
    assert again.spec_hash() == first.spec_hash()
    assert again.grid == first.grid
    assert (again.budget, again.sampler, again.seed) == (first.budget, first.sampler, first.seed)


def test_interpolations_of_params_stay_and_see_params_as_root(
    mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    text = (
        "# @package _global_\nstudy: {name: 'n-${hydra:runtime.choices.sampler}'}\nobjective: "
        "{_target_: my.train}\n"
        "params: {optim: {lr: 0.1, wd: '${.lr}'}, width: '${optim.lr}', token: "
        "'${oc.env:SECRET_TOKEN}',"
        " other: '${oc.env:ONLY_ON_WORKERS}', scaled: '${linear_scaling:${optim.lr},32,64}'}\n"
        "grid: {optim.lr: [1, 2]}\nbudget: {per_cell: 2}\n"
    )
    coupled = spec(mine(experiment__mine=text), "experiment=mine")
    assert coupled.name == "n-tpe"
    assert coupled.params["optim"] == {"lr": 0.1, "wd": "${.lr}"}
    assert coupled.params["width"] == "${optim.lr}"
    assert "hunter2" not in coupled.config + str(coupled.to_json())
    assert coupled.budget.trials == 4  # two cells of two


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["+a=${optm.lr}"],
            ["params.a", "optm.lr", "did you mean 'optim.lr'", "params as their root"],
        ),
        (["+a=${b}", "+b=${a}"], ["params.a", "refers to itself"]),
        (["+a=???"], ["params.a must be given"]),
        (["+a=${hydra:job.name}"], ["params.a", "resolved on the worker"]),
        (["+a=nan"], ["params.a", "cannot be stored"]),
        (["+a={b: [inf]}"], ["params.a.b", "cannot be stored"]),
    ],
)
def test_params_that_no_worker_could_resolve_are_refused(
    words: list[str], expected: list[str]
) -> None:
    message = refusal("experiment=digits", *words)
    for word in expected:
        assert word in message


def test_a_mandatory_value_that_is_searched_is_given() -> None:
    assert spec(*OWN, "+lr=???", "lr=interval(0, 1)").search[0].path == "lr"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["study.name must be given", "study.name="]),
        (["study.name=x"], ["objective._target_ must be given"]),
        (["study.name=x", "objective._target_=a.b"], ["budget.trials must be given"]),
        ([*OWN, "study.name='a b'"], ["study.name='a b'"]),
        ([*OWN, f"study.name={'x' * 101}"], ["at most 100"]),
        ([*OWN, "objective._target_=train"], ["dotted name"]),
        ([*OWN, "objective=foo"], ["objective is a section"]),
        ([*OWN, "objective.command=x"], ["_target_=my.train and a command", "~objective._target_"]),
        ([*OWN, "+objective._partial_=true"], ["objective._partial_"]),
        ([*OWN, "objective.x=1"], ["+objective.x=1"]),
        (
            [*OWN, "study.direction=maximise"],
            ["study.direction=maximise", "did you mean 'maximize'"],
        ),
        ([*OWN, "study.direction=[maximize,minimize]"], ["has 2 and study.metric 1"]),
        ([*OWN, "study.direction=[maximize,minimize]", "study.metric=[a,a]"], ["must differ"]),
        ([*OWN, "study.metric=3"], ["study.metric=3"]),
        ([*OWN, "study.seed=-1"], ["study.seed=-1"]),
        ([*OWN, "study=foo"], ["study is a section"]),
        ([*OWN, "allocation=adaptiv"], ["allocation=adaptiv", "did you mean 'adaptive'"]),
        (
            [*OWN, "warm_start={a: t}"],
            ["warm_start={a: t}: must be a list"],
        ),
        ([*OWN, "stop_when.gain=500%"], ["share of the spread from above 0% to 100%"]),
        ([*OWN, "budget.trials=abc"], ["budget.trials='abc'", "whole number"]),
        ([*OWN, "budget.trials=3.5"], ["budget.trials=3.5", "whole number"]),
        ([*OWN, "budget.trials=0"], ["from 1 to 10,000,000"]),
        ([*OWN, "budget.confirm=-1"], ["budget.confirm=-1", "from 0 to"]),
        ([*OWN, "budget.confirm=yes"], ["budget.confirm", "whole number"]),
        (
            [*OWN, "budget.confirm=19", "budget.trials=19"],
            ["budget.confirm=19", "10 trials must come before", "leaves 0"],
        ),
        (
            [
                *OWN,
                "budget.confirm=12",
                "budget.trials=40",
                "+params.a=0",
                "a=1,2",
                "budget.per_cell=15",
            ],
            ["budget.confirm=12", "10 are left", "budget.trials to 42"],
        ),
        (
            [
                *OWN,
                "budget.confirm=1",
                "budget.trials=20",
                "study.direction=[maximize,minimize]",
                "study.metric=[a,b]",
            ],
            ["budget.confirm=1", "several objectives"],
        ),
        ([*OWN, "budget.hours=0"], ["greater than 0"]),
        ([*OWN, "budget.hours=nan"], ["finite"]),
        ([*OWN, "budget.trails=3"], ["budget.trails", "did you mean 'budget.trials'"]),
        ([*OWN, "+budget.trails=3"], ["did you mean 'budget.trials'"]),
        ([*OWN, "runner.start=fork"], ["runner.start='fork'", "forkserver, spawn"]),
        ([*OWN, "runner.isolation=trail"], ["runner.isolation='trail'", "did you mean 'trial'?"]),
        (
            [*OWN, "sampler=tpee"],
            ["sampler=tpee", "did you mean 'tpe'", "gp, nsga2, qmc, random, tpe"],
        ),
        ([*OWN, "sampler=cmaes"], ["sampler=cmaes"]),
        ([*OWN, "sampler=gp,tpe"], ["sampler=gp,tpe", "choose one, sampler=gp"]),
        ([*OWN, "experiment=digits,x"], ["experiment=x"]),
        (
            [*OWN, "sampler=gp", "sampler.n_ei_candidates=3"],
            ["sampler=gp has no such option", "sampler.n_startup_trials"],
        ),
        ([*OWN, "sampler.name=gp"], ["sampler=gp"]),
        (
            [*OWN, "sampler=nsga2", "sampler.crossover_prob=2"],
            ["sampler.crossover_prob=2", "from 0 to 1"],
        ),
        ([*OWN, "sampler=qmc", "sampler.qmc_type=sobl"], ["did you mean 'sobol'"]),
        (
            [*OWN, "pruner=hyperband", "pruner.max_resource=1.5"],
            ["pruner.max_resource=1.5", "'auto'"],
        ),
        ([*OWN, "experiment=digit"], ["did you mean 'digits'"]),
        (
            [*OWN, "worker.heartbeat_s=30"],
            ["worker.heartbeat_s=30", "half of worker.lease_ttl_s=60"],
        ),
        ([*OWN, "worker.cuont=3"], ["did you mean 'worker.count'"]),
        ([*OWN, "worker.on_no_device=stay"], ["wait, exit"]),
        ([*OWN, "dashboard.port=0"], ["dashboard.port=0"]),
        (
            [*OWN, "dashboard.url=tuning.example.org"],
            ["dashboard.url='tuning.example.org'", "https://tuning.example.org"],
        ),
        ([*OWN, "hydra.mode=MULTIRUN"], ["hydra.mode"]),
        (["experiment=digits", "budget.trials=10"], ["24 trials", "budget.trials=10"]),
        (["experiment=digits", "lr=0.1"], ["did you mean 'optim.lr'"]),
        (["--config-name=nope"], ["nope"]),
        (["--config-dir=/no/such"], ["/no/such", "no such directory"]),
    ],
)
def test_what_the_user_did_wrong_is_said_in_one_line(words: list[str], expected: list[str]) -> None:
    message = refusal(*words)
    for word in expected:
        assert word in message


def test_every_option_of_sampler_and_pruner_composes_to_its_schema() -> None:
    options: dict[str, Mapping[str, Callable[[], object]]] = {
        "sampler": SAMPLERS,
        "pruner": PRUNERS,
    }
    for section, schemas in options.items():
        for name, schema in schemas.items():
            chosen = spec(*OWN, f"{section}={name}")
            assert getattr(chosen, section) == schema()


def test_a_seed_is_derived_from_the_name_unless_given() -> None:
    assert spec(*OWN).seed == spec(*OWN).seed
    assert spec(*OWN).seed != spec(*OWN, "study.name=other").seed
    assert spec(*OWN, "study.seed=7").seed == 7


def test_several_objectives() -> None:
    several = spec(*OWN, "study.direction=[maximize,minimize]", "study.metric=[acc,ms]")
    assert (several.directions, several.metrics) == (("maximize", "minimize"), ("acc", "ms"))


# ------------------------------------------------------------------------ directories of the user's


def test_an_experiment_of_the_users_may_build_on_a_shipped_one(mine: Any) -> None:
    text = (
        "# @package _global_\ndefaults: [digits, {override /sampler: gp}]\nstudy: {name: derived}\n"
        "search: {optim.lr: null}\ngrid: {optim.lr: [1, 2], data.batch_size: 'range(8, 17, 8)'}\n"
    )
    derived = spec(mine(experiment__derived=text), "experiment=derived", "budget.trials=40")
    assert [axis.path for axis in derived.grid] == [
        "data.batch_size",
        "model.hidden_units",
        "optim.lr",
    ]
    assert derived.grid[0].values == (8, 16)
    assert derived.sampler.name == "gp"


def test_a_users_option_goes_before_the_shipped_one_of_its_name(mine: Any) -> None:
    flag = mine(
        experiment__digits="# @package _global_\nstudy: {name: not-yours}\n"
        "objective: {_target_: a.b}\n"
    )
    assert spec(flag, "experiment=digits", "budget.trials=1").name == "not-yours"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1", ["unknown section 'lr'", "params: {lr: …}"]),
        ("budgt: {trials: 3}", ["did you mean 'budget'"]),
        ("budget: {trails: 3}", ["did you mean 'budget.trials'"]),
        ("grid: {data: {batch_size: [1]}}", ["declared twice, dotted and nested"]),
        ("grid: {optim.lr: [1]}", ["both in grid and in search"]),
        ("search: {train.epoch: 'range(1, 9)'}", ["did you mean 'train.epochs'"]),
        ("params: {a.b: 1}", ["'a.b' contains a dot", "a: {b: …}"]),
        ("params: {1: 1}", ["must be a string"]),
        ("params: [1]", ["experiment/mine"]),
        ("study: {name: '${foo}'}", ["study.name", "foo"]),
        ("sampler: {name: gp}", ["sampler=gp has no such option", "'override /sampler: gp'"]),
        ("study: {name: [", ["experiment/mine.yaml"]),
        ("storage: {url: 'postgresql://u:s3cret@h/d', kind: 3}", ["storage.kind"]),
        ("pruner: {defaults: [override /pruner: asha]}", ["pruner.defaults", "top level"]),
    ],
)
def test_mistakes_in_a_file_of_the_users_are_said_in_one_line(
    mine: Any, text: str, expected: list[str]
) -> None:
    flag = mine(experiment__mine=f"# @package _global_\ndefaults: [digits]\n{text}\n")
    message = refusal(flag, "experiment=mine")
    assert "s3cret" not in message
    for word in expected:
        assert word in message


def test_a_config_that_hides_the_shipped_one_is_told_how_not_to(mine: Any) -> None:
    assert "let it begin with 'defaults: [config, _self_]'" in refusal(
        mine(config="lr: 1"), "experiment=digits"
    )
    assert "other.yaml" in refusal(mine(other="lr: 1"), "--config-name=other")


NETS = {"net__cnn": "kind: cnn\nwidth: 3\n", "net__mlp": "kind: mlp\nwidth: 4\ndepth: 2\n"}


def test_a_sweep_over_a_users_config_group_is_a_grid_axis_of_its_options(mine: Any) -> None:
    text = (
        "# @package _global_\ndefaults: [{/net@params.net: cnn}]\nstudy: {name: nets}\nobjective: "
        "{_target_: a.b}\n"
    )
    flag = mine(experiment__nets=text, **NETS)
    assert (
        spec(flag, "experiment=nets", "net@params.net=mlp", "budget.trials=1").params["net"]["kind"]
        == "mlp"
    )
    swept = spec(flag, "experiment=nets", "net@params.net=cnn,mlp")
    contents = ({"kind": "cnn", "width": 3}, {"kind": "mlp", "width": 4, "depth": 2})
    assert swept.grid == (Axis("net", ("cnn", "mlp"), contents, "net@params.net"),)
    assert "did you mean 'cnn'" in refusal(flag, "experiment=nets", "net@params.net=mlp,cn")
    inside = spec(flag, "experiment=nets", "net@params.net=cnn,mlp", "net.width=8").grid[0].contents
    assert [content["width"] for content in inside] == [8, 8]
    refused = refusal(flag, "experiment=nets", "net@params.net=mlp,cnn", "net.depth=8")
    assert "net@params.net=cnn" in refused
    assert "depth" in refused
    assert "let the first line of each net/*.yaml be '# @package params.net'" in refusal(
        flag, *OWN, "+net=cnn,mlp"
    )


# ---------------------------------------------------------------------------------------- this host


def test_the_data_directory_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path / "d"))
    assert (
        compose("worker", ["worker.health_file=h"]).host.worker.health_file == Path("h").absolute()
    )
    host = compose("worker", ["paths.runs=r"]).host
    assert (host.paths.data, host.paths.runs) == (tmp_path / "d", Path.cwd() / "r")
    assert (host.storage.kind, host.storage.path) == ("embedded", tmp_path / "d" / "postgres")


def test_a_url_means_a_server_and_its_password_is_in_host_alone() -> None:
    for command in ("launch", "worker"):
        composed = compose(command, [f"storage.url={URL}", "worker.count=2"])
        assert (composed.host.storage.kind, composed.host.storage.url) == ("postgres", URL)
        shown = [composed.config, composed.hydra, composed.overrides, composed.host, composed]
        assert "s3cret" not in str([str(part) for part in shown]) + repr(shown) + OmegaConf.to_yaml(
            composed.config
        )
        assert composed.overrides == (
            "storage.url=postgresql+psycopg2://ann:***@db/o",
            "worker.count=2",
        )


def test_the_url_of_the_environment_is_used_unless_storage_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", URL)
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_PASSWORD_FILE", "/run/secrets/p")
    host = compose("worker", []).host
    assert (host.storage.kind, host.storage.url, host.storage.password_file) == (
        "postgres",
        URL,
        "/run/secrets/p",
    )
    assert compose("worker", ["storage=embedded"]).host.storage.kind == "embedded"
    typed = compose("worker", ["storage.url=postgresql://u:p@h/d"]).host.storage
    # the environment's file is of another URL
    assert (typed.url, typed.password_file) == ("postgresql://u:p@h/d", None)
    composed = compose("worker", [])
    for argv in (
        ["--cfg=job", "--resolve"],
        ["--cfg=all", "--resolve", "--package=storage.url"],
        ["--help", "--resolve"],
    ):
        assert "s3cret" not in show(parse_flags(argv), composed)


@pytest.mark.parametrize(
    "words",
    [
        ["storage=postgres"],
        ["storage.url=mysql://u:s3cret@h/d"],
        ["storage.url=s3cret"],
        ["storage=embedded", f"storage.url={URL}"],
        [f"storage={{url: '{URL}'}}"],
        [f"storage.urll={URL}"],
        [f"optim.lr={URL}"],
        [f"storage.url={URL},s3cret", "foo=1"],
        ["storage.url=${oc.env:NO_SUCH_VARIABLE}"],
    ],
)
def test_no_message_about_storage_holds_the_password(words: list[str]) -> None:
    message = refusal(*words, command="worker")
    assert "s3cret" not in message
    assert "stor" in message


def test_devices_and_studies_may_be_one_word() -> None:
    host = compose("worker", ["worker.devices=0", "worker.studies=a"]).host
    assert (host.worker.devices, host.worker.studies) == ([0], ["a"])
    assert compose("worker", ["worker.devices=[cpu,1,GPU-ab]"]).host.worker.devices == [
        "cpu",
        1,
        "GPU-ab",
    ]
    assert "a list like" in refusal("worker.devices={a: 1}", command="worker")


@pytest.mark.parametrize(
    "word",
    [
        "experiment=digits",
        "optim.lr=1",
        "budget.trials=3",
        "sampler=gp",
        "grid.x=[1]",
        "params.x=1",
    ],
)
def test_a_study_setting_is_refused_by_commands_on_stored_studies(word: str) -> None:
    for command in ("worker", "status"):
        message = refusal(word, command=command)
        assert word in message
        assert f"{command} takes" in message


def test_readers_take_the_name_of_a_study() -> None:
    assert compose("status", ["study.name=x", "storage=embedded"]).config.study.name == "x"
    assert compose("status", []).config.study.name is None
    assert "write worker.studies=[x]" in refusal("study.name=x", command="worker")
    assert "did you mean 'study.name'" in refusal("study.nam=x", command="status")


def test_the_config_of_a_worker_holds_its_host_only() -> None:
    assert list(compose("worker", []).config) == [
        "storage",
        "worker",
        "paths",
        "dashboard",
        "notify",
        "study",
    ]


def test_the_run_directory_is_hydras() -> None:
    assert str(launch("experiment=digits").hydra.run.dir).startswith("outputs/")
    assert launch("experiment=digits", "hydra.run.dir=/tmp/here").hydra.run.dir == "/tmp/here"


def test_launches_of_one_second_share_no_directory_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = Call.parse("launch", ["experiment=digits"])
    first, second, third = (output_directory(call) for _ in range(3))
    assert second == first.with_name(f"{first.name}-2")
    assert third == first.with_name(f"{first.name}-3")
    assert (third / ".hydra" / "config.yaml").exists()
    named = Call.parse("launch", ["experiment=digits", "hydra.run.dir=mine"])
    assert output_directory(named) == output_directory(named) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("setting", "legal", "words"),
    [
        ("study.priority", "-2147483648", ["2147483648", "to 2,147,483,647"]),
        ("study.priority", "2147483647", ["-2147483649", "from -2,147,483,648"]),
        ("budget.trials", "10000000", ["10000001", "10,000,000"]),
        ("budget.per_cell", "8", ["10000001", "10,000,000"]),
        ("budget.hours", "100000", ["100000.5", "at most 100,000"]),
        ("budget.max_failures_per_cell", "1000000", ["1000001", "to 1,000,000"]),
        *(
            (f"worker.{name}", "20", ["1e8", "10,000,000"])
            for name in ("drain_s", "poll_s", "lease_ttl_s", "idle_timeout_s")
        ),
        ("worker.heartbeat_s", "29", ["inf", "finite"]),
        ("worker.poll_s", "0.1", ["nan", "finite"]),
        ("worker.devices", "[cpu]", ["[]", "at least one"]),
    ],
)
def test_numbers_no_database_or_timer_can_hold_are_refused(
    setting: str, legal: str, words: list[str]
) -> None:
    beat = ["worker.heartbeat_s=5"] if setting == "worker.lease_ttl_s" else []
    spec("experiment=digits", *beat, f"{setting}={legal}")
    value, rule = words
    message = refusal("experiment=digits", f"{setting}={value}")
    assert message.startswith(f"{setting}=")
    assert rule in message


def test_a_budget_derived_from_a_grid_is_bounded_too() -> None:
    message = refusal("experiment=digits", "budget.trials=null", "budget.per_cell=2000000")
    assert message.startswith("budget.per_cell=2000000 for 6 cells makes 12,000,000 trials")


def test_hyperband_needs_resources_in_order() -> None:
    equal = spec(
        "experiment=digits", "pruner=hyperband", "pruner.min_resource=3", "pruner.max_resource=3"
    )
    assert equal.pruner == HyperbandSettings(min_resource=3, max_resource=3)
    message = refusal(
        "experiment=digits", "pruner=hyperband", "pruner.min_resource=4", "pruner.max_resource=3"
    )
    assert message == "pruner.max_resource=3: must be at least pruner.min_resource=4"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sampler=null", ["sampler=null: ", "choose one of gp, nsga2"]),
        ("experiment=null", ["experiment=null: ", "~experiment"]),
        ("~storage", ["~storage: ", "embedded, postgres"]),
        ("~worker=default", ["~worker=default: ", "default"]),
        ("~paths", ["~paths: the section paths cannot be deleted"]),
        ("~params", ["~params: params itself cannot be deleted", "~optim.lr"]),
        ("=5", ["name before '=' is missing", "key=value"]),
        ("++=5", ["name before '=' is missing"]),
        ("objective.foo=3", ["objective has no argument foo", "write +objective.foo=3"]),
        (
            "+train.epochs.foo=5",
            ["params.train.epochs=12 is a plain value, so nothing can be below it"],
        ),
        ("++train.epochs.foo={a: 1}", ["params.train.epochs=12 is a plain value"]),
        ("+train.epochs.foo=5,6", ["params.train.epochs=12 is a plain value"]),
    ],
)
def test_slips_of_one_word_are_named(word: str, expected: list[str]) -> None:
    message = refusal("experiment=digits", word)
    for text in expected:
        assert text in message


def test_null_may_be_filled_with_parameters(mine: Any) -> None:
    text = (
        "# @package _global_\nstudy: {name: n}\nobjective: {_target_: my.train}\nparams: {sched: "
        "null}\nbudget: {trials: 1}\n"
    )
    folder = mine(experiment__mine=text)
    filled = spec(
        folder,
        "experiment=mine",
        "+sched.gamma=0.5",
        "sched.gamma=0.7",
        "+sched.step=interval(0, 1)",
    )
    assert filled.params == {"sched": {"gamma": 0.7}}
    assert [searched.path for searched in filled.search] == ["sched.step"]


def test_an_argument_of_the_objective_is_added_with_a_plus() -> None:
    assert spec("experiment=digits", "+objective.foo=3").objective["foo"] == 3


def test_a_missing_package_line_is_named(mine: Any) -> None:
    folder = mine(experiment__mine="study: {name: x}\n", model__cnn="width: 3\n")
    assert (
        refusal(folder, "experiment=mine")
        == "experiment/mine.yaml: its first line must be '# @package _global_'"
    )
    assert "# @package params.model" in refusal(folder, "experiment=digits", "+model=cnn")


def test_the_groups_known_are_the_users_and_ours(mine: Any) -> None:
    assert launch(mine(model__cnn="width: 3\n")).groups > {"model", "sampler", "experiment"}


def test_a_config_file_that_changes_is_read_anew(mine: Any) -> None:
    for width in (3, 4):
        directory = mine(
            experiment__mine="# @package _global_\nobjective: {_target_: a.b}\n"
            f"params: {{w: {width}}}\n"
        ).removeprefix("--config-dir=")
        words = ["experiment=mine", "study.name=s", "budget.trials=1", "w=interval(0, 9)"]
        composed = compose("launch", words, config_dir=directory)
        assert composed.config.params.w == width


def test_bounds_are_what_each_metric_can_be() -> None:
    assert spec(*OWN).bounds == ()
    assert spec(*OWN, "study.bounds=[0,1]").bounds == ((0.0, 1.0),)
    assert spec(*OWN, "study.bounds=[null,0.5]").bounds == ((None, 0.5),)
    assert spec(*OWN, "study.bounds=[null,null]").bounds == ()
    two = ("study.direction=[maximize,minimize]", "study.metric=[acc,ms]")
    assert spec(*OWN, *two, "study.bounds=[[0,1],[0,null]]").bounds == ((0.0, 1.0), (0.0, None))
    assert spec(*OWN, *two, "study.bounds=[null,[0,null]]").bounds == ((None, None), (0.0, None))
    assert "a list of 2 pairs, one each for acc, ms" in refusal(*OWN, *two, "study.bounds=[0,1]")
    assert "write a list: study.bounds=[a,b]" in refusal(*OWN, "study.bounds=0,1")
    reversed_ = refusal(*OWN, "study.bounds=[1,0]")
    assert reversed_ == "study.bounds=[1,0]: the least value 1 must be less than the greatest 0"


@pytest.mark.parametrize("bounds", ["0.5", "[0]", "[a,1]", "[0,1,2]", "[0,true]", "[0,inf]"])
def test_bounds_are_two_numbers(bounds: str) -> None:
    message = refusal(*OWN, f"study.bounds={bounds}")
    assert message.startswith("study.bounds=")
    assert "must be the least and the greatest value, such as [0,1]" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults:\n- override /pruner: asha", "first line of experiment/mine.yaml must be '# @p"),
        ("study: {}\n# @package _global_\ndefaults:\n- override /pruner: asha", "first line of"),
        (
            "# @package _global_\ndefaults:\n- override pruner: asha",
            "Write it with a slash: 'override /pruner: …'",
        ),
        ("# @package _global_\ndefaults:\n- /pruner: asha", "write 'override /pruner: …'"),
        (
            "# @package _global_\ndefaults:\n- override /arch: mlp",
            "write '/arch: …' without override",
        ),
        (
            "# @package _global_\ndefaults: {override /pruner: asha}",
            "write defaults: [override /pruner: median]",
        ),
    ],
)
def test_a_defaults_list_in_the_wrong_place_is_told_the_right_one(
    mine: Any, text: str, expected: str
) -> None:
    assert expected in refusal(mine(experiment__mine=text), "experiment=mine")


SWEEPER = """# @package _global_
hydra:
  sweeper:
    params:
      lr: tag(log, interval(1e-4, 1e-1))
      +params.bs: 32,64
      kind: choice(a, b)
      depth: 2
      odd: interval(
"""


def test_a_block_of_hydras_sweeper_is_told_where_its_lines_go(mine: Any) -> None:
    lines = (
        'grid: {bs: [32, 64]}; search: {lr: "tag(log, interval(1e-4, 1e-1))", '
        'kind: "choice(a, b)", odd: "interval("}; params: {depth: 2}'
    )
    message = refusal(mine(experiment__mine=SWEEPER), *OWN, "experiment=mine")
    assert message.startswith("hydra.sweeper: launch runs the sweep itself")
    assert message.endswith(f"write instead {lines}")
    settings = "n_trials: 20\n    direction: maximize\n    params:\n"
    optuna = SWEEPER.replace("params:\n", settings, 1)
    message = refusal(mine(experiment__mine=optuna), *OWN, "experiment=mine")
    assert message.endswith(f"{lines}; budget.trials=20; study.direction=maximize")
    chosen = optuna.replace("hydra:\n", "defaults:\n- override /hydra/sweeper: optuna\nhydra:\n")
    assert refusal(mine(experiment__mine=chosen), *OWN, "experiment=mine") == message
    spaces = "# @package _global_\nhydra: {sweeper: {sampler: {seed: 1}, search_space: {a: 1}}}"
    message = refusal(mine(experiment__mine=spaces), *OWN, "experiment=mine")
    assert "sampler=tpe (or gp" in message
    assert "search: {…} for search_space" in message


@pytest.mark.parametrize(
    "word",
    [
        "objective=1,2",
        "objective=focal",
        "sampler=1,2",
        "+sampler=adam",
        "search.depth=3",
        "+search.depth=3",
        "search=3",
        "grid.x=1",
        "budget.epochs=3",
        "sampler.kind=a",
        "sampler.population_size=9",
        "worker.kind=1,2",
        "+objective.alpha=1,2",
        "objective.alpha=1",
        "study=large",
    ],
)
def test_a_parameter_called_like_a_section_gets_a_hint(word: str) -> None:
    key = word.lstrip("+").partition("=")[0]
    assert refusal(*OWN, word).endswith(f"; a parameter of that name is written params.{key}=…")


def test_parameters_may_be_called_like_sections() -> None:
    made = spec(*OWN, "++params.objective=focal", "+params.search.depth=1,2", "+params.sampler=a")
    assert made.params == {"objective": "focal", "sampler": "a"}
    assert made.grid == (Axis("search.depth", (1, 2)),)


def test_a_plus_plus_sets_what_may_or_may_not_be_there() -> None:
    made = spec("experiment=digits", "++optim.lr=0.5", "++new.key=1", "++new.axis=1,2")
    assert made.params["new"] == {"key": 1}
    assert made.params["optim"]["lr"] == 0.5
    assert made.grid[-1] == Axis("new.axis", (1, 2))


def test_whole_numbers_may_be_written_as_floats() -> None:
    words = ("budget.trials=1e6", "budget.max_failures_at_start=2e1", "study.seed=3.0")
    chosen = ("worker.count=1e0", "pruner=hyperband", "pruner.max_resource=9.0")
    composed = launch(*OWN, *words, *chosen)
    made = study_spec(composed)
    assert repr(made.budget.trials) == "1000000"
    assert repr(made.budget.max_failures_at_start) == "20"
    assert repr(made.seed) == "3"
    assert repr(composed.host.worker.count) == "1"
    assert isinstance(made.pruner, HyperbandSettings)
    assert repr(made.pruner.max_resource) == "9"
    assert refusal(*OWN, "budget.trials=2.5").endswith("=2.5: must be a whole number or null")
    assert "must be" in refusal(*OWN, "budget.max_failures_at_start=2.5")
    assert "must be a whole number" in refusal(*OWN, "budget.trials=1e400")
