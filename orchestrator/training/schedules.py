"""Learning-rate schedules by name, with one signature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from orchestrator.training.arguments import number, whole
from orchestrator.training.choices import look_up
from orchestrator.training.schedule_shapes import KINDS, Kind, Shape, with_warmup

SCHEDULES: Final = tuple(KINDS)
"""The names that `schedule` knows."""

_NEEDS_A_METRIC: Final = ("plateau", "reducelronplateau", "reduce_on_plateau")
_SAVED: Final = frozenset(
    {"name", "total_steps", "warmup_steps", "options", "base_lrs", "last_epoch"}
)


class HasBounds(Protocol):
    """What knows between which learning rates to train, such as an `LRCurve`."""

    def bounds(self) -> tuple[float, float]: ...


class Schedule(LRScheduler):
    """A learning rate that depends on the number of steps alone, made by `schedule`.

    It is a torch scheduler: ``step()`` after each optimizer step, ``get_last_lr()``,
    ``state_dict()``. Step number ``total_steps - 1``, counted from 0, is the last; calls after it
    keep its learning rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        total_steps: int,
        warmup_steps: int,
        options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.options = dict(options)
        self._shape: Shape = with_warmup(
            KINDS[name].shape(total_steps - warmup_steps, options), warmup_steps
        )
        super().__init__(optimizer)

    def lr_at(self, step: int) -> list[float]:
        """The learning rate of each parameter group at a step, counted from 0."""
        level = self._shape(min(max(step, 0), self.total_steps - 1)).level
        return [float(lr) * level for lr in self.base_lrs]

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the current step."""
        return [*self.lr_at(self.last_epoch)]

    def step(self, epoch: int | None = None) -> None:
        """Goes on to the next step: call it once after each optimizer step."""
        super().step(epoch)
        self._set_momentum()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in plain types (``torch.load(…, weights_only=True)``)."""
        return {
            "name": self.name,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "options": dict(self.options),
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_epoch": self.last_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on exactly where the saved schedule stood, and sets the optimizer's learning rates.

        It does not matter whether the schedule was made before or after the optimizer's state was
        loaded, nor which of the two states is loaded first.

        Raises:
            TypeError: the state holds what is no number.
            ValueError: the state is of another schedule, of other options, or for another number of
                steps or parameter groups. Nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"state_dict: {type(state_dict).__name__} is not what one is")
        lacking = _SAVED - set(state_dict)
        if lacking:
            raise ValueError(
                "state_dict: not the state of a schedule of orchestrator.training; it lacks "
                f"{', '.join(sorted(lacking))}"
            )
        mine = self.state_dict()
        for key in ("name", "total_steps", "warmup_steps", "options"):
            if state_dict[key] != mine[key]:
                raise ValueError(
                    f"state_dict: saved with {key}={state_dict[key]!r}, but this schedule has "
                    f"{mine[key]!r}; a schedule goes on only as it began"
                )
        whole("state_dict: last_epoch", state_dict["last_epoch"], 0)
        groups = self.optimizer.param_groups
        saved = [number("state_dict: base_lrs", lr) for lr in state_dict["base_lrs"]]
        if len(saved) != len(groups):
            raise ValueError(
                f"state_dict: saved for {len(saved)} parameter groups; the optimizer has "
                f"{len(groups)}"
            )
        self.base_lrs = [*saved]
        self.last_epoch = state_dict["last_epoch"]
        for group, base, lr in zip(groups, saved, self.lr_at(self.last_epoch), strict=True):
            group["initial_lr"] = base
            # A learning rate in a tensor is filled: a captured CUDA graph reads that tensor.
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = [*self.lr_at(self.last_epoch)]
        self._step_count = self.last_epoch + 1
        self._set_momentum()

    def _set_momentum(self) -> None:
        if self.options.get("momentum") is None:
            return
        low, high = self.options["momentum"]
        height = self._shape(min(self.last_epoch, self.total_steps - 1)).height
        value = high - (high - low) * height
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            else:
                group["momentum"] = value


