"""``trial.set_constraint``, as Optuna has it: what is refused, what counts, and where it is
written.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.model import Completed, Failed
from orchestrator.runner import ConstraintSet, journal
from orchestrator.runner.journal import Journal
from orchestrator.runner.protocol.values import as_constraint
from tests.support.running import finish, make_job, running_with

THIS = "tests.unit.test_runner_constraints"


def constrained(cfg: Any, trial: Any) -> float:
    trial.set_constraint("memory", np.float32(1.5))
    trial.set_constraint("time", -math.inf)
    trial.set_constraint("memory", -1.0)
    assert trial.constraints == {"memory": 1.5, "time": -sys.float_info.max}
    return 1.0


def constrained_until_it_fails(cfg: Any, trial: Any) -> float:
    trial.set_constraint("memory", 2)
    raise RuntimeError("out of it")


def nan_constraint(cfg: Any, trial: Any) -> float:
    trial.set_constraint("memory", math.nan)
    return 1.0


def test_the_first_value_of_a_constraint_is_sent_and_journaled(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.constrained"})
    with running_with(job.objective) as runner:
        running = runner.start(job)
        outcome, messages = finish(running)
    assert outcome == Completed((1.0,))
    said = {"memory": 1.5, "time": -sys.float_info.max}
    assert messages == [ConstraintSet(key, value) for key, value in said.items()]
    assert journal.read(job.run_dir) == ({}, {}, said, {})
    assert "constraint 'memory' was set before" in running.log_path.read_text()


def test_a_failed_trial_keeps_its_constraints_and_nan_fails_one(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"_target_": f"{THIS}.constrained_until_it_fails"})
    with running_with(job.objective) as runner:
        outcome, messages = finish(runner.start(job))
    assert isinstance(outcome, Failed)
    assert messages == [ConstraintSet("memory", 2.0)]
    job = make_job(tmp_path, {"_target_": f"{THIS}.nan_constraint"}, number=1)
    with running_with(job.objective) as runner:
        outcome, messages = finish(runner.start(job))
    assert isinstance(outcome, Failed)
    assert "constraint 'memory': NaN" in outcome.message
    assert messages == []


@pytest.mark.parametrize(
    ("key", "value", "error", "says"),
    [
        (1, 0.0, TypeError, "the name of a constraint must be a string"),
        ("k" * 501, 0.0, ValueError, "at most 500 characters"),
        ("k\0", 0.0, ValueError, "NUL"),
        ("\ud800", 0.0, ValueError, "surrogate"),
        ("k", "much", TypeError, "'much' is a str, not a number"),
        ("k", None, TypeError, "not a number"),
        ("k", 10**400, ValueError, "too large for a float"),
        ("k", math.nan, ValueError, "NaN"),
    ],
)
def test_a_constraint_without_meaning_is_refused(
    key: Any, value: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        as_constraint(key, value)


def test_whatever_float_takes_is_a_value() -> None:
    values = [
        as_constraint("k", value)[1]
        for value in (True, "1.5", np.int64(3), np.array(2.0), math.inf)
    ]
    assert values == [1.0, 1.5, 3.0, 2.0, sys.float_info.max]


def test_of_constraints_in_a_journal_the_first_counts_and_nonsense_is_left_out(
    tmp_path: Path,
) -> None:
    written = Journal(tmp_path)
    for message in (
        {"constraint": ["a", 1.0]},
        {"constraint": ["a", -1.0]},
        {"constraint": ["b"]},
        {"constraint": [3, 1.0]},
    ):
        written.append(message)
    written.append({"constraint": ["c", math.nan]})
    assert journal.read(tmp_path).constraints == {"a": 1.0}
