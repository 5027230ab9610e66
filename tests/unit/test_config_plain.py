"""What is read without Hydra is what Hydra composes, or is left to Hydra."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.call import Call
from orchestrator.cli.local_workers import _host_overrides
from orchestrator.config import compose, read_plainly, study_spec
from orchestrator.config.plain import NAMING, Plain
from orchestrator.errors import ConfigError

URL = "postgresql+psycopg2://user@db.example.org:5432/orchestrator"
SECRET = "postgresql://user:s%40cret@db/orchestrator"
ENVIRONMENTS = [
    {},
    {"ORCHESTRATOR_DATA_DIR": "/data/mine"},
    {"ORCHESTRATOR_DATA_DIR": "relative/data"},
    {"ORCHESTRATOR_STORAGE_URL": URL},
    {"ORCHESTRATOR_STORAGE_URL": ""},
    {"ORCHESTRATOR_STORAGE_URL": "mysql://host/db"},
    {"ORCHESTRATOR_STORAGE_URL": "${oc.env:HOME}"},
    {"ORCHESTRATOR_STORAGE_URL": SECRET, "ORCHESTRATOR_STORAGE_PASSWORD_FILE": "/run/password"},
    {"ORCHESTRATOR_STORAGE_URL": URL, "ORCHESTRATOR_STORAGE_PASSWORD_FILE": ""},
    {"ORCHESTRATOR_DASHBOARD_URL": "https://tuning.example.org"},
    {"ORCHESTRATOR_DASHBOARD_URL": "tuning"},
]
PLAIN = [
    "",
    "study.name=digits",
    "study.name=a-b.c_1e5",
    'study.name="digits"',
    "storage.path=/data/pg",
    "storage.path=/data/1e5/null.x",
    'storage.path="/data/with space, and [comma]"',
    'storage.path="~/pg"',
    "storage.path=pg",
    f"storage.url={URL}",
    f"storage.url='{SECRET}'",
    f"storage.url={SECRET} storage.password_file=/run/other",
    f"storage=postgres storage.url={URL}",
    "storage=embedded",
    "storage=embedded storage.path=null",
    "storage=embedded study.name=digits",
    "storage.path=null",
    "paths.data=/elsewhere",
    "paths.data=/elsewhere paths.runs=runs paths.checkpoints=null",
    "paths.artifacts=/artifacts",
    "worker.count=3 worker.devices=[0,1] worker.slots_per_device=2",
    'worker.devices=[cpu,"GPU-5a*"]',
    'worker.studies=["a","b"] worker.drain_s=5.0 worker.idle_timeout_s=3',
    "worker.heartbeat_s=1 worker.lease_ttl_s=2.5",
    "worker.require_idle=ignore worker.on_no_device=exit worker.prefetch=0",
    "worker.health_file=/tmp/health",
    "dashboard.port=9000 dashboard.read_only=true dashboard.hosts=[tuning.example.org]",
]
UNUSUAL = [
    "study.name=null",
    "storage",
    "=x",
    "study.name=",
    "study.name=5",
    "study.name=1e3",
    "study.name=NULL",
    "study.name=[a]",
    "study.name=digits study.name=other",
    "~study.name",
    "++study.name=x",
    "study.name=$x",
    "study.name='it''s'",
    "study.names=digits",
    "study.seed=1",
    "optim.lr=0.1",
    "sampler=gp",
    "storage=mysql",
    "storage=postgres storage=embedded",
    "storage=postgres",
    "storage.kind=postgres",
    "storage.url=null",
    "storage.url=mysql://host/db",
    "storage.url=${oc.env:HOME}",
    f"storage=embedded storage.url={URL}",
    "storage.uri=x",
    "storage.path=${paths.data}/other",
    "storage.path=a,b",
    r'storage.path="a\\b"',
    "storage.path=5",
    "paths.data=null",
    "paths.data=~/data",
    "paths.data=???",
    "worker=default",
    "worker.count=2.0",
    "worker.count=-1",
    "worker.count=two",
    "worker.count=1,2",
    "worker.count=01",
    "worker.devices=0",
    "worker.devices=[]",
    "worker.devices=[0, 1]",
    "worker.devices=[[0]]",
    "worker.drain_s=inf",
    "worker.drain_s=1e3",
    "worker.heartbeat_s=40",
    "worker.require_idle=maybe",
    "worker.threads=true",
    "worker.health=x",
    "dashboard.port=70000",
    "dashboard.read_only=yes",
    "hydra.run.dir=x",
    "hydra/help=default",
    "worker.studies=[a,b",
]


def composed(command: str, words: list[str]) -> Plain | str:
    try:
        found = compose(command, words)
    except ConfigError as error:
        return str(error)
    name = found.config.study.name if command in NAMING else None
    return Plain(found.host, None if name is None else str(name), found.groups)


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("STORAGE_URL", "STORAGE_PASSWORD_FILE", "DATA_DIR", "DASHBOARD_URL"):
        monkeypatch.delenv(f"ORCHESTRATOR_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_command_line_is_read_as_hydra_reads_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {})
    assert (found := read_plainly("status", words := split(text))) is not None
    assert found == (hydras := composed("status", words))
    assert repr(found.host) == repr(getattr(hydras, "host", None))  # 1.0 is not 1 there


@pytest.mark.parametrize("variables", ENVIRONMENTS, ids=str)
@pytest.mark.parametrize("command", ["status", pytest.param("worker", marks=pytest.mark.nightly)])
def test_the_environment_means_the_same(
    variables: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, variables)
    for text in (*PLAIN[:2], PLAIN[4], *PLAIN[9:16], PLAIN[17], *UNUSUAL[-4:]):
        found = read_plainly(command, split(text))
        assert found is None or found == composed(command, split(text)), text


@pytest.mark.parametrize("text", UNUSUAL)
def test_anything_else_is_left_to_hydra(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {})
    assert read_plainly("status", split(text)) is None


def test_commands_that_take_parameters_are_left_to_hydra() -> None:
    assert read_plainly("launch", []) is None
    assert read_plainly("enqueue", ["study.name=digits"]) is None
    assert read_plainly("worker", ["study.name=digits"]) is None


def test_a_changed_file_of_ours_is_read_or_left_to_hydra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who works in a checkout may change what ships."""
    from orchestrator.config import loader, places, plain

    set_environment(monkeypatch, {})
    shipped = places.shipped_directory()
    for path in shipped.rglob("*.yaml"):
        copy = tmp_path / path.relative_to(shipped)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    for module in (loader, plain):
        monkeypatch.setattr(module, "shipped_directory", lambda: tmp_path)

    def changed(name: str, before: str, after: str) -> Plain | None:
        file = tmp_path / name
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
        found = read_plainly("status", [])
        assert found is None or found == composed("status", [])
        file.write_text(text)
        return found

    found = changed("worker/default.yaml", "poll_s: 1 ", "poll_s: 2 ")
    assert found is not None
    assert found.host.worker.poll_s == 2
    assert changed("worker/default.yaml", "poll_s: 1 ", "poll_s: 1e1 ") is None
    assert changed("worker/default.yaml", "poll_s: 1 ", "poll: 1 ") is None
    assert changed("config.yaml", "experiment: null", "experiment: digits") is None
    assert changed("config.yaml", "storage: embedded", "storage: postgres") is None
    assert changed("config.yaml", "${paths.data}/runs", "${oc.env:HOME}/runs") is None


def split(text: str) -> list[str]:
    """The words of a command line as they are typed here: a space in quotes is none between two."""
    if "comma" in text or ", " in text:
        return [text]
    return text.split()


def test_what_a_launch_tells_its_workers_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"ORCHESTRATOR_DATA_DIR": "/data/of mine"})
    words = [
        "objective._target_=math.hypot",
        "study.name=mine",
        "budget.trials=1",
        "worker.devices=[cpu]",
        "worker.idle_timeout_s=30",
        "paths.checkpoints='s3://bucket/path'",
    ]
    for more in ([], [f"storage.url={URL}"]):
        call = Call.parse("launch", [*words, *more])
        told = _host_overrides(call, study_spec(call.composed), 2)
        if more:
            monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", URL)
        found = read_plainly("worker", told)
        assert found is not None
        assert found == composed("worker", told)
        assert found.host.storage == call.host.storage
        assert found.host.paths == call.host.paths
