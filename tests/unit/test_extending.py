"""When a launch changes the study it continues: as the setting says, or as the user answers."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import config, search
from orchestrator.cli import extending
from orchestrator.cli.warm_start import NOTHING
from orchestrator.errors import ConfigError, DifferentStudyError


def different(revision: int, *, extendable: bool = True) -> DifferentStudyError:
    return DifferentStudyError(
        "a different grid a", revision, (f"grid a: [{revision}] -> [9]",), extendable=extendable
    )


class Studies:
    """Answers each launch with what is next; an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, Any]] = []

    def launch(self, spec: Any, extend: Any = None, **how: Any) -> Any:
        self.asked.append((extend, how.get("revision")))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(studies: Studies, typed: str | None, *, extends: bool = False) -> Any:
        terminal = io.StringIO(typed or "")
        monkeypatch.setattr(terminal, "isatty", lambda: typed is not None, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(config, "extends", lambda composed: extends)
        call: Any = SimpleNamespace(composed=None, json=False)
        store: Any = SimpleNamespace(studies=studies)
        spec: Any = SimpleNamespace(name="study")
        return extending.launch_or_extend(call, store, spec, NOTHING)

    return run


def test_without_a_terminal_a_difference_is_refused(launch: Callable[..., Any]) -> None:
    studies = Studies(different(1))
    with pytest.raises(DifferentStudyError):
        launch(studies, None)
    assert studies.asked == [(None, None)]


def test_the_setting_changes_the_study_without_a_question(launch: Callable[..., Any]) -> None:
    studies = Studies("launched")
    assert launch(studies, None, extends=True) == "launched"
    assert studies.asked == [(search.extension, None)]


def test_a_yes_is_to_the_revision_that_was_shown(
    launch: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    studies = Studies(different(1), different(2), "launched")
    assert launch(studies, "y\nyes\n") == "launched"
    assert studies.asked == [(None, None), (search.extension, 1), (search.extension, 2)]
    asked = capsys.readouterr().err
    assert asked.index("grid a: [1] -> [9]") < asked.index("grid a: [2] -> [9]")


@pytest.mark.parametrize("typed", ["n\n", "\n", ""])
def test_anything_else_changes_nothing(launch: Callable[..., Any], typed: str) -> None:
    studies = Studies(different(1))
    with pytest.raises(ConfigError):
        launch(studies, typed)
    assert len(studies.asked) == 1


def test_what_cannot_be_changed_is_not_asked_for(
    launch: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DifferentStudyError):
        launch(Studies(different(1, extendable=False)), "y\n")
    assert capsys.readouterr().err == ""
