"""What others see of a study that is extended after they have read it: plain Optuna with its cache,
optuna-dashboard, and a sampler of another process.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import optuna
from optuna_dashboard import wsgi

from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.store import Attempt, Store
from tests.support.revised import Suggesting, extended
from tests.support.studies import spec
from tests.support.waiting import wait_until

LR = Searched("lr", "float", 1e-4, 1e-1, log=True)
ACT = Searched("act", "categorical", choices=("relu", "gelu"))
WD = Searched("wd", "float", 0.0, 0.1)
PLAIN = """
import sys
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2)
study = optuna.load_study(study_name="study", storage=sys.argv[1], sampler=sampler)

def objective(trial):
    trial.suggest_int("a", 32, 256, log=True)
    act = trial.suggest_categorical("act", ["relu", "gelu", "silu"])
    return trial.suggest_float("lr", 1e-5, 1.0, log=True) + trial.suggest_float("wd", 0, 0.1)

open_trial = study.ask()
open_trial.suggest_float("lr", 1e-4, 1e-1, log=True)
print(len(study.get_trials()), flush=True)
sys.stdin.readline()
study.tell(open_trial, 1.0)
study.optimize(objective, n_trials=2)
print(len(study.get_trials()), study.trials[0].params["act"], study.best_value > 0, flush=True)
"""


def declared(**changes: Any) -> StudySpec:
    made = spec(
        grid=(Axis("a", (32, 64)),),
        search=(LR, ACT),
        params={"a": 32, "lr": 0.01, "act": "relu", "wd": 0.0},
        budget=Budget(6, 2, max_failures_at_start=None),
    )
    return replace(made, **changes)


def dashboard(url: str, path: str) -> Any:
    """What optuna-dashboard answers; it keeps what it has read in the process."""
    app = wsgi(optuna.storages.RDBStorage(url))

    def get() -> Any:
        said: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input": io.BytesIO()}
        environ |= {"SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.errors": sys.stderr}
        body = b"".join(app({**environ, "wsgi.url_scheme": "http"}, lambda s, *_: said.append(s)))
        assert said == ["200 OK"]
        return json.loads(body)

    return get


def searched(trials: list[optuna.trial.FrozenTrial], name: str) -> set[str]:
    return {str(t.distributions[name]) for t in trials if name in t.distributions}


def test_readers_that_had_read_before_stay_right_and_new_ones_see_one_distribution_a_name(
    store: Store,
) -> None:
    study = store.studies.launch(declared()).study_id
    worker = Suggesting(store, study)
    worker.run(3)
    ticket = worker.claim()
    assert ticket is not None
    running = worker.create(ticket)
    assert isinstance(running, Attempt)

    cached = optuna.load_study(study_name="study", storage=store.url)
    before = [trial.params for trial in cached.trials]
    shown = dashboard(store.url, f"/api/studies/{study}")
    assert {p["name"] for p in shown()["union_search_space"]} == {"a", "act", "lr"}
    plain = subprocess.Popen(
        [sys.executable, "-c", PLAIN, store.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert plain.stdout is not None
    assert plain.stdout.readline() == "5\n"

    wider = declared(
        grid=(Axis("a", (32, 64, 256)),),
        search=(
            replace(LR, low=1e-5, high=1.0),
            replace(ACT, choices=("silu", "relu", "gelu")),
            WD,
        ),
        budget=Budget(9, 2, max_failures_at_start=None),
    )
    assert extended(store, wider).changes[-2:] == ("1 cell added", "budget.trials: 6 -> 9")
    worker.end(running)
    worker.run(2)

    # one that begins now: every trial, ours and the other's that is open, has the same
    fresh = optuna.load_study(study_name="study", storage=store.url)
    for name, distribution in (
        ("a", "IntDistribution(high=256, log=True, low=32, step=1)"),
        ("lr", "FloatDistribution(high=1.0, log=True, low=1e-05, step=None)"),
        ("act", "CategoricalDistribution(choices=('relu', 'gelu', 'silu'))"),
        ("wd", "FloatDistribution(high=0.1, log=False, low=0.0, step=None)"),
    ):
        assert searched(fresh.trials, name) == {distribution}
    ours = [trial for trial in fresh.trials if trial.number != 4]
    assert all(trial.params.keys() == {"a", "lr", "act", "wd"} for trial in ours)
    assert [trial.params["wd"] for trial in ours[:4]] == [0.0] * 4
    # one that had read: values as they are, and what had ended with the distributions it had
    assert all(
        t.params.items() >= had.items() for t, had in zip(cached.trials, before, strict=False)
    )
    assert [t.params for t in cached.trials[:3]] == before[:3]
    assert [t.values for t in cached.trials] == [t.values for t in fresh.trials]
    assert len(searched(cached.trials, "act")) == 2
    assert searched(cached.trials[3:4], "act") == searched(fresh.trials, "act"), "it was running"
    # a sampler of another process goes on, and so do we, with what it adds
    said, _ = plain.communicate("go on\n", timeout=60)
    assert plain.returncode == 0
    assert said == f"9 {before[0]['act']} True\n"
    worker.run()
    assert store.reads.find("study").reason == "budget spent"
    # the dashboard reads what it shows, some seconds later
    names = {"a", "act", "lr", "wd"}
    wait_until(lambda: {p["name"] for p in shown()["trials"][0]["params"]} == names, 20)
    assert {p["name"] for p in shown()["union_search_space"]} == names
    assert store.doctor.examine().findings == ()
