"""The section ``stop_when``: what it takes, what is said of the rest, and how it is stored."""

from __future__ import annotations

import pytest

from orchestrator.config import compose, stop_label, stops_nothing, study_spec
from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec
from orchestrator.settings import StopSettings

OWN = ("study.name=own", "objective._target_=my.train", "+a=1,2", "+x=interval(0, 1)")


def made(*words: str) -> StudySpec:
    return study_spec(compose("launch", [*OWN, "budget.trials=50", *words]))


def test_off_by_default_and_then_stored_as_before_it_existed() -> None:
    off = made()
    assert not off.stop_when.on
    assert "stop_when" not in off.to_json()
    assert stop_label(off.stop_when) == ""
    assert StudySpec.from_json(off.to_json()) == off


def test_rules_are_stored_and_read_and_change_no_identity() -> None:
    on = made("stop_when.gain=2%", "stop_when.patience=30")
    assert on.stop_when == StopSettings(gain="2%", patience=30)
    assert StudySpec.from_json(on.to_json()) == on
    assert on.spec_hash() == made().spec_hash()
    assert stop_label(on.stop_when) == (
        "the study ends early once one more trial is expected to gain less than 2% of the values' "
        "spread or 30 trials have ended since the one with the best value (stop_when)"
    )
    of_cells = made("stop_when.gain=0.001", "stop_when.scope=cell").stop_when
    assert stop_label(of_cells).startswith("a cell gets no more trials once one more trial is ")


def test_a_rule_that_can_leave_out_nothing_is_said() -> None:
    assert stops_nothing(made("stop_when.gain=0.1")) is None
    assert stops_nothing(made("budget.per_cell=25")) is None
    idle = stops_nothing(made("stop_when.gain=0.1", "budget.per_cell=25"))
    assert idle is not None
    assert "nothing can be left out, for every trial is one of the 50" in idle


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stop_when.gain=0", "stop_when.gain=0: must be a number greater than 0, or a share"),
        ("stop_when.gain=x%", "stop_when.gain='x%': must be a number greater than 0"),
        ("stop_when.gain=101%", "stop_when.gain='101%': must be"),
        ("stop_when.gain=true", "stop_when.gain=True: must be"),
        ("stop_when.p=1", "stop_when.p=1: must be greater than 0 and less than 1"),
        ("stop_when.p=0.9 stop_when.scope=cell", "stop_when.p=0.9: which cell is the best says"),
        ("stop_when.p=0.9 a=1", "stop_when.p=0.9: there is one cell"),
        ("stop_when.patience=0", "stop_when.patience=0: must be from 1"),
        ("stop_when.scope=cell", "stop_when.scope=cell: there is no rule to apply to a cell"),
        ("stop_when.gain=1 stop_when.scope=cel", r"did you mean 'cell'\?"),
        ("stop_when.gian=1", "did you mean 'stop_when.gain'"),
        (
            "stop_when.patience=5 stop_when.scope=cell budget.confirm=4",
            "budget.confirm=4: a cell that has enough trials takes none that confirm",
        ),
        (
            "stop_when.patience=5 study.direction=[minimize,maximize] study.metric=[u,v]",
            "stop_when.patience=5: several objectives have no one best value",
        ),
    ],
)
def test_what_makes_no_sense_is_said(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(") if "?" not in said else said):
        made(*words.split())
