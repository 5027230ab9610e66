"""How a worker that is told to end gives back a probe that has not begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config import WorkerConfig
from orchestrator.store import Place, Probe
from orchestrator.worker import probing
from orchestrator.worker.shutdown import Draining
from tests.support.studies import spec


class Hurried:
    """A worker's contact while it should have ended by now."""

    def __init__(self) -> None:
        self.gone: list[int] = []

    def say(self, doing: str) -> None: ...

    def gave(self, held: Probe) -> None:
        self.gone.append(held.token)

    def insist(self, step: Callable[[], Any], until: object = None) -> Any:
        return step()

    def meanwhile(self, step: Callable[[], Any], hurry: Callable[[], None] | None = None) -> None:
        assert hurry is not None, "whoever waits for a device can be hurried"
        hurry()


def test_while_its_device_settles_it_is_given_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "torch_device", lambda device: "cuda:0")
    released: list[tuple[str, bool]] = []

    def release(held: Probe, reason: str, *, lost: bool) -> None:
        released.append((reason, lost))

    contact: Any = Hurried()
    store: Any = SimpleNamespace(probes=SimpleNamespace(release=release))
    device: Any = SimpleNamespace(gpu=object(), device=None, settle=lambda: None)
    served: Any = SimpleNamespace(
        spec=spec(probes={"p": {"_target_": "my.probe"}}),
        row=SimpleNamespace(name="study", folder="study"),
    )
    place = Place("here", str(tmp_path))
    measuring = probing.Probing(
        store, WorkerConfig(), contact, Draining(), device, place, tmp_path, None
    )
    measuring.run(served, Probe(1, 2, 3, "p", 0, {"a": 0}, 1))
    assert released == [("the worker was told to end", False)]
    assert 3 in contact.gone
