"""The settings of this host, resolved and checked."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import platformdirs
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.schema import checked
from orchestrator.config.translate import one_line, resolved
from orchestrator.errors import ConfigError
from orchestrator.passwords import mask
from orchestrator.settings import HOST, HostConfig, StorageConfig

URL_VARIABLE = "ORCHESTRATOR_STORAGE_URL"
DATA_VARIABLE = "ORCHESTRATOR_DATA_DIR"
_EMBEDDED = "postgres"


def host_config(full: DictConfig, url: str | None, *, typed_embedded: bool) -> HostConfig:
    values = {section: resolved(full, section) or {} for section in HOST}
    storage, worker, paths = values["storage"], values["worker"], values["paths"]
    for section in HOST:
        if not isinstance(values[section], dict):
            checked(section, HOST[section], values[section])
    if url is not None:
        typed = _typed_url(url)
        storage["url"] = typed
        if typed and typed != mask(typed) and interpolated(full.storage, "password_file"):
            storage["password_file"] = None  # the environment's, of the environment's URL
    lists = (
        (worker, "devices"),
        (worker, "studies"),
        (worker, "allow_targets"),
        (values["dashboard"], "hosts"),
    )
    for holder, key in lists:  # worker.devices=0 says the same as worker.devices=[0]
        if holder.get(key) is not None and not isinstance(holder[key], list):
            holder[key] = [holder[key]]
    for holder, key in (
        (storage, "path"),
        (paths, "data"),
        (paths, "runs"),
        (worker, "health_file"),
    ):
        if isinstance(holder.get(key), (str, Path)):
            holder[key] = str(Path(holder[key]).expanduser().absolute())
    host = HostConfig(
        **{section: checked(section, schema, values[section]) for section, schema in HOST.items()}
    )
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


def default_storage_path() -> Path:
    """Where the embedded server of this user is when nothing on the command line says otherwise."""
    return Path(_data_directory()).absolute() / _EMBEDDED


def _typed_url(url: str) -> str | None:
    if url in ("null", ""):
        return None
    if "${" not in url:
        return url
    try:
        return str(OmegaConf.create({"url": url}).url)
    except OmegaConfBaseException as error:
        raise ConfigError(f"storage.url: {one_line(str(error).splitlines()[0])}") from error


def interpolated(node: DictConfig, key: str) -> bool:
    return key in node and OmegaConf.is_interpolation(node, key)


def _data_directory() -> str:
    return os.environ.get(DATA_VARIABLE) or platformdirs.user_data_dir(
        "orchestrator", appauthor=False
    )


OmegaConf.register_new_resolver("orchestrator.data_dir", _data_directory, replace=True)
