"""The settings of one host: never stored with a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.settings.knob import (
    NOT_EMPTY,
    PORT,
    above,
    at_least,
    knob,
    matching,
    one_of,
    within,
)

_MAX_S = 10_000_000  # some four months: no timer or interval of the database overflows


@dataclass(frozen=True)
class StorageConfig:
    """Where studies live: in an embedded PostgreSQL (`path`) or on a server (`url`)."""

    kind: str = knob(
        "embedded",
        "a PostgreSQL of this user (`embedded`) or a server (`postgres`)",
        one_of("embedded", "postgres"),
        more="`storage=postgres` is the default when `storage.url` or its variable is set",
    )
    path: Path | None = knob(
        None,
        "directory of the embedded server",
        null="`${paths.data}/postgres`",
        shipped="${paths.data}/postgres",
    )
    url: str | None = knob(
        None,
        "address of the server: `postgresql+psycopg2://user@host:5432/database`",
        null="none",
        secret=True,
        more="`postgresql://` means the same; PostgreSQL 14 or newer; taken as typed",
    )
    password_file: str | None = knob(None, "a file that holds the server's password", null="none")


@dataclass(frozen=True)
class WorkerConfig:
    """How the workers of this host work; names that end in ``_s`` are in seconds."""

    count: int | None = knob(
        None,
        "workers that `launch` starts here; `0`: it only creates and follows the study",
        at_least(0),
        null="one per GPU slot; 2 without a GPU",
    )
    devices: list[int | str] | None = knob(
        None,
        "devices to use: a list of GPU indices, UUIDs, patterns such as `GPU-5a*`, or `cpu`",
        NOT_EMPTY,
        null="all GPUs, or the CPU if there are none",
        more="The start of a UUID is enough",
    )
    slots_per_device: int | None = knob(
        None,
        "workers that may share a device",
        at_least(1),
        null="1 per GPU; no limit on the CPU",
        more="Set the same value for all workers of a host",
    )
    require_idle: str = knob(
        "wait",
        "if others compute on every GPU: `wait`, `refuse` (exit) or `ignore` (use one anyway)",
        one_of("wait", "refuse", "ignore"),
        more="A waiting worker says who uses the GPUs, and so does `status`. In a container, where"
        " PIDs mean nothing, more than 1 GiB in use on a GPU without workers counts as used",
    )
    studies: list[str] | None = knob(
        None,
        "the studies to serve: a list of names",
        null="every active study",
        more="`launch` gives its workers the study it launched",
    )
    idle_timeout_s: float | None = knob(
        None, "seconds without work after which a worker exits", within(0, _MAX_S), null="never"
    )
    max_trials: int | None = knob(
        None, "trials after which a worker exits", at_least(1), null="no limit"
    )
    drain_s: float = knob(
        5.0, "seconds from SIGTERM until the running trial is given back", within(0, _MAX_S)
    )
    lease_ttl_s: float = knob(
        60.0,
        "seconds without a renewed lease after which a worker loses its slot and its trial",
        above(0, _MAX_S),
    )
    heartbeat_s: float = knob(
        10.0,
        "seconds between two renewals of the lease; less than half of `worker.lease_ttl_s`",
        above(0, _MAX_S),
    )
    on_no_device: str = knob(
        "wait",
        "what to do if no device is free: `wait`, or `exit` with code 6",
        one_of("wait", "exit"),
    )
    poll_s: float = knob(
        1.0, "seconds between two looks for work of an idle worker", above(0, _MAX_S)
    )
    threads: int | None = knob(
        None,
        "CPU threads of a trial",
        at_least(1),
        null="the usable cores divided by the workers that share them",
        more="Affinity and container limits count. On a GPU, a worker started by `orchestrator"
        " worker` leaves the libraries their own default",
    )
    prefetch: int = knob(
        1,
        "`1`: prepare the next trial shortly before one ends; `0`: never",
        within(0, 1),
        more="Only where preparing would otherwise idle the device for more than 1 % of its time",
    )
    allow_targets: list[str] | None = knob(
        None,
        "patterns of the objectives that may run here, such as `[my_project.*, command:python]`",
        NOT_EMPTY,
        null="any",
        more="See [security](security.md)",
    )
    health_file: Path | None = knob(
        None,
        "a file touched at every renewal of the lease, for health checks of containers",
        null="none",
        more="It exists while the worker is registered. If it is older than `worker.lease_ttl_s`,"
        " the worker has no contact with the database",
    )


@dataclass(frozen=True)
class PathsConfig:
    """Absolute directories; `checkpoints` and `artifacts` may be fsspec URLs."""

    data: Path = knob(
        Path(),
        "what this user keeps: the embedded server, run directories, artifacts",
        null="`ORCHESTRATOR_DATA_DIR`, or the user's data directory",
        shipped="${orchestrator.data_dir:}",
    )
    runs: Path = knob(
        Path(),
        "run directories: logs, results, checkpoints",
        null="`${paths.data}/runs`",
        shipped="${paths.data}/runs",
    )
    checkpoints: str | None = knob(
        None,
        "where checkpoints go: a directory that all hosts share, or an fsspec URL such as "
        "`s3://bucket/path`",
        null="with the runs",
        more="Changes are uploaded to a URL a few seconds after the last write. S3 needs `pip"
        " install s3fs`. Credentials are the library's own (environment, `~/.aws`)",
    )
    artifacts: str | None = knob(
        None,
        "where `trial.log_artifact` stores: a directory or an fsspec URL, the same for all hosts",
        null="`${paths.data}/artifacts`",
        more=(
            "The dashboard reads it too; the URL holds no password. Optuna's "
            "`FileSystemArtifactStore` reads the directory"
        ),
    )


@dataclass(frozen=True)
class DashboardConfig:
    """Where the dashboard listens, for whom, what they may do, and the `url` at which people find"
    " it."""

    host: str = knob(
        "127.0.0.1",
        "address to listen on; any but a loopback address needs `dashboard.password_file`",
    )
    port: int = knob(8080, "port to listen on", PORT)
    hosts: list[str] | None = knob(
        None,
        "more names it answers to, such as `[tuning.example.org]` behind a proxy",
        NOT_EMPTY,
        null="none",
        more="No scheme, port or wildcard",
    )
    url: str | None = knob(
        None,
        "where people find it, behind a proxy or a published port",
        matching(r"https?://[^/\s]+\S*", "an address such as https://tuning.example.org"),
        null="`ORCHESTRATOR_DASHBOARD_URL`, or its host and port",
        shipped="${oc.env:ORCHESTRATOR_DASHBOARD_URL,null}",
        more="`launch` prints it at the end",
    )
    read_only: bool = knob(False, "refuse every change")
    password_file: str | None = knob(
        None,
        "a file with one line: the password that the browser asks for",
        null="none",
        more="Any user name will do; scripts send `Authorization: Bearer …`",
    )


