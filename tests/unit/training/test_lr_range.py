"""The learning rate range test: what it measures, and that it leaves no trace."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training import SAM, LRCurve, NoAnswerError, lr_range_test
from orchestrator.training import lr_range as module
from tests.support.states import everything

torch.set_num_threads(1)

MSE = nn.functional.mse_loss


def net(dropout: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def data(n: int = 128) -> TensorDataset:
    numbers = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 4, generator=numbers)
    return TensorDataset(inputs, 3 * inputs[:, :1].sin() + inputs[:, 1:2] * inputs[:, 2:3])


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(data(), 16, **{"shuffle": True, **options})


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def by_hand(model: nn.Module, batches: list[Any], lrs: tuple[float, ...]) -> list[float]:
    optimizer = sgd(model)
    losses = []
    for (inputs, targets), lr in zip(batches, lrs, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        loss = MSE(model(inputs), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_the_curve_is_that_of_a_training_whose_learning_rate_grows() -> None:
    batches = list(loader(shuffle=False))
    model = plain()
    curve = lr_range_test(model, sgd(model), MSE, batches, steps=40)
    assert curve.lrs == pytest.approx([1e-7 * 1e8 ** (i / 39) for i in range(len(curve.lrs))])
    taken = list(itertools.islice(itertools.cycle(batches), curve.batches_taken))
    assert len(curve.sweeps) == 3
    for sweep in curve.sweeps:  # each from the same weights, with the batches that come next
        assert list(sweep.losses) == by_hand(plain(), taken, sweep.lrs)
        taken = taken[len(sweep.lrs) :]
    assert not taken
    assert curve.sweeps[0].losses != curve.sweeps[1].losses


def test_a_valley_is_found() -> None:
    model = net()
    curve = lr_range_test(model, sgd(model), MSE, loader())
    assert curve.reason is None
    assert 1e-3 < curve.suggestion().value < 0.3
    assert all(sweep.ended is not None and "diverged" in sweep.ended for sweep in curve.sweeps)


def test_linear_growth() -> None:
    model = plain()
    options: dict[str, Any] = {"start": 0.1, "end": 0.2, "steps": 21, "growth": "linear"}
    curve = lr_range_test(model, sgd(model), MSE, loader(), **options, divergence=1e9)
    assert curve.lrs == pytest.approx([0.1 + 0.005 * i for i in range(21)])
    assert curve.growth == "linear"


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lbfgs", "sam"])
def test_all_is_as_before_also_when_it_raises(name: str, fails: bool) -> None:
    model = net()
    optimizers: dict[str, torch.optim.Optimizer] = {
        "sgd": sgd(model),
        "adamw": torch.optim.AdamW(model.parameters()),
        "lbfgs": torch.optim.LBFGS(model.parameters(), max_iter=2),
        "sam": SAM(sgd(model), model),
    }
    optimizer = optimizers[name]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    own = torch.Generator().manual_seed(5)
    batches = loader(generator=own)
    inputs, targets = data().tensors
    MSE(model(inputs), targets).backward()
    if name in ("sgd", "adamw"):
        optimizer.step()
    model[1].eval()
    held_out = loader(generator=own)
    before = everything(model, optimizer, schedule), own.get_state()
    expected = [batch[0] for batch in batches]
    own.set_state(before[1])
    seen = 0

    def step(model: nn.Module, batch: Any) -> Tensor:
        nonlocal seen
        seen += 1
        if fails and seen == 70:
            raise BrokenError
        return MSE(model(batch[0]), batch[1])

    def run() -> LRCurve:
        return lr_range_test(
            model, optimizer, None, batches,
            step=step, held_out=held_out, steps=20, others=[schedule],
        )  # fmt: skip

    if fails:
        with pytest.raises(BrokenError):
            run()
    else:
        run()
    assert everything(model, optimizer, schedule) == before[0]
    assert torch.equal(own.get_state(), before[1])
    assert all(map(torch.equal, [batch[0] for batch in batches], expected))


def test_the_order_of_a_loader_without_a_generator_is_kept() -> None:
    torch.manual_seed(9)
    expected = [batch[0] for batch in loader()]
    model, batches = plain(), loader()
    torch.manual_seed(9)
    lr_range_test(model, sgd(model), MSE, batches, steps=20)
    assert all(map(torch.equal, [batch[0] for batch in batches], expected))


def test_an_epoch_of_persistent_workers_that_is_under_way_goes_on() -> None:
    model = plain()
    batches = loader(shuffle=False, num_workers=1, persistent_workers=True)
    under_way = iter(batches)
    first = next(under_way)[0]
    lr_range_test(model, sgd(model), MSE, batches, steps=20, repeats=1)
    expected = data().tensors[0].split(16)
    assert torch.equal(first, expected[0])
    assert all(map(torch.equal, [batch[0] for batch in under_way], expected[1:]))
    assert batches._iterator is under_way
    del under_way, batches


def test_an_iterator_loses_the_batches_of_the_curve_and_no_more() -> None:
    model = plain()
    batches = iter(list(range(1000)))
    inputs, targets = data().tensors
    curve = lr_range_test(
        model,
        sgd(model),
        None,
        batches,
        step=lambda model, _: MSE(model(inputs), targets),
        steps=30,
    )
    assert next(batches) == curve.batches_taken == sum(len(s.lrs) for s in curve.sweeps)


def endless(n: int) -> Iterator[Any]:
    return itertools.islice(itertools.cycle(loader(shuffle=False)), n)


def test_a_generator_that_ends_within_the_first_sweep_gives_a_reason_for_a_number() -> None:
    model = plain()
    curve = lr_range_test(model, sgd(model), MSE, endless(40))
    assert len(curve.lrs) == 40
    assert [sweep.ended for sweep in curve.sweeps] == ["the batches ended after 40"]
    with pytest.raises(NoAnswerError, match="the batches ended after 40"):
        curve.suggestion()


def test_a_generator_that_ends_later_leaves_the_sweeps_before() -> None:
    model = plain()
    curve = lr_range_test(model, sgd(model), MSE, endless(150))
    assert len(curve.sweeps) == 1
    assert curve.batches_taken == 150
    assert curve.reason is None


@pytest.mark.parametrize("batches", [[], endless(0), endless(19)])
def test_too_few_batches_are_one_clear_error(batches: Any) -> None:
    model = plain()
    with pytest.raises(
        ValueError, match=r"batches: they ended after \d+; a curve needs at least 20"
    ):
        lr_range_test(model, sgd(model), MSE, batches)


def test_accumulated_batches_are_one_larger_batch() -> None:
    model = plain()
    small = list(loader(shuffle=False))
    large = list(DataLoader(data(), 32))
    options: dict[str, Any] = {"steps": 40, "repeats": 1}
    one = lr_range_test(model, sgd(model), MSE, small, accumulate=2, **options)
    other = lr_range_test(model, sgd(model), MSE, large, **options)
    assert one.losses[:30] == pytest.approx(other.losses[:30], rel=1e-4)
    assert one.batches_taken == 2 * len(one.lrs)
    with pytest.raises(ValueError, match="ended after 30; a curve needs at least 40"):
        lr_range_test(model, sgd(model), MSE, endless(30), accumulate=2)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_groups_keep_their_ratios(as_tensor: bool) -> None:
    model = plain()
    wanted = [0.5, 0.05, 0.0]
    rates = [torch.tensor(lr) for lr in wanted] if as_tensor else wanted
    groups: list[dict[str, Any]] = [
        {"params": list(model[0].parameters()), "lr": rates[0]},
        {"params": [model[2].weight], "lr": rates[1]},
        {"params": [model[2].bias], "lr": rates[2]},
    ]
    optimizer = torch.optim.Adam(groups, lr=rates[0], foreach=not as_tensor)
    seen = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        return MSE(model(batch[0]), batch[1])

    curve = lr_range_test(model, optimizer, None, loader(), step=step, steps=20, repeats=1)
    for lr, (first, second, third) in zip(curve.lrs, seen, strict=False):
        assert first == pytest.approx(lr)
        assert second == pytest.approx(lr / 10)
        assert third == 0
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx(wanted)


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_it_stops_at_divergence_whatever_the_sign_of_the_loss(shift: float) -> None:
    model = plain()
    optimizer = sgd(model)
    curve = lr_range_test(
        model, optimizer, lambda o, t: MSE(o, t) + shift, loader(shuffle=False), repeats=1
    )
    assert 50 < len(curve.lrs) < 100
    assert curve.suggestion().value == pytest.approx(0.1, rel=0.9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_from_the_start_takes_one_step(value: float) -> None:
    model = plain()
    curve = lr_range_test(model, sgd(model), lambda o, _: o.sum() * value, loader())
    assert [len(sweep.lrs) for sweep in curve.sweeps] == [1, 1, 1]
    with pytest.raises(NoAnswerError, match=r"3 of 3 sweeps: .* not finite from the first step"):
        curve.suggestion()


@pytest.mark.parametrize("every", [7, 10, 1000])
def test_how_often_losses_are_read_changes_no_curve(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    # as on a GPU, where they are not read each step
    def run() -> LRCurve:
        model = plain()
        return lr_range_test(model, sgd(model), MSE, loader(shuffle=False), repeats=1)

    each = run()
    monkeypatch.setattr(module, "_read_every", lambda _: every)
    assert run() == each


def test_held_out_batches_are_measured_after_each_update_in_evaluation_mode() -> None:
    batches = list(loader(shuffle=False))
    held_out = list(DataLoader(data(64), 32))
    model = plain()
    curve = lr_range_test(model, sgd(model), MSE, batches, held_out=held_out, steps=20, repeats=1)
    twin, modes = plain(), []
    optimizer = sgd(twin)
    for lr, (inputs, targets), loss in zip(curve.lrs, batches, curve.losses, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        MSE(twin(inputs), targets).backward()
        optimizer.step()
        with torch.no_grad():
            expected = sum(MSE(twin(x), y).item() for x, y in held_out) / 2
        assert loss == pytest.approx(expected)

    def measure(model: nn.Module, batch: Any) -> Any:
        modes.append((model.training, torch.is_grad_enabled()))
        return -float(MSE(model(batch[0]), batch[1]))

    better = lr_range_test(
        model, sgd(model), MSE, batches,
        held_out=held_out, measure=measure, maximize=True, steps=20, repeats=1,
    )  # fmt: skip
    assert better.losses == pytest.approx([-loss for loss in curve.losses][: len(better.losses)])
    assert set(modes) == {(False, False)}
    assert better.maximize


def test_gradients_are_clipped() -> None:
    model = plain()
    free = lr_range_test(model, sgd(model), MSE, loader(shuffle=False), repeats=1)
    clipped = lr_range_test(
        model, sgd(model), MSE, loader(shuffle=False), repeats=1, clip_norm=1e-3, divergence=1e9
    )
    assert len(clipped.lrs) == 100
    assert max(clipped.losses) < max(free.losses)


def test_sam_makes_both_passes() -> None:
    model = plain()
    batches = list(loader(shuffle=False))
    curve = lr_range_test(model, SAM(sgd(model), model), MSE, batches, steps=20, repeats=1)
    twin = plain()
    optimizer = SAM(sgd(twin), twin)
    for lr, (inputs, targets), loss in zip(curve.lrs, batches, curve.losses, strict=False):
        optimizer.param_groups[0]["lr"] = lr

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Any:
            value = MSE(twin(inputs), targets)
            value.backward()
            return value.detach()

        assert float(optimizer.step(closure)) == pytest.approx(loss)


def test_an_update_that_the_scaler_skips_is_tried_again_at_its_learning_rate() -> None:
    model = plain()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows at a loss of 2
    before = scaler.state_dict()
    tried: list[tuple[float, float]] = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        loss = MSE(model(batch[0]), batch[1])
        tried.append((optimizer.param_groups[0]["lr"], loss.item()))
        return loss

    curve = lr_range_test(
        model, optimizer, None, loader(), step=step, scaler=scaler, steps=30, repeats=1
    )
    skipped = curve.sweeps[0].skipped
    assert skipped > 1
    assert len(tried) == curve.batches_taken == len(curve.lrs) + skipped
    assert tuple(dict(tried)) == curve.lrs
    assert tuple(dict(tried).values()) == curve.losses  # of the last try at each
    assert scaler.state_dict() == before


def test_updates_that_overflow_whatever_the_scale_end_the_sweep() -> None:
    class Infinite(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            return gradients[0] * math.inf

    model = plain()
    scaler = torch.amp.GradScaler("cpu")
    batches = itertools.cycle(list(loader()))

    def infinite(outputs: Tensor, targets: Tensor) -> Any:
        return Infinite.apply(MSE(outputs, targets))  # type: ignore[no-untyped-call]

    with pytest.raises(ValueError, match="every update overflowed"):
        lr_range_test(model, sgd(model), infinite, batches, scaler=scaler)


def test_autocast_computes_in_its_type() -> None:
    model = plain()
    types = set()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        types.add(outputs.dtype)
        return MSE(outputs.float(), targets)

    lr_range_test(model, sgd(model), loss_fn, loader(), autocast=torch.bfloat16, steps=20)
    assert types == {torch.bfloat16}


class Dictionaries(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 64

    def __init__(self) -> None:
        self._pairs = data(64)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, targets = self._pairs[index]
        return {"x": inputs, "y": targets}


def test_batches_of_any_structure_by_a_step() -> None:
    model = plain()

    def step(model: nn.Module, batch: Any) -> Tensor:
        return MSE(model(batch["x"]), batch["y"])

    curve = lr_range_test(model, sgd(model), None, DataLoader(Dictionaries(), 16), step=step)
    assert curve.reason is None


def test_a_copy_of_the_model_is_all_the_memory_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    optimizer = sgd(model)
    copied = 0
    to = Tensor.to

    def counting(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal copied
        if kwargs.get("copy"):
            copied += self.numel()
        return to(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", counting)
    lr_range_test(model, optimizer, MSE, loader(), steps=20, repeats=3)
    assert copied == sum(parameter.numel() for parameter in model.parameters())


def test_a_sweep_of_many_steps_that_the_batches_end_takes_no_memory_for_the_others() -> None:
    model = plain()
    batches = iter(list(loader()) * 10)
    curve = lr_range_test(model, sgd(model), MSE, batches, steps=10**12)
    assert 20 <= len(curve.lrs) == curve.batches_taken


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": 0.0}, ValueError, r"start=0\.0: must be above 0"),
        ({"start": 1.0, "end": 0.1}, ValueError, r"end=0\.1: must be above start=1\.0"),
        ({"end": math.inf}, ValueError, "end=inf: must be finite"),
        ({"start": "1e-7"}, TypeError, "start='1e-7': must be a number"),
        ({"start": 1e-320}, ValueError, "end=10.0: is too far above start=1e-320"),
        ({"steps": 19}, ValueError, "steps=19: must be at least 20"),
        ({"growth": "log"}, ValueError, "growth='log': must be 'exponential' or 'linear'"),
        ({"repeats": 0}, ValueError, "repeats=0: must be at least 1"),
        ({"accumulate": 0}, ValueError, "accumulate=0: must be at least 1"),
        ({"smoothing": 1.0}, ValueError, r"smoothing=1\.0: must be in \[0, 1\)"),
        ({"divergence": 0.0}, ValueError, r"divergence=0\.0: must be above 0"),
        ({"clip_norm": -1.0}, ValueError, r"clip_norm=-1\.0: must be above 0"),
        ({"autocast": "bf16"}, TypeError, "autocast='bf16': must be a torch.dtype"),
        ({"autocast": torch.int32}, ValueError, "autocast=torch.int32: must be torch.bfloat16 or"),
        ({"scaler": True}, TypeError, "scaler: bool is not a torch.amp.GradScaler"),
        ({"measure": MSE}, ValueError, "measure: it is measured on held_out batches"),
        ({"maximize": True}, ValueError, "maximize: a training loss is minimized"),
        ({"held_out": iter([])}, TypeError, "held_out: list_iterator cannot be iterated again"),
        ({"held_out": []}, ValueError, "held_out: it has no batches"),
        ({"held_out": [1], "measure": 3}, TypeError, "measure: int cannot be called"),
        ({"held_out": "abc"}, TypeError, "held_out: str cannot be iterated"),
        ({"held_out": [1], "measure": lambda m, b: "x"}, TypeError, "measure: it returned a str"),
        ({"held_out": [1], "measure": lambda m, b: torch.ones(3)}, TypeError, r"of shape \(3,\)"),
        ({"held_out": [1], "maximize": True}, ValueError, "maximize: a loss is minimized"),
        ({"others": [3]}, TypeError, "others: int lacks state_dict"),
        ({"others": None}, TypeError, "others: NoneType is not a list of objects"),
        ({"batches": 3}, TypeError, "batches: int is not an iterable"),
        ({"loss_fn": None}, TypeError, "loss_fn: needed where there is no step"),
        ({"loss_fn": lambda o, t: MSE(o, t) * 1j}, TypeError, "loss_fn: a loss must be real, not"),
        ({"loss_fn": lambda o, t: torch.ones(())}, ValueError, "loss_fn: the loss depends on no p"),
    ],
)
def test_bad_input_is_one_clear_error(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = plain()
    arguments: dict[str, Any] = {"loss_fn": MSE, "batches": loader(), **change}
    before = everything(model)
    with pytest.raises(error, match=message):
        lr_range_test(model, sgd(model), **arguments)
    assert everything(model) == before


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: sgd(plain()), "optimizer: none of its parameters belongs to the model"),
        (lambda model: sgd(frozen(model)), "optimizer: none of its parameters requires a gradient"),
        (
            lambda model: torch.optim.SGD(
                [{"params": [model[0].weight], "lr": 0.0}, {"params": [model[0].bias], "lr": 1.0}]
            ),
            r"optimizer: the first parameter group has lr=0\.0; .* must be above 0",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_tested_is_refused(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer], message: str
) -> None:
    model = plain()
    with pytest.raises(ValueError, match=message):
        lr_range_test(model, optimizer(model), MSE, loader())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_the_curve_is_that_of_the_cpu_and_all_is_as_before(precision: str) -> None:
    model = net(dropout=0.0).cuda()
    optimizer = sgd(model)
    options: dict[str, Any] = {}
    if precision != "float32":
        options["autocast"] = getattr(torch, precision)
    if precision == "float16":
        # A larger scale overflows at first: then the skipped batches shift the curve.
        options["scaler"] = torch.amp.GradScaler("cuda", init_scale=2.0**6)
    state = copy.deepcopy(model.state_dict())
    random_numbers = torch.cuda.get_rng_state()

    def step(model: nn.Module, batch: Any) -> Tensor:
        torch.rand(1, device="cuda")
        return MSE(model(batch[0].cuda()).float(), batch[1].cuda())

    curve = lr_range_test(
        model, optimizer, None, loader(shuffle=False), step=step, repeats=2, **options
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(torch.cuda.get_rng_state(), random_numbers)
    assert not optimizer.state
    reference = net(dropout=0.0)
    expected = lr_range_test(reference, sgd(reference), MSE, loader(shuffle=False), repeats=2)
    close = 1e-3 if precision == "float32" else 0.05
    assert curve.losses[:60] == pytest.approx(expected.losses[:60], rel=close)
    assert curve.suggestion().value == pytest.approx(expected.suggestion().value, rel=0.5)
