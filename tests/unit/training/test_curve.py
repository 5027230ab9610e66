"""Readings of curves with a known valley, and reasons where a curve says nothing."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence

import pytest

from orchestrator.training import LRCurve, NoAnswerError, Reading, Sweep

STEPS = 100
LRS = tuple(1e-7 * 1e8 ** (i / (STEPS - 1)) for i in range(STEPS))


def valley(
    seed: int = 0, noise: float = 0.02, edge: float = 1.0, lrs: Sequence[float] = LRS
) -> Sweep:
    """Falls from 2.3 to 0.3 around 1e-3, and climbs a quarter back at `edge`."""
    numbers = random.Random(seed)
    losses = [
        0.3 + 2 / (1 + (lr / 1e-3) ** 1.5) + 0.5 * (lr / edge) ** 3 + noise * numbers.gauss(0, 1)
        for lr in lrs
    ]
    return Sweep(tuple(lrs), tuple(losses))


def curve(*sweeps: Sweep, **options: object) -> LRCurve:
    return LRCurve(sweeps, **options)  # type: ignore[arg-type]


def shaped(shape: Callable[[int, random.Random], float], steps: int = STEPS) -> Sweep:
    numbers = random.Random(1)
    return Sweep(LRS[:steps], tuple(shape(i, numbers) for i in range(steps)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
def test_readings_of_a_valley(seed: int, noise: float) -> None:
    read = curve(*(valley(10 * seed + i, noise) for i in range(3)))
    edge, minimum, steepest = read.edge(), read.minimum(), read.steepest()
    assert 0.6 < edge.value < 1.7
    assert 1e-3 < read.valley().value < 0.1
    assert 3e-4 < steepest.value < 3e-3 or noise == 0.2
    assert steepest.value < minimum.value < edge.value * 1.5
    assert edge.low <= edge.value <= edge.high
    suggestion = read.suggestion()
    assert suggestion.value == pytest.approx(edge.value / 10**0.8)
    assert suggestion.note is None
    low, high = read.bounds()
    assert math.log10(high / low) == pytest.approx(1.5)
    assert math.sqrt(low * high) == pytest.approx(float(suggestion))
    assert read.reason is None


@pytest.mark.parametrize("shift", [-2.0, -1000.0])
def test_readings_do_not_depend_on_the_sign_of_the_loss(shift: float) -> None:
    sweep = valley()
    moved = Sweep(sweep.lrs, tuple(loss + shift for loss in sweep.losses))
    negated = Sweep(sweep.lrs, tuple(-loss for loss in sweep.losses))
    for rule in ("edge", "minimum", "steepest", "valley", "suggestion"):
        expected = getattr(curve(sweep), rule)()
        assert getattr(curve(moved), rule)() == expected
        assert getattr(curve(negated, maximize=True), rule)() == expected


def test_smoothing_has_no_bias_to_its_start() -> None:
    constant = shaped(lambda *_: 2.3)
    assert curve(constant, smoothing=0.98).smoothed == pytest.approx([2.3] * STEPS)
    read = curve(Sweep((1.0, 2.0, 3.0), (1.0, 2.0, 4.0)), smoothing=0.5)
    assert read.smoothed == pytest.approx([1.0, 5 / 3, (4 + 1 + 0.25) / 1.75])
    assert curve(valley(), smoothing=0.0).smoothed == valley().losses


def test_sweeps_give_the_median_and_an_interval() -> None:
    edges = (0.4, 1.0, 2.0)
    together = curve(*(valley(edge=edge) for edge in edges)).edge()
    alone = [curve(valley(edge=edge)).edge().value for edge in edges]
    assert together == Reading(pytest.approx(alone[1]), alone[0], alone[2])  # type: ignore[arg-type]


NOT_FINITE = shaped(lambda *_: math.nan)
FLAT = shaped(lambda _, numbers: 2.3 + 0.05 * numbers.gauss(0, 1))
CONSTANT = shaped(lambda *_: 2.3)
SHORT = Sweep(LRS[:12], (*valley().losses[:11], math.inf), "the loss became inf at 2e-6")
RISING = Sweep(
    LRS[:40], shaped(lambda i, _: 2.3 + 1e-6 * 2.0**i, 40).losses, "the loss diverged at 4e-4"
)
FALLING = Sweep(LRS[:60], valley().losses[:60], "the batches ended after 60")
TOO_SMALL_END = Sweep(LRS[:60], valley().losses[:60])


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        (NOT_FINITE, "not finite from the first step on"),
        (FLAT, "the curve is flat"),
        (CONSTANT, "the curve is flat"),
        (SHORT, r"11 points with a finite loss are too few \(the loss became inf"),
        (RISING, r"never falls below its start for certain \(the loss diverged at 4e-4\)"),
        (FALLING, r"still falls at the last learning rate, .* \(the batches ended after 60\)"),
        (TOO_SMALL_END, "still falls at the last learning rate, .*: take a larger end"),
    ],
)
def test_a_curve_that_says_nothing_gives_its_reason(sweep: Sweep, reason: str) -> None:
    read = curve(sweep)
    for rule in ("edge", "minimum", "steepest", "valley", "suggestion", "bounds"):
        with pytest.raises(NoAnswerError, match=reason):
            getattr(read, rule)()
    with pytest.raises(NoAnswerError, match=r"^2 of 3 sweeps: "):
        curve(sweep, valley(), sweep).suggestion()
    assert curve(valley(), sweep, valley()).suggestion() == curve(valley(), valley()).suggestion()


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_flat(seed: int) -> None:
    numbers = random.Random(seed)
    noise = [Sweep(LRS, tuple(2.3 + numbers.gauss(0, 0.1) for _ in LRS)) for _ in range(3)]
    with pytest.raises(NoAnswerError, match="flat"):
        curve(*noise).suggestion()


def test_sweeps_that_contradict_one_another_give_no_suggestion() -> None:
    read = curve(valley(edge=1.0), valley(edge=0.02))
    with pytest.raises(
        NoAnswerError, match=r"contradict one another: valleys end at .* from 0\.018"
    ):
        read.suggestion()
    assert read.edge().high / read.edge().low > 30


def test_an_edge_beyond_the_sweep_is_noted() -> None:
    cut = Sweep(LRS[:87], valley(noise=0.0).losses[:87])
    suggestion = curve(cut).suggestion()
    assert suggestion.note is not None
    assert "has hardly risen yet at the last learning rate" in suggestion.note


def test_a_linear_sweep_is_read_by_steps() -> None:
    lrs = tuple(0.01 + 1.5 * i / (STEPS - 1) for i in range(STEPS))
    read = curve(valley(lrs=lrs), growth="linear")
    assert read.reason is not None  # all of the fall lies before the second step
    falling = [2 / (1 + lr / 0.1) + 0.5 * lr**3 for lr in lrs]
    assert 0.8 < curve(Sweep(lrs, tuple(falling)), growth="linear").edge().value < 1.2


def test_json_round_trip_also_of_what_is_not_finite() -> None:
    odd = Sweep(LRS[:3], (1.0, math.inf, -math.inf), "the loss became inf", 2)
    read = curve(valley(), odd, growth="linear", smoothing=0.5, maximize=True, batches_taken=103)
    text = json.dumps(read.to_dict(), allow_nan=False)
    back = LRCurve.from_dict(json.loads(text))
    assert back == read
    assert back.batches_taken == 103
    nan = LRCurve.from_dict(json.loads(json.dumps(curve(NOT_FINITE).to_dict(), allow_nan=False)))
    assert all(map(math.isnan, nan.losses))


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="format=None: must be 1"):
        LRCurve.from_dict({})
    with pytest.raises(ValueError, match="sweeps: there must be at least one"):
        LRCurve(())
    with pytest.raises(ValueError, match="2 learning rates, 1 losses"):
        LRCurve((Sweep((1.0, 2.0), (1.0,)),))
    for lrs in ((0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, math.nan), (1.0, math.inf)):
        with pytest.raises(ValueError, match="learning rates must rise from above 0"):
            LRCurve((Sweep(lrs, (1.0, 1.0)),))
    whole = curve(FLAT).to_dict()
    for damaged in (
        {key: value for key, value in whole.items() if key != "growth"},
        whole | {"sweeps": None},
        whole | {"smoothing": "x"},
    ):
        with pytest.raises(ValueError, match="this curve is damaged"):
            LRCurve.from_dict(damaged)
    with pytest.raises(ValueError, match="data: list is not what to_dict"):
        LRCurve.from_dict([])  # type: ignore[arg-type]


def test_the_picture_shows_sweeps_and_readings() -> None:
    read = curve(valley(0), valley(1))
    picture = read.plot()
    assert picture.layout.xaxis.type == "log"
    assert len(picture.data) == 4
    assert list(picture.data[0].y) == list(read.losses)
    assert list(picture.data[1].y) == list(read.smoothed)
    band = next(shape for shape in picture.layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == read.bounds()
    marks = {note.text: note.x for note in picture.layout.annotations}
    assert marks["edge"] == pytest.approx(math.log10(read.edge().value))
    assert set(marks) == {"steepest", "minimum", "edge"}
    low, high = picture.layout.yaxis.range
    assert low < min(read.losses) < 2.3 < high < max(read.losses)  # what diverged is cut off
    nothing = curve(FLAT).plot()
    assert "no suggestion: the curve is flat" in nothing.layout.title.text
    assert not nothing.layout.shapes
