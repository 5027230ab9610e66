"""What `trials` lists, on a real database: filtered, sorted and cut by the server."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from orchestrator.cli import main
from orchestrator.model import Completed, Direction, Failed, Pruned, Report, StudySpec
from orchestrator.store import STATES, Attempt, Prepared, Selection, Store, Ticket, WorkerLease
from orchestrator.store.listing import AT_ONCE
from tests.support.commands import ROOT, Commands
from tests.support.large import complete
from tests.support.plans import watched
from tests.support.studies import PLACE, spec, start, suggestion, take

Trials = Callable[..., str]


@pytest.fixture
def trials(
    database_url: str,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Trials:
    """Runs the command; returns what it printed, first to standard output."""
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))

    def run(*words: str) -> str:
        assert main(["trials", *words]) == 0
        printed = capsysbinary.readouterr()
        return (printed.out + printed.err).decode()

    return run


@pytest.fixture
def study(store: Store, lease: WorkerLease) -> int:
    """One trial in each state, and one that broke a constraint with the best value of all."""
    study_id = store.studies.launch(spec(cells=8, per_cell=2)).study_id
    outcomes: list[tuple[Completed | Pruned | Failed, Report]] = [
        (Completed((1.0,)), Report()),
        (Completed((3.0,)), Report()),
        (Completed((2.0,)), Report()),
        (Completed((9.0,)), Report(constraints={"c": 1.0})),
        (Pruned(2), Report({1: 0.25, 2: 0.5})),
        (Failed("exception", "ValueError: no\nlog: /nowhere"), Report()),
    ]
    for outcome, report in outcomes:
        claim = start(store, lease, study_id)
        assert claim is not None
        store.ledger.finish(claim, outcome, report)
    running = start(store, lease, study_id)
    assert running is not None
    store.ledger.report(running, Report({4: 0.75}))
    given_back = start(store, store.fleet.register(60), study_id)
    ticket = store.ledger.claim_one(lease, study_id, PLACE, ahead=True)
    assert given_back is not None
    assert isinstance(ticket, Ticket)
    ahead = store.ledger.create(ticket, suggestion(ticket), lease, PLACE, start=False)
    assert isinstance(ahead, Prepared)
    store.ledger.release(given_back, "told to stop")
    return study_id


def listed(store: Store, study_id: int, **words: Any) -> list[int]:
    selection = Selection(store.reads.spec(study_id).directions, **words)
    return [t.number for batch in store.listing.each(study_id, selection) for t in batch]


def test_the_best_come_first_then_what_broke_a_constraint_then_the_rest(
    store: Store, study: int
) -> None:
    assert listed(store, study, states=("complete",)) == [1, 2, 0, 3]
    assert listed(store, study, states=("complete",), reverse=True) == [3, 0, 2, 1]
    assert listed(store, study, states=("complete",), most=2) == [1, 2]
    everything = listed(store, study)
    assert everything == [1, 2, 0, 3, 4, 5, 6, 7, 8]
    assert listed(store, study, most=5) == everything[:5]


def test_each_state_lists_its_trials(store: Store, study: int) -> None:
    by_state = {state: listed(store, study, states=(state,)) for state in STATES}
    assert by_state == {
        "complete": [1, 2, 0, 3],
        "pruned": [4],
        "failed": [5],
        "running": [6],
        "prepared": [8],
        "waiting": [7],
    }
    assert store.listing.counts(study) == {state: len(found) for state, found in by_state.items()}


def test_trials_are_sorted_both_ways(store: Store, study: int) -> None:
    for sort in ("number", "ended"):
        found = listed(store, study, sort=sort, states=("complete", "pruned", "failed"))
        assert found == [0, 1, 2, 3, 4, 5]
        assert listed(
            store, study, sort=sort, reverse=True, states=("complete", "pruned", "failed")
        ) == list(reversed(found))
    selection = Selection(("maximize",), sort="seconds", states=("complete", "pruned"))
    took = [t.seconds or 0 for batch in store.listing.each(study, selection) for t in batch]
    assert len(took) == 5
    assert took == sorted(took)


def test_a_trial_is_shown_with_what_is_known_of_it(store: Store, study: int) -> None:
    selection = Selection(("maximize",), sort="number")
    found = [t for batch in store.listing.each(study, selection) for t in batch]
    assert [t.values for t in found[:4]] == [(1.0,), (3.0,), (2.0,), (9.0,)]
    assert [t.feasible for t in found[:4]] == [True, True, True, False]
    assert (found[4].step, found[4].last) == (2, 0.5)
    assert (found[5].kind, (found[5].failure or "")[:14]) == ("exception", "ValueError: no")
    assert (found[6].step, found[6].last, found[6].ended) == (4, 0.75, None)
    assert found[0].params == {"a": 0, "x": 0.5}
    assert found[0].host == PLACE.host


def test_a_cell_lists_its_trials_alone(store: Store, lease: WorkerLease, trials: Trials) -> None:
    study_id = store.studies.launch(spec(cells=2, per_cell=2)).study_id
    while (claim := start(store, lease, study_id)) is not None:
        store.ledger.finish(claim, Completed((float(claim.number),)), Report())
    of_one = [t.number for t in store.reads.trials(study_id) if t.cell == 1]
    assert listed(store, study_id, cells=(1,), sort="number") == of_one
    found = json.loads(trials("cell=a=1", "sort=number", "--json"))
    assert [t["trial"] for t in found["trials"]] == of_one
    assert found["matching"] == 2


def test_the_front_comes_first_where_there_are_several_objectives(
    store: Store, lease: WorkerLease, trials: Trials
) -> None:
    directions: tuple[Direction, ...] = ("maximize", "minimize")
    study_id = store.studies.launch(
        replace(spec(cells=5), directions=directions, metrics=("accuracy", "cost"))
    ).study_id
    for values in ((0.9, 5.0), (0.8, 7.0), (0.7, 1.0), (0.95, 9.0), (0.6, 1.0)):
        claim = start(store, lease, study_id)
        assert claim is not None
        store.ledger.finish(claim, Completed(values), Report())
    found = json.loads(trials("--json"))["trials"]
    assert [(t["trial"], t["front"]) for t in found] == [
        (3, True),
        (0, True),
        (2, True),
        (1, False),
        (4, False),
    ]
    assert found[0]["values"] == {"accuracy": 0.95, "cost": 9.0}
    assert "Pareto front" in trials()


def test_a_csv_is_read_back_as_it_was(store: Store, lease: WorkerLease, trials: Trials) -> None:
    study_id = store.studies.launch(spec(cells=3)).study_id
    odd = 'a "quoted", text\nwith a line break'
    for values in ({"a": 0, "x": 0.1, "deep": [1, None]}, {"a": 1, "x": 1e-07, "text": odd}):
        ticket = take(store, lease, study_id)
        assert ticket is not None
        made = store.ledger.create(ticket, replace(suggestion(ticket), values=values), lease, PLACE)
        assert isinstance(made, Attempt)
        store.ledger.finish(made, Completed((float("-inf"),)), Report())
    text = trials("--csv", "sort=number")
    assert text.count("\r\n") == 3
    first, second = csv.DictReader(io.StringIO(text, newline=""))
    assert list(first)[:7] == [
        "trial",
        "state",
        "cell",
        "values.value",
        "params.a",
        "params.x",
        "params.deep",
    ]
    assert (first["params.deep"], second["params.deep"]) == ("[1,null]", "")
    assert second["params.text"] == odd
    assert float(second["params.x"]) == 1e-07
    assert first["values.value"] == "-inf"
    assert [t["values"] for t in json.loads(trials("--json"))["trials"]] == [{"value": "-inf"}] * 2


def test_an_empty_list_is_said_in_a_sentence(store: Store, study: int, trials: Trials) -> None:
    cell = store.reads.trials(study, number=8)[0].cell
    none = f"cell a={cell} of study study has no failed trial: there is 1 prepared"
    assert trials(f"cell={cell}", "state=failed").startswith(none)
    assert trials(f"cell={cell}", "state=failed", "--csv").endswith(
        f"{none} (state=all shows it)\n"
    )
    assert json.loads(trials(f"cell={cell}", "state=failed", "--json")) == {
        "study": "study",
        "matching": 0,
        "trials": [],
    }
    store.studies.launch(spec("empty"))
    assert trials("study.name=empty") == "study empty has no trial yet\n"
    assert trials("study.name=empty", "cell=2") == "cell a=2 of study empty has no trial yet\n"


def test_the_table_says_how_many_there_are_and_why_trials_failed(
    study: int, trials: Trials
) -> None:
    shown = trials("n=2")
    assert shown.startswith("study: 2 of 4 complete trials, the best first\n")
    assert shown.endswith("n=all shows all of them\n")
    assert "ValueError" in trials("state=failed")
    assert "step 4: 0.75" in trials("state=running")
    assert "waits for a worker" in trials("state=waiting")
    assert "breaks a constraint" in trials("n=all")
    assert len(re.findall(r"(?m)^trial ", trials("state=all"))) == 1, "one header"


def test_a_terminal_gets_lines_that_fit_it(
    store: Store, lease: WorkerLease, tmp_path: Path
) -> None:
    study_id = store.studies.launch(spec(cells=1)).study_id
    ticket = take(store, lease, study_id)
    assert ticket is not None
    values = {"a": 0, "x": 0.5, **{f"optim.p{k}": "word" * 3 for k in range(9)}}
    made = store.ledger.create(ticket, replace(suggestion(ticket), values=values), lease, PLACE)
    assert isinstance(made, Attempt)
    store.ledger.finish(made, Completed((1.0,)), Report())
    commands = Commands(store.url, tmp_path)
    screen, terminal = pty.openpty()
    try:
        environment = commands.environment() | {"COLUMNS": "60", "TERM": "xterm"}
        process = subprocess.Popen(
            commands.line("trials"), cwd=ROOT, env=environment, stdout=terminal, stdin=terminal
        )
        assert process.wait(timeout=60) == 0
        text = os.read(screen, 1 << 16).decode()
    finally:
        os.close(screen)
        os.close(terminal)
    first, header, line, left_out = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert first == "study: 1 complete trial, the best first"
    assert len(header) <= 60
    assert len(line) <= 60
    assert left_out.startswith("no room for optim.p")
    assert "\x1b[1m" in text, "the header is bold"


def test_only_the_listed_trials_are_looked_up_and_a_long_list_comes_in_parts(
    store: Store, lease: WorkerLease, trials: Trials
) -> None:
    count = 2 * AT_ONCE + 10
    study: StudySpec = spec(cells=count, trials=count)
    study_id = store.studies.launch(study).study_id
    complete(store.url, study_id, 0, count - 1)
    connection = psycopg2.connect(store.url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute("VACUUM ANALYZE")
    connection.close()

    selection = Selection(("maximize",), ("complete",), most=20)
    store.rest()
    with watched(store) as ran:
        (best,) = store.listing.each(study_id, selection)
    assert [t.number for t in best] == list(range(count - 1, count - 21, -1))
    (one,) = [r for r in ran if "trial_values" in r.sql]
    assert not one.scanned() & {"attempt", "cell"}
    whole = len([kind for kind, table in one.nodes if table == "trial"])
    assert whole == 2, "once to sort them, and once for those that are listed"

    parts = list(store.listing.each(study_id, Selection(("maximize",), sort="number")))
    assert [len(part) for part in parts] == [AT_ONCE, AT_ONCE, 10]
    assert [t.number for part in parts for t in part] == list(range(count))
    assert trials("--csv").count("\r\n") == count + 1
