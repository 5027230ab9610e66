"""Schedules by name: torch's own values where torch is right, and none of its surprises."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as torchs

from orchestrator.training import SAM, SCHEDULES, Schedule, schedule
from tests.support.commands import ROOT

LR = 0.5
T = 21


def sgd(lr: Any = LR, **options: Any) -> SGD:
    return SGD([nn.Parameter(torch.ones(2))], lr=lr, **options)


def adamw(lr: Any = LR, **options: Any) -> AdamW:
    return AdamW([nn.Parameter(torch.ones(2))], lr=lr, **options)


def used(scheduler: Any, steps: int, key: str = "lr") -> list[float]:
    """What the optimizer's first group has in each of so many steps."""
    values = []
    for _ in range(steps):
        group = scheduler.optimizer.param_groups[0]
        values.append(group["betas"][0] if key == "betas" else float(group[key]))
        scheduler.optimizer.step()
        scheduler.step()
    return values


CYCLE: dict[str, Any] = {
    "base_lr": LR / 4,
    "max_lr": LR,
    "step_size_up": 5,
    "cycle_momentum": False,
}
TORCHS: dict[str, tuple[dict[str, Any], Callable[[Optimizer], Any]]] = {
    "constant": ({}, lambda o: torchs.ConstantLR(o, factor=1.0)),
    "step": ({"drops": 2}, lambda o: torchs.StepLR(o, step_size=7, gamma=0.1)),
    "exponential": (
        {"low": 0.01},
        lambda o: torchs.ExponentialLR(o, gamma=0.01 ** (1 / (T - 1))),
    ),
    "cosine": (
        {"low": 0.02},
        lambda o: torchs.CosineAnnealingLR(o, T_max=T - 1, eta_min=0.02 * LR),
    ),
    "triangular": ({"cycles": 2}, lambda o: torchs.CyclicLR(o, mode="triangular", **CYCLE)),
    "triangular2": ({"cycles": 2}, lambda o: torchs.CyclicLR(o, mode="triangular2", **CYCLE)),
    "exp_range": (
        {"cycles": 2, "gamma": 0.6},
        lambda o: torchs.CyclicLR(o, mode="exp_range", gamma=0.6 ** (1 / 10), **CYCLE),
    ),
    "sgdr": (
        {"cycles": 1, "low": 0.02},
        lambda o: torchs.CosineAnnealingLR(o, T_max=T - 1, eta_min=0.02 * LR),
    ),
    "onecycle": (
        {},
        lambda o: torchs.OneCycleLR(o, max_lr=LR, total_steps=T, cycle_momentum=False),
    ),
}


@pytest.mark.parametrize("name", TORCHS)
def test_the_values_are_those_of_torchs_own_class(name: str) -> None:
    options, own = TORCHS[name]
    ours = used(schedule(name, sgd(), T, **options), T)
    assert ours == pytest.approx(used(own(sgd()), T), rel=1e-9)


def test_the_warmup_is_torchs_linear_one_and_leads_on_without_a_jump() -> None:
    ours = used(schedule("constant", sgd(), 10, warmup_steps=4), 10)
    own = torchs.LinearLR(sgd(), start_factor=1 / 5, end_factor=1, total_iters=4)
    assert ours == pytest.approx(used(own, 10))
    for name in SCHEDULES:
        plain = used(schedule(name, sgd(), T), T)
        warmed = used(schedule(name, sgd(), T + 5, warmup_steps=5), T + 5)
        assert warmed[5:] == pytest.approx(plain)
        rise = [plain[0] * (step + 1) / 6 for step in range(5)]
        assert warmed[:5] == pytest.approx(rise)


def test_stable_then_a_straight_decay() -> None:
    rates = used(schedule("wsd", sgd(1.0), 10, decay=0.4, low=0.2), 10)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_warm_restarts_reach_their_minimum_each_time() -> None:
    rates = used(schedule("sgdr", sgd(1.0), 28, cycles=3, growth=2, low=0.01), 28)
    assert [step for step, rate in enumerate(rates) if rate == 1.0] == [0, 4, 12]
    assert [step for step, rate in enumerate(rates) if rate == pytest.approx(0.01)] == [3, 11, 27]
    torch_never = used(torchs.CosineAnnealingWarmRestarts(sgd(1.0), T_0=3, eta_min=0.01), 12)
    assert min(torch_never) > 0.2


