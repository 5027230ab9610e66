"""The command lines that people are told to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.cli.following import unserved
from orchestrator.config import Flags
from orchestrator.errors import ConfigError
from orchestrator.model import span_label
from orchestrator.store import Servers


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    for variable in (
        "ORCHESTRATOR_STORAGE_URL",
        "ORCHESTRATOR_STORAGE_PASSWORD_FILE",
        hints.COMPOSE,
    ):
        monkeypatch.delenv(variable, raising=False)


def stop(*words: str) -> str:
    return hints.command(Call.parse("status", words), "stop", "study.name=mine")


def test_a_command_names_the_storage_where_that_is_not_the_default_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert stop() == "orchestrator stop study.name=mine"
    assert stop(f"storage.path={tmp_path}/postgres") == "orchestrator stop study.name=mine"
    assert (
        stop("storage.path=/data/a")
        == "orchestrator stop study.name=mine 'storage.path=\"/data/a\"'"
    )
    assert (
        stop("paths.data=/data")
        == "orchestrator stop study.name=mine 'storage.path=\"/data/postgres\"'"
    )
    url = "postgresql+psycopg2://me:secret@db/a"
    assert stop(f"storage.url={url}") == "orchestrator stop study.name=mine storage.url=…", (
        "a URL may hold a password"
    )
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", url)
    assert stop() == "orchestrator stop study.name=mine"


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("12", 12), ("1e3", 1000), ("2.5e1", 25), ("1E+2", 100)]
)
def test_a_number_of_a_command_may_be_written_like_one_of_a_setting(text: str, number: int) -> None:
    call = Call("rerun", Flags(()), words={"seeds": text})
    assert call.number("seeds") == number


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "1001", "2.5", "1e-1", "five", "9" * 30])
def test_a_number_that_is_out_of_bounds_is_told_what_they_are(text: str) -> None:
    call = Call("rerun", Flags(()), words={"seeds": text})
    with pytest.raises(ConfigError, match=f"^seeds={text}: must be a whole number from 1 to 1,000"):
        call.number("seeds", within=(1, 1000))


def test_in_a_container_of_compose_commands_are_those_of_its_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(hints.COMPOSE, "1")
    call = Call.parse("launch", ())
    assert stop() == "docker compose exec dashboard orchestrator stop study.name=mine"
    assert hints.command(call, "worker") == "docker compose up -d worker"
    assert hints.command(call, "launch") == "docker compose run --rm launch"
    assert hints.report(call, "mine") == (
        "docker compose exec -T dashboard orchestrator report study.name=mine out=- > report.html"
    ), "a file in the container would be lost"
    assert "stays active with 1 trial left" in hints.staying(call, "mine", 1)


def test_who_serves_a_study_is_said_by_the_strongest_reason() -> None:
    call = Call.parse("launch", ())
    assert unserved(call, "s", Servers(able=1, elsewhere=1, refusals=(("why", 3),))) is None
    assert unserved(call, "s", Servers(elsewhere=2, refusals=(("why", 3), ("not", 1)))) == (
        "no worker can serve study s: 3 workers: why; 1 worker: not"
    )
    many = tuple((f"why {k}", 1) for k in range(5))
    assert str(unserved(call, "s", Servers(refusals=many))).endswith(
        "1 worker: why 2; and 2 other reasons"
    )
    assert unserved(call, "s", Servers()) == (
        "no worker serves study s: no worker is running; start one with: orchestrator worker"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7_199, "120 min"),
        (7_200, "2 h"),
        (259_200, "3 d"),
    ],
)
def test_a_span_is_said_in_the_largest_unit_that_there_are_two_of(
    seconds: float, said: str
) -> None:
    assert span_label(seconds) == said
