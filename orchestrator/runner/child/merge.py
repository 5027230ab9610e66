"""From the study's ``params`` and a trial's values to the `cfg` that the user's function gets."""

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
    """A study's ``params`` as a config made ahead, which takes half the time of `build_config`. It
    is used up by one job.
    """

    def __init__(self, job: Job) -> None:
        self._source = _source(job)
        self._cfg: DictConfig | None = _create(job)

    @property
    def interpolates(self) -> bool:
        """Whether anything in it refers to something else."""
        return "${" in self._source

    def take(self, job: Job) -> DictConfig | None:
        """The config, if it is what `job` begins with and nobody took it before."""
        cfg, self._cfg = self._cfg, None
        return cfg if self._source == _source(job) else None


def build_config(job: Job, template: Template | None = None) -> tuple[DictConfig, dict[str, Any]]:
    """The `cfg` and the keyword arguments for the user's function: the trial's values merged in,
    then resolved.

    Interpolations in both see `params` as their root. `cfg` is in struct mode: reading or writing
    an unknown key is an error.

    Raises:
        omegaconf.errors.OmegaConfBaseException: An interpolation cannot be resolved.
    """
    resolvers.register()
    cfg = template.take(job) if template is not None else None
    if cfg is None:
        cfg = _create(job)
    # Of the program's own groups the program is told; what is below their paths in `params` stays.
    overlay(
        cfg,
        {
            path: job.contents.get(path, value)
            for path, value in job.values.items()
            if path not in job.options
        },
    )
    OmegaConf.resolve(cfg)
    resolved: dict[str, Any] = OmegaConf.to_container(cfg.pop(_OBJECTIVE))  # type: ignore[assignment]
    OmegaConf.set_struct(cfg, True)
    return cfg, resolved


class Settled:
    """What ``params`` are in one trial as it begins, whatever user code does to its `cfg` later."""

    def __init__(self, job: Job, cfg: DictConfig) -> None:
        self._job = job
        self._plain: Any = None
        # An interpolation is resolved once: it may give another value the next time. All else can
        # wait for who asks.
        if "${" in str(job.params) or "${" in str(job.values):
            self._plain = OmegaConf.to_container(cfg)

    def value(self, path: str) -> tuple[Any, ...]:
        """The plain value at a dotted path; none where there is nothing, a section, or a value of
        grid or search.
        """
        if path in self._job.values:
            return ()
        if self._plain is None:
            self._plain = OmegaConf.to_container(build_config(self._job)[0])
        found = at(self._plain, path) if has(self._plain, path) else {}
        return () if isinstance(found, Mapping) else (found,)


def _source(job: Job) -> str:
    # as text, for as values 1, 1.0 and True are equal
    return json.dumps([job.params, job.objective])


def _create(job: Job) -> DictConfig:
    _, kwargs = target_of(job.objective)
    return OmegaConf.create({**job.params, _OBJECTIVE: kwargs})