@pytest.mark.parametrize("cycles", [1, 2, 3, 5])
@pytest.mark.parametrize("growth", [1, 1.5, 2, 10])
def test_every_restart_fits_whatever_the_budget(cycles: int, growth: float) -> None:
    for steps in range(2 * cycles, 30):
        rates = used(schedule("sgdr", sgd(1.0), steps, cycles=cycles, growth=growth), steps)
        assert rates.count(1.0) == cycles
        assert sum(rate == pytest.approx(1e-3) for rate in rates) == cycles


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [8, 9, 100])
@pytest.mark.parametrize("warmup", [0, 1])
def test_the_rate_stays_within_its_range_and_holds_its_last_value_past_the_end(
    name: str, total: int, warmup: int
) -> None:
    scheduler = schedule(name, sgd(), total + warmup, warmup_steps=warmup)
    rates = used(scheduler, total + warmup + 20)
    assert all(0 < rate <= LR * (1 + 1e-12) for rate in rates)
    assert max(rates) > 0.6 * LR
    assert set(rates[total + warmup :]) == {rates[total + warmup - 1]}


def test_torchs_onecycle_jumps_up_one_step_past_its_end() -> None:
    """What the test above guards against; if this fails torch has changed."""
    scheduler = torchs.OneCycleLR(sgd(), max_lr=LR, total_steps=10)
    last = used(scheduler, 10)[-1]
    assert scheduler.optimizer.param_groups[0]["lr"] > 1000 * last


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_step_of_a_decay_is_at_its_lowest_rate(name: str) -> None:
    scheduler = schedule(name, sgd(1.0), 50)
    last = {"constant": 1.0, "step": 0.01, "onecycle": 0.04 * 1e-4}.get(
        name, scheduler.options.get("low")
    )
    assert used(scheduler, 50)[-1] == pytest.approx(last)


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_but_the_learning_rate_is_touched(name: str) -> None:
    for optimizer in (adamw(), sgd(), sgd(momentum=0.8)):
        before = [dict(group) for group in optimizer.param_groups]
        scheduler = schedule(name, optimizer, 12)
        used(scheduler, 12)
        for old, new in zip(before, optimizer.param_groups, strict=True):
            changed = {key for key in new if key not in old or new[key] is not old[key]}
            assert changed <= {"lr", "initial_lr"}


@pytest.mark.parametrize("make", [adamw, lambda: sgd(momentum=0.9)])
def test_momentum_is_cycled_against_the_rate_where_it_is_asked_for(
    make: Callable[[], Optimizer],
) -> None:
    key = "betas" if isinstance(make(), AdamW) else "momentum"
    ours = used(schedule("onecycle", make(), T, momentum=(0.85, 0.95)), T, key)
    own = torchs.OneCycleLR(make(), max_lr=LR, total_steps=T)
    assert ours == pytest.approx(used(own, T, key))
    cyclic = used(schedule("triangular2", make(), T, cycles=2, momentum=[0.8, 0.9]), T, key)
    cycle = {**CYCLE, "cycle_momentum": True}
    assert cyclic == pytest.approx(
        used(torchs.CyclicLR(make(), mode="triangular2", **cycle), T, key)
    )


def test_groups_keep_their_ratios() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.2, 0.02, 1.0)]
    optimizer = SGD(groups, lr=1.0)
    scheduler = schedule("onecycle", optimizer, 10, bounds=(0.01, 0.1))
    for _ in range(12):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert [rate / rates[0] for rate in rates] == pytest.approx([1, 0.1, 5])
        assert rates == scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()


