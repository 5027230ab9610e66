"""The database goes back in time: a standby that lagged is promoted, a backup is started. Nothing
of the lost time counts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.launch_loop import FollowedStudy
from orchestrator.cli.screen import View
from orchestrator.config import WorkerConfig
from orchestrator.errors import LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.model import Completed, Param, Report, StudySpec
from orchestrator.runner import AttrSet, Reported, Runner
from orchestrator.search import Search
from orchestrator.store import Attempt, Prepared, Silent, SlotOffer, Store, Ticket, TimeLine
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.worker.contact import Contact
from orchestrator.worker.failover import Failover
from orchestrator.worker.shutdown import Draining
from orchestrator.worker.studies import Served
from orchestrator.worker.unwritten import Unwritten
from tests.support.invariants import plain_trials, query
from tests.support.own_server import OwnServer
from tests.support.studies import PLACE, end, spec, start, suggestion, take


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer() as running:
        yield running


@pytest.fixture
def own(server: OwnServer) -> Iterator[Store]:
    """On `server`, which each test finds running and with studies of others; those that take no
    server share one with all.
    """
    opened = Store(server.url)
    yield opened
    opened.rest()


def test_what_was_handed_out_in_the_lost_time_gives_no_right_to_what_is_handed_out_after_it(
    server: OwnServer, own: Store
) -> None:
    study = own.studies.launch(spec("lost", cells=4)).study_id
    copy = server.backup()
    lost = [own.fleet.register(60) for _ in range(3)]
    offer = SlotOffer("host", "GPU", 0, "H100")
    assert own.fleet.claim_slot(lost[0], [offer]) is not None
    lost_claims = [must(start(own, lease, study)) for lease in lost]
    own.rest()
    server.fail_over(copy)

    again = [own.fleet.register(60) for _ in range(3)]
    assert {lease.worker_id for lease in lost} & {lease.worker_id for lease in again}, (
        "ids come again"
    )
    assert own.fleet.claim_slot(again[0], [offer]) == offer
    claims = [must(start(own, lease, study)) for lease in again]
    assert {claim.number for claim in claims} == {claim.number for claim in lost_claims}, (
        "and so do numbers"
    )
    assert not {claim.token for claim in claims} & {claim.token for claim in lost_claims}, (
        "but no token"
    )

    for lease, claim in zip(lost, lost_claims, strict=True):
        with pytest.raises(LeaseLostError):
            own.fleet.renew(lease, "training")
        with pytest.raises(LeaseLostError):
            own.ledger.report(claim, Report({0: 9.0}, {}))
        with pytest.raises(LeaseLostError):
            end(own, claim, Completed((9.0,)))
        own.ledger.release(claim, "it may not")
        own.fleet.release_slot(lease)
        assert not own.ledger.evict(
            Silent(lease.worker_id, dead=True, reason="died", token=lease.token)
        )
    assert own.fleet.held(["host"]) == {("host", "GPU", 0)}
    for lease, claim in zip(again, claims, strict=True):
        own.fleet.renew(lease, "training")
        end(own, claim, Completed((1.0,)))
    assert own.doctor.examine("lost").findings == ()


def test_a_sampler_learns_what_news_told_again_under_the_same_numbers(
    server: OwnServer, own: Store
) -> None:
    study = own.studies.launch(spec("news", cells=4)).study_id
    lease = own.fleet.register(60)
    own.fleet.renew(lease, "testing")
    copy = server.backup()
    for _ in range(3):
        assert start(own, lease, study) is not None
    known = own.reads.spec(study)
    served = Served(own.reads.find("news"), known, Search(known), cast(Runner, None))
    served.learn(own)
    assert served.cursor == 3
    own.rest()
    server.fail_over(copy)
    end(own, must(start(own, lease, study)))
    assert start(own, lease, study) is not None
    served.learn(own)
    assert states(served) == ["RUNNING"] * 3, (
        "it is at position 3, as the study is, and hears of nothing"
    )
    served.forget()
    served.learn(own)
    assert states(served) == ["COMPLETE", "RUNNING"]


def states(served: Served) -> list[str]:
    return [trial.state.name for trial in served.search._mirror.get_all_trials(0)]


def must(claim: Attempt | None) -> Attempt:
    assert claim is not None
    return claim


@pytest.mark.parametrize("promoted", [False, True], ids=["copy", "promoted"])
def test_a_worker_notices_and_says_that_the_database_went_back(
    server: OwnServer, own: Store, promoted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    contact = contact_of(own)
    contact.renew()
    copy = server.backup()
    for _ in range(5):
        contact.renew()
    own.rest()
    server.fail_over(copy, promoted=promoted)
    with caplog.at_level(logging.WARNING):
        contact.renew()
    assert contact.anew == 1
    why = "timeline 00000001 became 00000002" if promoted else "its state is older than before"
    (said,) = [record.message for record in caplog.records if "went back in time" in record.message]
    assert why in said
    contact.renew()
    assert contact.anew == 1, "once"


def test_a_restart_that_loses_nothing_is_not_called_a_failover(
    server: OwnServer, own: Store, caplog: pytest.LogCaptureFixture
) -> None:
    contact, watch = contact_of(own), Failover(own)
    contact.renew()
    assert watch.note(own.reads.server()) is None
    own.rest()
    server.restart("fast")
    with caplog.at_level(logging.WARNING):
        contact.renew()
    assert contact.anew == 1, "what is in memory is read again, to be sure"
    assert "went back" not in caplog.text
    assert watch.changed(own.reads.server())
    assert watch.note(own.reads.server()) is None
    assert not watch.changed(own.reads.server())


def test_it_is_said_later_if_the_server_went_away_again_before_it_told_its_time_line() -> None:
    first = datetime.now(UTC)
    lines = iter([TimeLine(1, "00000001"), None, TimeLine(1, "00000002")])

    def time_line() -> TimeLine:
        line = next(lines)
        if line is None:
            raise StoreUnavailableError("away")
        return line

    watch = Failover(cast("Store", SimpleNamespace(reads=SimpleNamespace(time_line=time_line))))
    assert watch.note(first) is None
    second = first + timedelta(seconds=9)
    assert watch.changed(second)
    assert watch.note(second) is None
    assert "timeline 00000001 became 00000002" in str(watch.note(second))
    assert watch.note(second) is None


def follow(store: Store, launched: StudySpec, said: list[str]) -> FollowedStudy:
    """What a launch that has just launched the study follows it by; `said` gets what it tells."""
    row = store.reads.find(launched.name)
    call = cast(Call, SimpleNamespace(switches=frozenset()))
    view = cast(View, SimpleNamespace(say=said.append, most_cells=100))
    return FollowedStudy(call, store, row, launched, view, Failures(store, row))


def test_a_launch_that_was_lost_is_made_once_more(server: OwnServer, own: Store) -> None:
    first = spec("followed", cells=2)
    copy = server.backup()
    own.studies.launch(first)
    said: list[str] = []
    followed = follow(own, first, said)
    followed.keep_launched()
    assert followed.progress().total == 2
    own.rest()
    server.fail_over(copy)
    followed.keep_launched()
    assert "the database had lost this launch; study followed: 2 trials" in said[-1]
    lease = own.fleet.register(60)
    end(own, must(start(own, lease, followed.row.study_id)))
    assert followed.progress().spent == 1

    copy = server.backup()
    larger = spec("followed", cells=2, trials=5)
    own.studies.launch(larger)
    followed = follow(own, larger, said)
    followed.keep_launched()
    end(own, must(start(own, lease, followed.row.study_id)))
    assert followed.progress().spent == 2
    own.rest()
    server.fail_over(copy)
    followed.keep_launched()
    progress = followed.progress()
    assert (progress.spent, progress.total) == (1, 5)
    assert "3 trials added" in said[-2]
    assert "went back in time" in said[-1], "the news is shorter than it was"


def contact_of(store: Store) -> Contact:
    contact = Contact(store, WorkerConfig(), Draining())
    contact.hold(store.fleet.register(60))
    return contact


def test_a_result_tells_another_server_all_that_the_trial_said(
    server: OwnServer, own: Store
) -> None:
    study = own.studies.launch(spec("told", cells=1)).study_id
    lease = own.fleet.register(60)
    claim = must(start(own, lease, study))
    before, said = own.reads.server(), Unwritten(anew=0)
    copy = server.backup()
    for message in (Reported(1, 0.5), AttrSet("k", 1)):
        said.note(message)
    asked = Param(
        "y",
        0.25,
        json.dumps(
            {"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "log": False}}
        ),
    )
    said.suggested["y"] = (own.suggested.add(claim, asked, 0.25), 0.25)
    own.ledger.report(claim, said.report)
    said.forget()
    own.rest()
    server.fail_over(copy)

    with pytest.raises(StoreUnavailableError, match="a different database server"):
        own.ledger.finish(claim, Completed((1.0,)), said.last_report, server=before)
    said.again(1)
    said.note(Reported(2, 0.75))
    own.ledger.finish(claim, Completed((1.0,)), said.last_report, server=own.reads.server())
    (trial,) = plain_trials(server.url, "told")
    assert (trial.intermediate_values, trial.user_attrs["k"], trial.params["y"]) == (
        {1: 0.5, 2: 0.75},
        1,
        0.25,
    )
    assert own.reads.trials(study)[0].params["y"] == 0.25
    assert own.doctor.examine("told").findings == ()


def test_an_attempt_whose_beginning_was_lost_ends_only_once_it_is_told_again(
    server: OwnServer, own: Store
) -> None:
    study = own.studies.launch(spec("begun", cells=1)).study_id
    lease = own.fleet.register(60)
    claim = take(own, lease, study)
    assert isinstance(claim, Ticket)
    made = own.ledger.create(claim, suggestion(claim), lease, PLACE, start=False)
    copy = server.backup()
    assert isinstance(made, Prepared)
    attempt = own.ledger.start(made, lease, PLACE)
    assert attempt is not None
    own.rest()
    server.fail_over(copy)
    with pytest.raises(LeaseLostError):
        end(own, attempt)
    assert not own.fleet.renew(lease, "training", holds=[made.token], running=made.token).runs
    assert own.ledger.confirm(attempt, lease, PLACE)
    assert own.fleet.renew(lease, "training", holds=[made.token], running=made.token).runs
    end(own, attempt)
    assert own.doctor.examine("begun").findings == ()


def test_a_study_that_was_launched_anew_is_not_taken_for_the_one_that_was_seen(
    store: Store,
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    seen, lease = store.reads.find("study"), store.fleet.register(60)
    assert isinstance(
        store.ledger.claim_one(lease, study, PLACE, launched=seen.launched_at), Ticket
    )
    store.studies.launch(spec(cells=2, trials=4))
    assert store.ledger.claim_one(lease, study, PLACE, launched=seen.launched_at) is None
    now = store.reads.find("study")
    assert now.launched_at > seen.launched_at
    assert isinstance(store.ledger.claim_one(lease, study, PLACE, launched=now.launched_at), Ticket)


# ------------------------------------------------------------------- what a worker does not know of


def test_a_renewal_gives_back_what_the_worker_does_not_know_of(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    lease = store.fleet.register(60)
    contact = Contact(store, WorkerConfig(), Draining())
    contact.hold(lease)
    running = must(start(store, lease, study))
    contact.took(running)
    with contact.runs(running):
        contact.renew()
    assert store.doctor.examine().findings == ()
    stray, unmade = must(start(store, lease, study)), store.ledger.claim_one(lease, study, PLACE)
    assert unmade is not None
    with caplog.at_level(logging.WARNING), contact.runs(running):
        contact.renew()
    assert "gave back 2 trials" in caplog.text
    left = {t.number: t.worker_id for t in store.reads.trials(study, live_only=True)}
    assert left == {running.number: lease.worker_id, stray.number: None}, (
        "and the one that was not created is as if never claimed"
    )
    assert not contact.doubted
    end(store, stray)  # a result that lies on disk is still welcome
    contact.gave(running)
    contact.renew()
    assert [t.worker_id for t in store.reads.trials(study, live_only=True)] == [None]
    assert store.doctor.examine().findings == ()


def test_a_worker_learns_that_the_database_does_not_know_what_it_runs(store: Store) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    lease = store.fleet.register(60)
    contact = Contact(store, WorkerConfig(), Draining())
    contact.hold(lease)
    claim = must(start(store, lease, study))
    with contact.runs(replace(claim, token=claim.token ^ 1)):
        contact.renew()
    assert contact.doubted
    contact.took_slot()
    with pytest.raises(LeaseLostError, match="device slot"):
        contact.renew()


def test_what_was_answered_survives_the_server_however_lazily_it_commits(server: OwnServer) -> None:
    query(server.url, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    query(server.url, "SELECT pg_reload_conf()")
    lazy = make_url(server.url).update_query_dict({"options": "-csynchronous_commit=off"})
    own = Store(lazy.render_as_string(hide_password=False))
    study = own.studies.launch(spec("lazy", cells=1)).study_id
    end(own, must(start(own, own.fleet.register(60), study)))
    server.stop()
    server.start()
    own.rest()
    assert [t.state for t in own.reads.trials(study)] == ["COMPLETE"]
    own.rest()
    query(server.url, "ALTER SYSTEM RESET wal_writer_delay")
    query(server.url, "SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("set_to", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")]
)
def test_a_commit_that_decides_is_made_no_weaker_than_the_server_asks_for(
    database_url: str, set_to: str, used: str
) -> None:
    url = storage_url(database_url).update_query_dict({"options": f"-csynchronous_commit={set_to}"})
    database = Database(url)
    (row,) = database.execute(sa.text("SHOW synchronous_commit"), decides=True)
    assert row[0] == used
    (row,) = database.execute(sa.text("SHOW synchronous_commit"))
    assert row[0] == set_to, "and only for that transaction"
    database.rest()


# --------------------------------------------------------------------------- servers that only read


def test_a_standby_answers_readers_and_is_waited_for_by_writers(
    server: OwnServer, own: Store
) -> None:
    study = own.studies.launch(spec("standby", cells=2)).study_id
    lease = own.fleet.register(60)
    end(own, must(start(own, lease, study)))
    with server.standby() as url:
        reader = Store(url)
        reader.migrate(lambda _: pytest.fail("nothing is to be created"))
        row = reader.reads.find("standby")
        assert reader.reads.progress(row, maximize=True).spent == 1
        assert reader.reads.contenders(study, ["maximize"])
        assert reader.reads.attempts(study, 0)
        assert reader.doctor.examine("standby").findings == ()
        time_line = reader.reads.time_line()
        assert time_line is not None
        assert time_line.timeline is None
        for write in (
            lambda: reader.studies.launch(spec("standby", cells=4, trials=4)),
            lambda: reader.fleet.register(60),
            lambda: reader.fleet.renew(lease, "training"),
            lambda: reader.ledger.claim_one(lease, study, PLACE),
            lambda: reader.interventions.pause(study, "me"),
        ):
            with pytest.raises(StoreUnavailableError, match="does not accept writes"):
                write()
        assert reader.fleet.silent(1e6) == []
        assert reader.fleet.read_only
        reader.rest()


def test_a_lost_right_is_no_trouble_that_passes(server: OwnServer) -> None:
    query(server.url, "REVOKE INSERT ON orchestrator.worker FROM chaos_worker")
    worker = Store(server.worker_url)
    with pytest.raises(OrchestratorError, match="permission denied") as caught:
        worker.fleet.register(60)
    assert not isinstance(caught.value, StoreUnavailableError)
    worker.rest()
    query(server.url, "GRANT INSERT ON orchestrator.worker TO chaos_worker")
