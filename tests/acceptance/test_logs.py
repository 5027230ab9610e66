"""A trial's log: printed, followed through its attempts, or said to be elsewhere or empty."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import trial_log
from orchestrator.store import Store, Ticket
from tests.support.commands import Commands, line_with
from tests.support.studies import PLACE, RUNNER, end, spec, start, suggestion
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
NAME = "study.name=study"
QUICK = {"_target_": "tests.support.training.quick"}
SOON = ("worker.heartbeat_s=0.5", "worker.poll_s=0.1", "worker.idle_timeout_s=1")


def test_a_log_is_followed_to_the_end_of_the_trial_through_a_retry(
    commands: Commands, store: Store
) -> None:
    gate = commands.directory / "gate"
    talks = {"_target_": "tests.support.leaving.talks", "gate": str(gate)}
    runner = replace(RUNNER, retries=1)
    store.studies.launch(spec(cells=1, objective=talks, runner=runner))
    with commands.started("worker", *SOON):
        wait_until(
            lambda: store.reads.trials(store.reads.find("study").study_id, live_only=True), 60
        )
        with commands.started("logs", "-f", "trial=0", NAME) as logs:
            assert line_with(logs, "attempt 1 begins")
            gate.touch()
            out, _ = logs.communicate(timeout=60)
            assert logs.returncode == 0
    lines = out.splitlines()
    assert lines[0] == "attempt 1 ends"
    assert "attempt 1 retried: exception: ConnectionError: the first one fails; waiting" in out
    (host,) = {a.host for a in store.reads.attempts(store.reads.find("study").study_id, 0)}
    again = lines.index(f"attempt 2 on {host}")
    assert lines[again + 1 :] == ["attempt 2 begins", "attempt 2 ends"]

    # What has ended is printed, and nothing is waited for.
    assert commands.check("logs", "-f", "trial=0", "attempt=2", NAME).splitlines() == lines[-2:]
    first = commands.run("logs", "--follow", "trial=0", "attempt=1", NAME)
    assert first.stdout.splitlines()[:2] == ["attempt 1 begins", "attempt 1 ends"]
    assert first.stderr.startswith("attempt 1 retried: exception: ConnectionError")
    assert "waiting" not in first.stderr


def test_a_trial_that_printed_nothing_is_said_to_be_silent(
    commands: Commands, store: Store
) -> None:
    store.studies.launch(spec(cells=1, objective=QUICK))
    commands.check("worker", *SOON)
    for words in (("trial=0",), ("-f", "trial=0")):
        done = commands.run("logs", *words, NAME)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == "trial 0 printed nothing\n"


def test_what_there_is_not_to_print_is_said(commands: Commands, store: Store) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    lease = store.fleet.register(60)
    claim = start(store, lease, study)
    assert claim is not None
    for words in (("trial=0",), ("-f", "trial=0")):
        elsewhere = commands.run("logs", *words, NAME)
        assert elsewhere.returncode == 1
        assert "trial 0 runs on test-host: its log is there, at /nowhere/" in elsewhere.stderr
    end(store, claim)
    assert "trial 0 ran on test-host" in commands.run("logs", "trial=0", NAME).stderr
    assert "attempt=7: trial 0 has had 1 attempt" in (
        commands.run("logs", "trial=0", "attempt=7", NAME).stderr
    )
    assert "leave out --json" in commands.run("logs", "-f", "--json", "trial=0", NAME).stderr
    assert json.loads(commands.check("logs", "--json", "trial=0", NAME))["attempt"] == 1

    ticket = store.ledger.claim_one(lease, study, PLACE, ahead=True)
    assert isinstance(ticket, Ticket)
    store.ledger.create(ticket, suggestion(ticket), lease, PLACE, start=False)
    assert "trial 1 of study has not begun yet" in commands.run("logs", "trial=1", NAME).stderr


def test_a_log_that_is_cut_meanwhile_goes_on_after_what_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"line {k}\n".encode() for k in range(100)]
    path = tmp_path / "output.log"
    path.write_bytes(b"".join([*lines[:10], b"[orchestrator: 99 bytes cut here]\n", *lines[60:]]))
    with path.open("rb") as log:
        log.seek(trial_log._after_cut(log, b"".join(lines[60:80])[-trial_log._MARK :]))
        assert log.read() == b"".join(lines[80:])
        assert capsys.readouterr().err == ""
        assert trial_log._after_cut(log, lines[40]) == os.fstat(log.fileno()).st_size
    assert "some lines are missing here" in capsys.readouterr().err