class Curve:
    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self._bounds = bounds

    def bounds(self) -> tuple[float, float]:
        if self._bounds is None:
            raise ValueError("the curve is flat")
        return self._bounds


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
def test_the_bounds_of_a_curve_are_the_lowest_and_the_highest_rate(name: str) -> None:
    pair = used(schedule(name, sgd(), 41, bounds=(0.02, 0.4)), 41)
    assert pair == used(schedule(name, sgd(7.0), 41, bounds=Curve((0.02, 0.4))), 41)
    # The height of exp_range falls from the first step on, also on the way to its first top.
    top = 0.02 + (0.4 - 0.02) * 0.5**0.5 if name == "exp_range" else 0.4
    assert max(pair) == pytest.approx(top, rel=0.01)  # onecycle's is between two steps
    lowest = 0.02 * 1e-4 if name == "onecycle" else 0.02
    if name != "step":
        assert min(pair) == pytest.approx(lowest)
    assert min(pair) >= lowest * (1 - 1e-9)


def test_a_constant_rate_takes_the_highest_of_the_bounds() -> None:
    assert set(used(schedule("constant", sgd(), 5, bounds=(0.02, 0.4)), 5)) == {0.4}


# construct, load the optimizer's state, load the schedule's
ORDERS = [order for order in itertools.permutations("cos") if order.index("c") < order.index("s")]


@pytest.mark.parametrize("order", ORDERS, ids="".join)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("done", [1, 9, 20])
def test_it_goes_on_as_if_never_interrupted_in_any_order_of_loading(
    name: str, order: tuple[str, ...], done: int
) -> None:
    options: dict[str, Any] = {"warmup_steps": 3, "bounds": (0.01, 0.3)}
    if "momentum" in _options_of(name):
        options["momentum"] = (0.85, 0.95)

    def make(optimizer: Optimizer) -> Schedule:
        return schedule(name, optimizer, T, **options)

    def both(scheduler: Schedule, steps: int) -> list[tuple[float, float]]:
        optimizer, values = scheduler.optimizer, []
        for _ in range(steps):
            group = optimizer.param_groups[0]
            values.append((group["lr"], group["betas"][0]))
            optimizer.step()
            scheduler.step()
        return values

    first = make(adamw())
    whole = both(make(adamw()), T + 3)
    both(first, done)
    file = io.BytesIO()
    torch.save([first.optimizer.state_dict(), first.state_dict()], file)
    file.seek(0)
    saved, saved_schedule = torch.load(file, weights_only=True)
    json.dumps(saved_schedule)

    optimizer = adamw()
    scheduler: Schedule | None = None
    for what in order:
        if what == "c":
            scheduler = make(optimizer)
        elif what == "o":
            optimizer.load_state_dict(saved)
        else:
            assert scheduler is not None
            scheduler.load_state_dict(saved_schedule)
    assert scheduler is not None
    assert both(scheduler, T + 3 - done) == whole[done:]
    assert (
        scheduler.get_last_lr()
        == first.lr_at(T)
        == [group["lr"] for group in optimizer.param_groups]
    )


def _options_of(name: str) -> str:
    with pytest.raises(ValueError, match="takes") as caught:
        schedule(name, sgd(), T, **{"decay" if name != "wsd" else "rise": 0.5})  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 30}, r"saved with total_steps=20, but this schedule has 30"),
        ({"name": "exponential"}, r"saved with name='cosine', but this schedule has 'exponential'"),
        ({"warmup_steps": 2}, r"saved with warmup_steps=0, but this schedule has 2"),
        ({"low": 0.1}, r"saved with options=\{'low': 0.001\}, but this schedule has \{'low': 0.1"),
    ],
)
def test_a_state_of_another_schedule_is_refused_and_changes_nothing(
    changes: dict[str, Any], message: str
) -> None:
    saved = schedule("cosine", sgd(), 20)
    used(saved, 7)
    arguments: dict[str, Any] = {"name": "cosine", "optimizer": sgd(), "total_steps": 20}
    other = schedule(**(arguments | changes))
    before = other.state_dict(), other.optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved.state_dict())
    assert before == (other.state_dict(), other.optimizer.param_groups[0]["lr"])