def schedule(
    name: str,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    bounds: tuple[float, float] | HasBounds | None = None,
    low: float | None = None,
    cycles: int | None = None,
    growth: float | None = None,
    drops: int | None = None,
    gamma: float | None = None,
    rise: float | None = None,
    decay: float | None = None,
    final: float | None = None,
    momentum: Sequence[float] | None = None,
) -> Schedule:
    """Returns the named schedule of the optimizer's learning rate over exactly `total_steps` steps.

    Every length follows `total_steps`, so the whole schedule happens in any budget. The *peak* of a
    parameter group is the learning rate that the optimizer was given for it; groups keep their
    ratios. Nothing but the learning rate is touched, unless `momentum` asks for it.

    ===========  ===================================================================================
    constant     the peak
    step         `drops` drops by the factor `gamma`, equally far apart
    exponential  from the peak to `low` by the same factor each step
    cosine       from the peak to `low` along half a cosine (SGDR's, without restarts)
    triangular   `cycles` times from `low` to the peak and back (Smith 2017, arXiv:1506.01186)
    triangular2  the same, each cycle half as high as the one before
    exp_range    the same, with the height falling by `gamma` per cycle at every step, so that the
                 first top is below the peak already
    sgdr         `cycles` half cosines from the peak to `low`, each `growth` times as long as the
                 one before (Loshchilov and Hutter 2017, arXiv:1608.03983); every one reaches `low`
    onecycle     from `low` to the peak in the share `rise` of the steps, then to `final` × `low`
                 (Smith and Topin 2017, arXiv:1708.07120)
    wsd          the peak, then in the last share `decay` of the steps linearly to `low`: warm-up,
                 stable, decay (Hu et al. 2024, arXiv:2404.06395)
    ===========  ===================================================================================

    Args:
        name: one of `SCHEDULES`.
        optimizer: the optimizer, or a wrapper that is one, such as SAM. If an earlier schedule left
            ``initial_lr`` in a group, that is the group's peak, as in torch. So the schedule may be
            made before or after the optimizer's state is loaded.
        total_steps: optimizer steps in all, warm-up included.
        warmup_steps: steps of a linear rise to the schedule's first learning rate.
        bounds: the lowest and the highest learning rate of the first parameter group, or what has
            them, such as an `LRCurve`. They replace the optimizer's learning rate and `low`.
        low: the lowest learning rate, as a fraction of the peak; default 1/1000, of a cyclic
            schedule 1/4, of ``onecycle`` 1/25, of ``step`` 0.
        cycles: default 4, of ``sgdr`` 3.
        growth: at least 1; default 2.
        drops: default 2.
        gamma: default 0.1 per drop, of ``exp_range`` 0.5 per cycle.
        rise: default 0.3.
        decay: default 0.2.
        final: default 1e-4, as in torch.
        momentum: of a cyclic schedule or ``onecycle``: (lowest, highest) momentum, or first beta,
            which moves against the learning rate. Default: it is left alone.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an unknown name, an option that the schedule does not take, a value out of its
            range, or too few steps. Nothing is changed then.
        Exception: whatever ``bounds.bounds()`` raises where it has no answer.
    """
    kind = _kind(name)
    given = {
        "low": low,
        "cycles": cycles,
        "growth": growth,
        "drops": drops,
        "gamma": gamma,
        "rise": rise,
        "decay": decay,
        "final": final,
        "momentum": momentum,
    }
    options = _options(name, kind, given)
    _check_optimizer(optimizer, options)
    peaks = None
    if bounds is not None:
        if low is not None:
            raise ValueError("low: bounds already say the lowest learning rate; give one of them")
        lowest, highest = _bounds(bounds)
        peaks = _scaled(optimizer, highest)
        if "low" in options:
            options["low"] = lowest / highest
    if name == "exponential" and options["low"] == 0:
        raise ValueError("low=0: an exponential decay never reaches 0; give a larger one")
    total_steps = whole("total_steps", total_steps, 1)
    warmup_steps = whole("warmup_steps", warmup_steps, 0)
    needed = kind.steps(options)
    if total_steps - warmup_steps < needed:
        raise ValueError(
            f"total_steps={total_steps}: {name} needs {needed} or more after "
            f"warmup_steps={warmup_steps}"
        )
    if peaks is not None:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak
    return Schedule(optimizer, name, total_steps, warmup_steps, options)


