"""`orchestrator report` and `orchestrator.study(…).report()`, against a real database."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import orchestrator
from orchestrator.cli import main
from orchestrator.model import Failed
from orchestrator.search import open_storage
from orchestrator.stages import Inherited
from orchestrator.store import Store, WorkerLease
from tests.integration.test_stages import begun, chain, finish, second_of
from tests.support.studies import end, spec, start
from tests.support.told import fill, told

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["report", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def unmarked(text: str) -> str:
    """The words of a page or of Markdown."""
    bare = html.unescape(re.sub(r"<[^>]+>", "", text))
    return re.sub(r"\\(.)", r"\1", bare).replace("`", "")


def test_all_outputs_say_the_same_and_the_same_data_give_the_same_bytes(
    store: Store, tmp_path: Path, command: Command
) -> None:
    fill(store, told(per_cell=2), steps=8)
    code, out, _ = command("study.name=told")
    assert code == 0
    assert re.fullmatch(r"wrote told-report.html: \d+ statements, \d+ pictures\n", out)
    first = (tmp_path / "told-report.html").read_bytes()
    assert len(first) < 5_000_000

    page, words = unmarked(first.decode()), unmarked(command("--markdown")[1])
    data = json.loads(command("--json")[1])
    assert data["study"] == "told"
    assert len(data["statements"]) > 3
    for statement in data["statements"]:
        for key in ("text", "evidence", "advice"):
            said = statement[key].replace("`", "")
            assert said in page
            assert said in words
    assert len(data["cells"]) == 30
    counts = [row["trials"] for row in data["cells"]]
    assert counts == [2] * 30
    best = data["best"][0]
    stored = store.reads.trials(store.reads.find("told").study_id, number=best["trial"])[0]
    assert stored.values == (best["values"]["val_accuracy"],)
    assert f"optim.lr={stored.params['optim.lr']}" in best["overrides"]
    assert {"grid-best", "best-by-time", "learning-curves", "time-line"} <= {
        picture["key"] for picture in data["pictures"]
    }

    report = orchestrator.study("told", storage=store.url).report()
    assert report.data == data
    assert report.html().encode() == first
    assert report.save(tmp_path / "own.md").read_text(encoding="utf-8") == report.markdown()
    assert "srcdoc=" in report._repr_html_()


def test_a_study_that_plain_optuna_made_has_a_report_of_its_trials(
    store: Store, command: Command
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name="plain",
        storage=open_storage(store.url),
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    study.set_metric_names(["accuracy"])

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        if kind == "a":
            trial.suggest_int("depth", 1, 4)
        trial.report(x, 1)
        trial.report(2 * x, 2)
        if trial.number == 4:
            raise optuna.TrialPruned
        if trial.number == 5:
            raise ValueError("no")
        return x + (kind == "a")

    study.optimize(objective, n_trials=14, catch=ValueError)
    code, out, _ = command("study.name=plain", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["best"][0]["values"]["accuracy"] == pytest.approx(study.best_value)
    assert data["best"][0]["params"]["lr"] == pytest.approx(study.best_params["lr"])
    assert "overrides" not in data["best"][0]
    assert data["facts"]["state"] == "12 complete, 1 pruned, 1 failed"
    assert any("Plain Optuna made this study" in line for line in data["left_out"])
    assert not any(one["advice"] for one in data["statements"])
    assert not any("the sampler picks" in picture["caption"] for picture in data["pictures"])
    keys = {picture["key"] for picture in data["pictures"]}
    assert {"slice-1", "best-by-trials", "learning-curves", "parallel"} <= keys
    assert "time-line" not in keys
    assert json.loads(command("--json")[1])["study"] == "plain"  # there is no other


def test_of_a_chain_the_newest_stage_with_results_and_what_each_inherited(
    store: Store, lease: WorkerLease, command: Command
) -> None:
    declared = chain()
    coarse = begun(store.stages.launch(declared, 0, Inherited()))
    finish(store, lease, coarse.study_id)
    fine = begun(store.stages.go_on(declared, 1, second_of(store, declared, x=0.25)))
    data = json.loads(command("study.name=chain", "--json")[1])
    assert (data["study"], data["facts"]["stage"]) == ("chain.first", "1 of 3 of chain: first")
    first, second, third = data["stages"]
    assert (first["trials"], first["budget"], first["best_trial"], first["best"]) == (2, 2, 1, 0.5)
    assert (second["trials"], second["state"], second["best_trial"]) == (0, "active", None)
    assert "frozen, from trial 1 of chain.first and before: a=1" in second["inherited"]
    assert (third["state"], third["study"]) == ("not begun", None)
    finish(store, lease, fine.study_id)
    later = json.loads(command("study.name=chain", "--json")[1])
    assert later["study"] == "chain.second"
    assert "a=1" in later["best"][0]["overrides"], "what an earlier stage froze"
    assert [row["best"] for row in later["stages"]] == [0.5, 0.5, None]


def test_mistakes_are_explained_in_one_line_and_write_nothing(
    store: Store, tmp_path: Path, command: Command
) -> None:
    code, _, error = command()
    assert (code, "no study in this database yet" in error) == (2, True)
    store.studies.launch(spec("digits"))
    for words, exit_code, message in (
        (["study.name=digit"], 2, "has no study of this name (did you mean 'digits'?)"),
        (["out="], 2, "out=: needs a file name"),
        (["--json", "--markdown"], 2, "--json and --markdown exclude each other"),
        (["--json", "out=x.html"], 2, "leave out out=x.html"),
        (["out=none/x.html"], 1, "out=none/x.html: No such file or directory"),
        (["output=x.html"], 2, "did you mean 'out'"),
    ):
        code, said, error = command(*words)
        assert (code, said) == (exit_code, ""), words
        assert message in error
        assert len(error.splitlines()) == 1
    assert list(tmp_path.glob("*.html")) == []


def test_a_study_without_a_trial_and_one_of_failures_have_a_report(
    store: Store, lease: WorkerLease, command: Command
) -> None:
    study = store.studies.launch(spec("<new>/study", cells=2)).study_id
    code, out, _ = command()
    assert (code, out) == (0, "wrote new-study-report.html: 1 statement, 1 picture\n")
    attempt = start(store, lease, study)
    assert attempt is not None
    end(store, attempt, Failed("exception", "ValueError: <no> 17\nlog: x"))
    data = json.loads(command("--json")[1])
    (failure,) = data["failures"]
    assert failure == {
        "trials": 1,
        "first_trial": 0,
        "cells": 1,
        "message": "ValueError: <no> 17",
    }
    assert "ValueError: &lt;no&gt; 17" in command("out=-")[1]


def test_a_grid_of_thousands_of_cells_is_cut_with_a_word(
    store: Store, lease: WorkerLease, command: Command
) -> None:
    study = store.studies.launch(spec(cells=1000)).study_id
    for _ in range(3):
        attempt = start(store, lease, study)
        assert attempt is not None
        end(store, attempt)
    data = json.loads(command("--json")[1])
    assert any("1,000 cells" in line for line in data["left_out"])
    assert data["cells"][0]["best"] == 2.0
    assert len(data["cells"]) == 100
    assert len(command("out=-")[1]) < 2_500_000