def test_states_of_torchs_schedulers_and_of_other_groups_are_refused() -> None:
    ours = schedule("cosine", sgd(), 20)
    with pytest.raises(ValueError, match="not the state of a schedule of orches"):
        ours.load_state_dict(torchs.CosineAnnealingLR(sgd(), T_max=19).state_dict())
    two = SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=1.0)
    with pytest.raises(ValueError, match="saved for 2 parameter groups; the optimizer has 1"):
        ours.load_state_dict(schedule("cosine", two, 20).state_dict())


def test_a_second_schedule_starts_at_once_from_the_peak_of_the_first() -> None:
    optimizer = sgd()
    used(schedule("cosine", optimizer, 10), 10)
    second = schedule("step", optimizer, 9)
    assert optimizer.param_groups[0]["lr"] == LR
    assert used(second, 9) == pytest.approx([LR] * 3 + [LR / 10] * 3 + [LR / 100] * 3)


def test_a_learning_rate_in_a_tensor_stays_the_same_tensor() -> None:
    rate = torch.tensor(LR)
    optimizer = adamw(rate, capturable=False, foreach=False)
    scheduler = schedule("cosine", optimizer, 10, momentum=None)
    held = optimizer.param_groups[0]["lr"]
    rates = used(scheduler, 5)
    assert optimizer.param_groups[0]["lr"] is held
    assert rates == pytest.approx(used(schedule("cosine", sgd(), 10), 5), rel=1e-6)
    other = schedule("cosine", adamw(torch.tensor(LR), foreach=False), 10)
    tensor = other.optimizer.param_groups[0]["lr"]
    other.load_state_dict(scheduler.state_dict())
    assert other.optimizer.param_groups[0]["lr"] is tensor
    assert float(tensor) == pytest.approx(float(held))