def _kind(name: str) -> Kind:
    if isinstance(name, str) and name.lower() in _NEEDS_A_METRIC:
        raise ValueError(
            f"name={name!r}: it follows a metric, not the step; use "
            "torch.optim.lr_scheduler.ReduceLROnPlateau"
        )
    return look_up("name", name, KINDS)


def _options(name: str, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a schedule, those left out with their defaults."""
    takes = [*kind.defaults, *(["momentum"] if kind.cycles_momentum else [])]
    for option, value in given.items():
        if value is not None and option not in takes:
            what = f"takes {', '.join(takes)}" if takes else "takes no options"
            raise ValueError(f"{option}={value!r}: {name} {what}")
    options = dict(kind.defaults)
    for option, value in given.items():
        if value is None:
            continue
        if option in ("cycles", "drops"):
            options[option] = whole(option, value, 1)
        elif option == "momentum":
            options[option] = _momentum(value)
        else:
            options[option] = _fraction(option, value)
    return options


_RANGES: Final[Mapping[str, tuple[str, Any]]] = {
    "low": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "growth": ("at least 1", lambda x: x >= 1),
    "gamma": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "rise": ("between 0 and 1", lambda x: 0 < x < 1),
    "decay": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "final": ("from 0 to 1", lambda x: 0 <= x <= 1),
}


def _fraction(option: str, value: Any) -> float:
    fraction = number(option, value)
    rule, holds = _RANGES[option]
    if not holds(fraction):
        raise ValueError(f"{option}={value!r}: must be {rule}")
    return fraction


def _momentum(value: Any) -> list[float]:
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise ValueError(f"momentum={value!r}: must be two numbers, the lowest and the highest")
    low, high = (number("momentum", one) for one in value)
    if not 0 <= low <= high < 1:
        raise ValueError(f"momentum={value!r}: must be 0 ≤ lowest ≤ highest < 1")
    return [low, high]


def _bounds(bounds: Any) -> tuple[float, float]:
    pair = bounds.bounds() if hasattr(bounds, "bounds") else bounds
    if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
        raise ValueError(f"bounds={pair!r}: must be two learning rates, the lowest and the highest")
    low, high = (number("bounds", one) for one in pair)
    if not 0 <= low <= high or high == 0:
        raise ValueError(f"bounds={pair!r}: must be 0 ≤ lowest ≤ highest, with highest above 0")
    return low, high


def _scaled(optimizer: torch.optim.Optimizer, highest: float) -> list[float]:
    """The groups' learning rates with the first at `highest` and all ratios as they are."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if rates[0] <= 0:
        raise ValueError(
            f"optimizer: the first parameter group has lr={rates[0]}; bounds scale all groups by "
            "it, so it must be above 0"
        )
    return [highest * rate / rates[0] for rate in rates]


def _check_optimizer(optimizer: Any, options: Mapping[str, Any]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: {type(optimizer).__name__} is no torch.optim.Optimizer; if it wraps one "
            "and shares its param_groups, give that one"
        )
    if not optimizer.param_groups:
        raise ValueError("optimizer: it has no parameter groups")
    for index, group in enumerate(optimizer.param_groups):
        lr = group.get("initial_lr", group.get("lr"))
        if isinstance(lr, bool) or not isinstance(lr, Real | Tensor):
            raise ValueError(f"optimizer: parameter group {index} has no learning rate `lr`")
        if not math.isfinite(lr):
            raise ValueError(f"optimizer: parameter group {index} has lr={float(lr)}")
    if options.get("momentum") is not None:
        for index, group in enumerate(optimizer.param_groups):
            if "betas" not in group and "momentum" not in group:
                raise ValueError(
                    f"momentum: parameter group {index} of {type(optimizer).__name__} has neither "
                    "betas nor momentum"
                )
