"""Whether an objective, and what its probes call, import: found out in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from orchestrator.errors import ConfigError
from orchestrator.model import JSONValue
from orchestrator.runner.keeper_handle import KeeperHandle, environment
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.runner.protocol.target import target_of, words_of
from orchestrator.settings import RunnerSettings

_SILENCE_S = 60.0


class Import:
    """A process that imports an objective as a worker's keeper does, and does nothing else.

    It starts at once; this process can do other things in the meantime.

    Args:
        objective, start: as of `Runner`.
        also: Further functions, in the form of an objective. They are imported after it, one after
            the other and into the same process, as in a worker: most share its slow imports.

    Attributes:
        imported: How many of these `check` found to import, before the one it raised for.

    Raises:
        ConfigError: The objective has no usable ``_target_`` or command.
    """

    def __init__(
        self,
        objective: Mapping[str, JSONValue],
        *,
        start: str,
        also: Iterable[Mapping[str, JSONValue]] = (),
    ) -> None:
        target, kwargs = target_of(objective)
        others = [target_of(one) for one in also]
        self.imported = 0
        self._targets = [target, *(name for name, _ in others)]
        options = KeeperOptions(
            control=-1,
            worker_pid=os.getpid(),
            target=target,
            kwargs=tuple(kwargs),
            start=start,
            threads=None,
            grace_s=RunnerSettings.grace_s,
            silence_s=_SILENCE_S,
            words=words_of(objective),
            only_checks=True,
            also=tuple((name, tuple(arguments)) for name, arguments in others),
        )
        self._process: KeeperHandle | None = KeeperHandle(options, environment(), None)

    @property
    def over(self) -> bool:
        """Whether `check` would return, or raise, at once."""
        if self._process is None:
            return True
        self._process.read()
        return self._process.ready or self._process.channel.closed

    def check(self) -> None:
        """Returns once everything is imported.

        Raises:
            ConfigError: as of `Runner.check`.
        """
        assert self._process is not None, "closed"
        problem = self._process.wait_until_ready(self._targets)
        self.imported = self._process.imported
        if problem is not None:
            self._end(0.0)
            raise ConfigError(problem)

    def close(self) -> None:
        """Ends the process; it is gone when this returns. Idempotent."""
        self._end(RunnerSettings.grace_s)

    def _end(self, grace_s: float) -> None:
        if self._process is not None:
            self._process.end(grace_s)
            self._process = None