def test_it_drives_sam_and_the_optimizer_within() -> None:
    base = sgd()
    (weights,) = base.param_groups[0]["params"]
    optimizer = SAM(base, None)
    scheduler = schedule("onecycle", optimizer, T)
    rates = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = weights.square().sum()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(T):
            rates.append(base.param_groups[0]["lr"])
            optimizer.step(closure)
            scheduler.step()
    assert rates == used(schedule("onecycle", sgd(), T), T)
    assert base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < LR / 1000


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("cosin", {}, ValueError, r"name='cosin': must be one of .* \(did you mean 'cosine'\?\)"),
        ("OneCycle", {}, ValueError, "did you mean 'onecycle'"),
        ("zzz", {}, ValueError, "name='zzz': must be one of constant, step, exponential, "),
        ("plateau", {}, ValueError, "it follows a metric, not the step; use torch.optim.lr_sch"),
        (3, {}, TypeError, "name=3: must be one of constant, step"),
        ("cosine", {"cycles": 2}, ValueError, "cycles=2: cosine takes low"),
        ("constant", {"low": 0.1}, ValueError, "low=0.1: constant takes no options"),
        ("cosine", {"momentum": (0.8, 0.9)}, ValueError, "cosine takes low"),
        ("cosine", {"low": 1.5}, ValueError, "low=1.5: must be from 0 to 1"),
        ("cosine", {"low": "a"}, TypeError, "low='a': must be a number"),
        ("cosine", {"low": float("nan")}, ValueError, "low=nan: must be finite"),
        ("exponential", {"low": 0}, ValueError, "low=0: an exponential decay never reaches 0"),
        ("exponential", {"bounds": (0, 1)}, ValueError, "an exponential decay never reaches 0"),
        ("triangular", {"cycles": 0}, ValueError, "cycles=0: must be at least 1"),
        ("triangular", {"cycles": 1.5}, TypeError, "cycles=1.5: must be a whole number"),
        ("triangular", {"cycles": 11}, ValueError, "total_steps=21: triangular needs 22 or more"),
        ("step", {"drops": 21}, ValueError, "total_steps=21: step needs 22 or more"),
        ("step", {"gamma": 0}, ValueError, "gamma=0: must be above 0 and at most 1"),
        ("sgdr", {"growth": 0.5}, ValueError, "growth=0.5: must be at least 1"),
        ("onecycle", {"rise": 1}, ValueError, "rise=1: must be between 0 and 1"),
        ("onecycle", {"final": 2}, ValueError, "final=2: must be from 0 to 1"),
        ("onecycle", {"momentum": 0.9}, ValueError, "momentum=0.9: must be two numbers"),
        ("onecycle", {"momentum": (0.9, 0.8)}, ValueError, "must be 0 ≤ lowest ≤ highest < 1"),
        ("wsd", {"decay": 0}, ValueError, "decay=0: must be above 0 and at most 1"),
        ("cosine", {"bounds": (0.2, 0.1)}, ValueError, r"bounds=\(0.2, 0.1\): must be 0 ≤ lowest"),
        ("cosine", {"bounds": (0, 0)}, ValueError, "with highest above 0"),
        ("cosine", {"bounds": 0.1}, ValueError, "bounds=0.1: must be two learning rates"),
        ("cosine", {"bounds": Curve(None)}, ValueError, "the curve is flat"),
        ("cosine", {"bounds": (0.1, 1), "low": 0.1}, ValueError, "low: bounds already say the low"),
        ("cosine", {"total_steps": 0}, ValueError, "total_steps=0: must be at least 1"),
        ("cosine", {"total_steps": 10.0}, TypeError, "total_steps=10.0: must be a whole number"),
        ("cosine", {"warmup_steps": -1}, ValueError, "warmup_steps=-1: must be at least 0"),
        ("cosine", {"warmup_steps": T}, ValueError, "needs 1 or more after warmup_steps=21"),
        ("cosine", {"optimizer": None}, TypeError, "optimizer: NoneType is no torch.optim.Opti"),
        ("cosine", {"optimizer": sgd(float("nan"))}, ValueError, "parameter group 0 has lr=nan"),
        (
            "onecycle",
            {"optimizer": torch.optim.Adagrad([torch.ones(1)]), "momentum": (0.8, 0.9)},
            ValueError,
            "momentum: parameter group 0 of Adagrad has neither betas nor momentum",
        ),
        (
            "cosine",
            {"optimizer": SGD([torch.ones(1)], lr=0.0), "bounds": (0.1, 1)},
            ValueError,
            "optimizer: the first parameter group has lr=0.0; bounds scale",
        ),
    ],
)
def test_bad_arguments_change_nothing(
    name: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = sgd()
    before = dict(optimizer.param_groups[0])
    arguments: dict[str, Any] = {"optimizer": optimizer, "total_steps": T} | changes
    with pytest.raises(error, match=message):
        schedule(name, **arguments)
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_shipped_option_of_the_config_group_holds_its_own_defaults(name: str) -> None:
    loaded = OmegaConf.load(ROOT / "conf" / "schedule" / f"{name}.yaml")
    options: Any = OmegaConf.to_container(loaded)
    assert options.pop("name") == name
    assert options == schedule(name, sgd(), T).options
    used(schedule(name, optimizer=sgd(), total_steps=T, **options), T)
    shipped = {path.stem for path in (ROOT / "conf" / "schedule").iterdir()}
    assert shipped == set(SCHEDULES)


def test_an_optimizer_without_groups_or_learning_rates_is_refused() -> None:
    optimizer = sgd()
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="parameter group 0 has no learning rate"):
        schedule("cosine", optimizer, T)
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match="it has no parameter groups"):
        schedule("cosine", optimizer, T, bounds=(0.1, 1))


def test_restarts_may_grow_without_bound() -> None:
    made = schedule("sgdr", sgd(), 10_000, cycles=400, growth=10.0)
    assert made.lr_at(0) == [LR]
    assert made.lr_at(9_999) == [pytest.approx(1e-3 * LR)]


@pytest.mark.parametrize(
    "damage", [{"base_lrs": ["x"]}, {"last_epoch": "x"}, {"last_epoch": -1}], ids=str
)
def test_a_damaged_state_changes_nothing(damage: dict[str, Any]) -> None:
    made = schedule("cosine", sgd(), T)
    before = made.state_dict()
    with pytest.raises((TypeError, ValueError), match="state_dict: "):
        made.load_state_dict(before | damage)
    assert made.state_dict() == before
