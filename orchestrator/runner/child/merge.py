"""Merges the study's ``params`` and a trial's values into the user's `cfg`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from orchestrator.model import at, has
from orchestrator.overlay import overlay
from orchestrator.runner.child import resolvers
from orchestrator.runner.protocol.contract import Job
from orchestrator.runner.protocol.target import target_of

_OBJECTIVE = "__objective__"


class Template:
    """A study's ``params`` as a config made ahead of time, for one job.

    It saves half of `build_config`'s time.
    """

    def __init__(self, job: Job) -> None:
        self._source = _source(job)
        self._cfg: DictConfig | None = _create(job)

    @property
    def interpolates(self) -> bool:
        """Whether it contains an interpolation."""
        return "${" in self._source

    def take(self, job: Job) -> DictConfig | None:
        """The config, unless `job` has other ``params`` or objective, or it was taken before."""
        cfg, self._cfg = self._cfg, None
        return cfg if self._source == _source(job) else None


def build_config(job: Job, template: Template | None = None) -> tuple[DictConfig, dict[str, Any]]:
    """The user's `cfg` and keyword arguments: the trial's values merged in, then resolved.

    Interpolations in both have `params` as their root. `cfg` is in struct mode: to read or write an
    unknown key is an error.

    Raises:
        omegaconf.errors.OmegaConfBaseException: An interpolation cannot be resolved.
    """
    resolvers.register()
    cfg = template.take(job) if template is not None else None
    if cfg is None:
        cfg = _create(job)
    # Options of the program's own config groups are passed to the program by name; what `params`
    # has below their paths stays.
    values = {path: value for path, value in job.values.items() if path not in job.options}
    overlay(cfg, {path: job.contents.get(path, value) for path, value in values.items()})
    OmegaConf.resolve(cfg)
    resolved: dict[str, Any] = OmegaConf.to_container(cfg.pop(_OBJECTIVE))  # type: ignore[assignment]
    OmegaConf.set_struct(cfg, True)
    return cfg, resolved


class Settled:
    """The ``params`` of one trial as it starts, whatever user code does to its `cfg` later."""

    def __init__(self, job: Job, cfg: DictConfig) -> None:
        self._job = job
        self._plain: Any = None
        # Interpolations must be resolved now, as they may resolve differently later. Anything else
        # is looked up on demand.
        if "${" in str(job.params) or "${" in str(job.values):
            self._plain = OmegaConf.to_container(cfg)

    def value(self, path: str) -> tuple[Any, ...]:
        """The plain value at a dotted path, in a tuple of one.

        Empty if there is nothing, a section, or a value of the grid or search.
        """
        if path in self._job.values:
            return ()
        if self._plain is None:
            self._plain = OmegaConf.to_container(build_config(self._job)[0])
        found = at(self._plain, path) if has(self._plain, path) else {}
        return () if isinstance(found, Mapping) else (found,)


def _source(job: Job) -> str:
    # As text, because the values 1, 1.0 and True are equal.
    return json.dumps([job.params, job.objective])


def _create(job: Job) -> DictConfig:
    _, kwargs = target_of(job.objective)
    return OmegaConf.create({**job.params, _OBJECTIVE: kwargs})
