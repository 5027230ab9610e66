"""`orchestrator landscape`: from what trials stored to one page, against a real database."""

from __future__ import annotations

import io
import json
import math
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.config import WorkerConfig
from orchestrator.model import Completed, Report
from orchestrator.runner.files.artifacts import ArtifactPlace
from orchestrator.store import Store, WorkerLease
from orchestrator.worker.worker import Worker
from tests.support.studies import spec, start

pytestmark = pytest.mark.xdist_group("torch")  # one process imports it, not all


def stored(side: int = 3, *, rise: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A landscape as its file has it: a bowl in a square of `side` points."""
    alphas = [2 * i / (side - 1) - 1 for i in range(side)]
    return {
        "format": "orchestrator.loss_landscape",
        "version": 1,
        "alphas": alphas,
        "losses": [[0.5 + rise * (x * x + y * y) for y in alphas] for x in alphas],
        "batch_norm": "stored",
        "seed": 0,
        "cosine": 0.0,
        "weights": 10,
        "batches": 2,
        "model": "0123456789abcdef",
        **changes,
    }


@pytest.fixture
def command(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["landscape", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def trial_with(
    store: Store, lease: WorkerLease, place: Path, *files: tuple[str, Any]
) -> tuple[str, ...]:
    """A complete trial of the study that has these artifacts; their ids."""
    claim = start(store, lease, store.reads.find("study").study_id)
    assert claim is not None
    records = {}
    for name, content in files:
        key = str(uuid.uuid4())
        ArtifactPlace(str(place)).write(key, io.BytesIO(json.dumps(content).encode()))
        records[key] = {
            "artifact_id": key,
            "filename": name,
            "mimetype": "application/json",
            "encoding": None,
        }
        store.ledger.report(claim, Report({}, {}, artifacts={key: records[key]}))
    store.ledger.finish(claim, Completed((0.25,)), Report(artifacts=records))
    return tuple(records)


def test_trials_that_store_their_landscape_are_shown_side_by_side(
    store: Store, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    store.studies.launch(
        spec(cells=2, objective={"_target_": "tests.support.leaving.maps_its_loss"})
    )
    settings = WorkerConfig(devices=["cpu"], threads=1, max_trials=2)
    assert Worker(store, settings, tmp_path / "runs", artifacts=f"{tmp_path}/artifacts").run() == 2

    code, out, _ = command("study.name=study", "trials=1,0", "out=page.html", "--json")
    assert code == 0
    data = json.loads(out)
    assert (data["study"], data["out"]) == ("study", "page.html")
    assert [trial["trial"] for trial in data["trials"]] == [1, 0]
    for trial in data["trials"]:
        assert trial["points"] == trial["evaluated"] == 25  # the last one that was stored
        assert trial["loss"] == next(iter(trial["values"].values()))  # bit for bit
        assert 0 < trial["sharpness"]["mean"] < trial["sharpness"]["maximum"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)  # it needs no network
    assert re.findall(r"<th>(trial \d)</th>", page) == ["trial 1", "trial 0"]
    assert page.count('"type":"surface"') >= 2


def test_the_page_and_the_lines_tell_trials_apart(
    store: Store,
    lease: WorkerLease,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    store.studies.launch(spec(cells=2, trials=4))
    place = tmp_path / "elsewhere"
    trial_with(store, lease, place, ("landscape.json", stored(rise=9)), ("x.json", stored()))
    trial_with(store, lease, place, ("x.json", stored(5, rise=2)), ("landscape.json", stored()))
    words = ("trials=0,1", "out=a.html", f"paths.artifacts={place}")
    code, out, _ = command(*words)
    assert code == 0
    assert out.splitlines()[-1] == "wrote a.html"
    assert [line.partition(":")[0] for line in out.splitlines()[:2]] == ["trial 0", "trial 1"]
    assert "loss 0.5, 0.5 filter lengths away higher by" in out
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert '<tr class="first differs"><th>a</th><td>0</td><td>1</td></tr>' in page
    titles = [json.loads(f'"{text}"') for text in re.findall(r'"text":"(trial [^"]*)"', page)]
    assert [title.partition("<br>")[0] for title in titles] == ["trial 0", "trial 1"]
    assert titles[0].startswith("trial 0<br>a=0")
    assert "<th>batch-norm statistics</th><td>stored</td><td>stored</td>" in page

    code, out, _ = command(*words, "artifact=x.json", "--json")
    assert [trial["points"] for trial in json.loads(out)["trials"]] == [9, 25]
    trial_with(store, lease, place, ("line.json", stored(losses=[1.0, 0.5, 1.0])))
    code, out, _ = command("trials=2", "out=c.html", "artifact=line.json", words[2], "--json")
    assert [trial["dimensions"] for trial in json.loads(out)["trials"]] == [1]
    assert '"name":"trial 2"' in (tmp_path / "c.html").read_text(encoding="utf-8")
    losses = [[None, None, None], [0.5, 0.5, None], [None, "inf", None]]
    trial_with(store, lease, place, ("part.json", stored(losses=losses)))
    code, out, _ = command("trials=3", "out=b.html", "artifact=part.json", words[2])
    assert code == 0
    assert "trial 3: loss 0.5, 3 of 9 points evaluated" in out


def test_each_mistake_is_one_error_that_names_it(
    store: Store,
    lease: WorkerLease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    store.studies.launch(spec(cells=3, trials=7))
    place = tmp_path / "artifacts"
    (key,) = trial_with(store, lease, place, ("landscape.json", stored()))
    trial_with(store, lease, place)
    trial_with(store, lease, place, ("landscape.json", stored(batch_norm="recomputed")))
    trial_with(store, lease, place, ("landscape.json", stored(version=9)), ("n.png", 1))
    (gone,) = trial_with(store, lease, tmp_path / "far", ("landscape.json", stored()))
    out = "out=page.html"
    for words, exit_code, message in (
        ((out,), 2, "landscape needs the numbers of trials: orchestrator landscape"),
        (("trials=0",), 2, "out= needs a file name"),
        (("trials=0", out, "artifact="), 2, "artifact= needs a file name"),
        (("trials=0;1", out), 2, "trials=0;1: must be numbers of trials, separated by commas"),
        (("trials=0,1,0", out), 2, "give each trial once, not 0 twice"),
        (
            ("trial=0", out),
            2,
            "trial=0: landscape has no word of this name (did you mean 'trials'?)",
        ),
        (("trials=99999999999", out), 2, "study study has no trial 99999999999"),
        (("trials=0,99", out), 2, "study study has no trial 99 run by this program"),
        (("trials=1,0", out), 2, "trial 1 of study has no artifact landscape.json (it has none)"),
        (("trials=3", out, "artifact=a"), 2, "no artifact a (it has landscape.json, n.png)"),
        (("trials=3", out), 1, "trial 3: its artifact landscape.json"),
        (("trials=3", out), 1, "version 9; this program reads 1"),
        (("trials=3", out, "artifact=n.png"), 1, "this is not a loss landscape"),
        (("trials=0,2", out), 1, "batch_norm is 'stored' for 'trial 0' and 'recomputed' for"),
        (("trials=4", out), 1, f"landscape.json ({gone}) is not in {place}; the trial ran on"),
        (("trials=0", "out=none/page.html"), 1, "out=none/page.html: No such file"),
        (("study.name=studio", "trials=0", out), 2, "study.name=studio: the database has no study"),
    ):
        code, said, error = command(*words)
        assert (code, said) == (exit_code, ""), words
        assert error.startswith("orchestrator: error: ")
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()
    assert key in command("trials=0", out, "--json")[1]


def test_values_that_json_lacks_and_names_that_html_would_read(
    store: Store,
    lease: WorkerLease,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    store.studies.launch(spec(cells=1, metrics=("<b>",)))
    losses = [["inf", 1.0, 1.0], [1.0, 0.5, 1.0], [1.0, 1.0, "nan"]]
    trial_with(store, lease, tmp_path / "artifacts", ("landscape.json", stored(losses=losses)))
    code, out, _ = command("trials=0", "out=page.html", "--json")
    assert code == 0
    mean = json.loads(out)["trials"][0]["sharpness"]["mean"]
    assert mean in ("inf", "nan") or math.isfinite(mean)
    assert "<th>&lt;b&gt;</th>" in (tmp_path / "page.html").read_text(encoding="utf-8")