@dataclass(frozen=True)
class NotifyConfig:
    """Whom this host's workers and launches tell that a study has ended, paused itself or lost a
    cell.
    """

    url: str | None = knob(
        None,
        "a webhook that is told when a study ends, pauses itself or loses a cell; only from the "
        "environment",
        null="`ORCHESTRATOR_NOTIFY_URL`",
        shipped="${oc.env:ORCHESTRATOR_NOTIFY_URL,null}",
        secret=True,
        more="Who knows it may write there, so it is taken from the environment"
        " (`${oc.env:VARIABLE}`) or from `notify.url_file`, and neither stored nor shown. See"
        " [notifications](workers.md#notifications)",
    )
    url_file: str | None = knob(None, "a file that holds the webhook's URL", null="none")
    form: str = knob(
        "auto",
        "what is sent: `json`, or `slack` (a `text`); `auto`: `slack` to `hooks.slack.com`",
        one_of("auto", "json", "slack"),
    )


@dataclass(frozen=True)
class HostConfig:
    """Every setting of this host, resolved and checked."""

    storage: StorageConfig
    worker: WorkerConfig
    paths: PathsConfig
    dashboard: DashboardConfig
    notify: NotifyConfig


HOST: Mapping[str, type[Any]] = {
    "storage": StorageConfig,
    "worker": WorkerConfig,
    "paths": PathsConfig,
    "dashboard": DashboardConfig,
    "notify": NotifyConfig,
}
