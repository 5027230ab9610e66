"""A worker prepares its next trial as late as it may."""

from __future__ import annotations

import pytest

from orchestrator.worker.pace import IDLE_SHARE, LEAD, MARGIN_S, SLACK, Pace


def pace(ran_s: list[float], prepared_s: float) -> Pace:
    made = Pace()
    for seconds in ran_s:
        made.ran(seconds)
    made.prepared(prepared_s)
    return made


def test_nothing_is_prepared_before_it_is_known_how_long_trials_take() -> None:
    assert Pace().prepare_at() is None
    assert pace([], 0.1).prepare_at() is None
    unprepared = Pace()
    unprepared.ran(2.0)
    assert unprepared.prepare_at() is None


def test_nothing_is_prepared_where_a_device_hardly_waits() -> None:
    assert pace([10.0], IDLE_SHARE * 10.0).prepare_at() is None
    assert pace([10.0], IDLE_SHARE * 10.0 + 0.001).prepare_at() is not None


def test_it_is_prepared_shortly_before_trials_end() -> None:
    assert pace([2.0] * 4, 0.1).prepare_at() == pytest.approx(
        2.0 * (1 - SLACK) - LEAD * 0.1 - MARGIN_S
    )
    assert pace([0.2], 0.1).prepare_at() == 0.0, "at once where there is hardly time"


def test_the_longer_preparing_takes_the_fewer_trials_may_end_before_it_begins() -> None:
    ran_s = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    cheap, dear = pace(ran_s, 0.1), pace(ran_s, 0.6)
    assert cheap.prepare_at() == pytest.approx(5.0 * (1 - SLACK) - LEAD * 0.1 - MARGIN_S), (
        "half of 9 trials may: each costs 0.1 of 5"
    )
    assert dear.prepare_at() == 0.0
    assert pace(ran_s, 0.2).prepare_at() == pytest.approx(3.0 * (1 - SLACK) - LEAD * 0.2 - MARGIN_S)


def test_only_the_last_few_count() -> None:
    made = pace([100.0] * 9, 0.1)
    assert made.prepare_at() is None
    for _ in range(9):
        made.ran(2.0)
    assert made.prepare_at() is not None
    assert made.usual_s == 2.0
