"""Where things are on this host when nothing else is said, and what its settings must keep to
together; without Hydra.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.passwords import keep
from orchestrator.settings import HostConfig, StorageConfig

URL_VARIABLE = "ORCHESTRATOR_STORAGE_URL"
DATA_VARIABLE = "ORCHESTRATOR_DATA_DIR"
_EMBEDDED = "postgres"


def data_directory() -> str:
    """Where this user's data is."""
    if directory := os.environ.get(DATA_VARIABLE):
        return directory
    import platformdirs  # seldom needed where commands are run often

    return platformdirs.user_data_dir("orchestrator", appauthor=False)


def default_storage_path() -> Path:
    """Where the embedded server of this user is when nothing on the command line says otherwise."""
    return Path(data_directory()).absolute() / _EMBEDDED


def shipped_directory() -> Path:
    """The config that comes with the package: inside it when installed, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


def complete(host: HostConfig, *, typed_embedded: bool) -> HostConfig:
    """Returns the settings, each of which is valid, as they are meant together; what of them is
    secret is kept from processes with user code.

    Raises:
        ConfigError: they do not fit together.
    """
    if host.notify.url:
        keep(host.notify.url)
    host = replace(host, storage=_checked_storage(host, typed_embedded))
    if host.worker.heartbeat_s >= host.worker.lease_ttl_s / 2:
        raise ConfigError(
            f"worker.heartbeat_s={host.worker.heartbeat_s:g}: must be less than half of"
            f" worker.lease_ttl_s={host.worker.lease_ttl_s:g}"
        )
    return host


def _checked_storage(host: HostConfig, typed_embedded: bool) -> StorageConfig:
    """Returns the storage as it is meant: a URL makes it a server's, and an embedded one has a
    directory.
    """
    storage = host.storage
    if storage.url and storage.kind == "embedded":
        if typed_embedded:
            raise ConfigError(
                "storage=embedded and storage.url exclude each other; leave out one of them"
            )
        storage = replace(storage, kind="postgres")
    if storage.kind == "postgres" and not storage.url:
        raise ConfigError(
            "storage=postgres needs storage.url=postgresql+psycopg2://user@host:5432/database,"
            f" or the environment variable {URL_VARIABLE}"
        )
    if storage.url and not re.match(r"postgres(ql)?(\+\w+)?://", storage.url):
        raise ConfigError(
            "storage.url must start with postgresql+psycopg2:// (its value is not shown here)"
        )
    if storage.kind == "embedded" and storage.path is None:
        storage = replace(storage, path=host.paths.data / _EMBEDDED)
    return storage
