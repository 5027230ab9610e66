"""The settings of this host, resolved and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.places import complete, data_directory
from orchestrator.config.schema import checked
from orchestrator.config.translate import one_line, resolved
from orchestrator.errors import ConfigError
from orchestrator.passwords import mask
from orchestrator.settings import HOST, HostConfig


def host_config(full: DictConfig, url: str | None, *, typed_embedded: bool) -> HostConfig:
    values = {section: resolved(full, section) or {} for section in HOST}
    _refuse_typed_notify_url(full)
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
    return complete(host, typed_embedded=typed_embedded)


def _typed_url(url: str) -> str | None:
    if url in ("null", ""):
        return None
    if "${" not in url:
        return url
    try:
        return str(OmegaConf.create({"url": url}).url)
    except OmegaConfBaseException as error:
        raise ConfigError(f"storage.url: {one_line(str(error).splitlines()[0])}") from error


def _refuse_typed_notify_url(full: DictConfig) -> None:
    """Raises ConfigError if the webhook's URL stands in a file of the config or on the command
    line, which are shown and kept.
    """
    notify = full.get("notify")
    if not isinstance(notify, DictConfig):
        return
    written = OmegaConf.to_container(notify, resolve=False)
    url = written.get("url") if isinstance(written, dict) else None
    if url is not None and ("://" in str(url) or not interpolated(notify, "url")):
        raise _notify_url_is_secret()


def refuse_typed_notify_url(overrides: Sequence[str]) -> None:
    """The same of the command line alone, before a message about anything else repeats a word."""
    for word in overrides:
        path, _, value = word.partition("=")
        if path.lstrip("+~").split(".")[0] == "notify" and "://" in value:
            raise _notify_url_is_secret()


def _notify_url_is_secret() -> ConfigError:
    return ConfigError(
        "notify.url: is a secret (its value is not shown here), and must come from the "
        "environment, ${oc.env:ORCHESTRATOR_NOTIFY_URL}, or from a file: notify.url_file=…"
    )


def interpolated(node: DictConfig, key: str) -> bool:
    return key in node and OmegaConf.is_interpolation(node, key)


OmegaConf.register_new_resolver("orchestrator.data_dir", data_directory, replace=True)
