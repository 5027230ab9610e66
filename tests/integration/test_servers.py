"""Who could serve a study, as its launch sees it, and that a launch follows it."""

from __future__ import annotations

import psycopg2
import pytest

from orchestrator.errors import LeaseLostError
from orchestrator.store import Servers, Silent, Store, WorkerLease
from tests.support.studies import spec


def test_every_living_worker_is_able_elsewhere_or_says_why_not(
    store: Store, lease: WorkerLease, database_url: str
) -> None:
    study = store.studies.launch(spec()).study_id
    assert store.reads.servers([study]) == {study: Servers(able=1)}, "it has not tried yet"
    store.fleet.register(60, studies=["other"])
    store.fleet.register(60, studies=["study"])
    assert store.reads.servers([study]) == {study: Servers(able=2, elsewhere=1)}
    for one in (lease, store.fleet.register(60)):
        store.fleet.refuse(one, {study: (1, "no module train")})
    waiting = store.fleet.register(60)
    store.fleet.renew(waiting, "waiting for a device: GPU 0 is in use")
    refusals = (("no module train", 2), ("waiting for a device: GPU 0 is in use", 1))
    assert store.reads.servers([study]) == {study: Servers(1, 1, refusals)}
    assert store.reads.servers([]) == {}


def test_a_refusal_is_of_one_launch_and_ends_with_its_worker_or_its_cause(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    store.fleet.refuse(lease, {study: (1, "no module train")})
    store.studies.launch(spec(trials=8))
    assert store.reads.servers([study])[study] == Servers(able=1), (
        "what was launched since has not been tried"
    )
    store.fleet.refuse(lease, {study: (2, "no module train")})
    assert store.reads.servers([study])[study].refusals == (("no module train", 1),)
    store.fleet.refuse(lease, {})
    assert store.reads.servers([study])[study] == Servers(able=1)
    store.fleet.refuse(lease, {study: (2, "no module train")})
    assert store.ledger.evict(Silent(lease.worker_id, dead=True, reason="died"))
    assert store.reads.servers([study])[study] == Servers()
    with pytest.raises(LeaseLostError):
        store.fleet.refuse(lease, {})


def test_a_silent_worker_serves_nobody(store: Store, lease: WorkerLease, database_url: str) -> None:
    study = store.studies.launch(spec()).study_id
    with (
        psycopg2.connect(database_url.replace("+psycopg2", "")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE orchestrator.worker SET lease_until = now() - interval '1 s'")
    connection.close()
    assert store.reads.servers([study])[study] == Servers()


def test_a_study_is_followed_until_its_launch_leaves_or_falls_silent(store: Store) -> None:
    study = store.studies.launch(spec()).study_id
    assert not store.reads.find("study").followed
    store.studies.follow(study, 60.0)
    assert store.reads.find("study").followed
    store.studies.follow(study, 0.0)
    row = store.reads.find("study")
    assert not row.followed
    assert 0 <= row.launched_s < 600
