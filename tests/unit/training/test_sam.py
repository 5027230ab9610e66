"""SAM and ASAM: the step is the papers', and nothing beside it differs from any torch optimizer."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orchestrator.training import SAM, preserved

Base = Callable[[Any], Optimizer]
BASES: dict[str, Base] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
}
BATCH = (
    torch.randn(16, 4, generator=torch.Generator().manual_seed(1)),
    torch.arange(16) % 3,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed: int = 0, *, normalised: bool = True) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(8) if normalised else nn.Identity()
        return nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Linear(8, 3))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def loss_of(model: nn.Module) -> Any:
    inputs, targets = BATCH
    return nn.functional.cross_entropy(model(inputs), targets)


def closure_of(model: nn.Module, optimizer: Optimizer) -> Callable[[], Any]:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return closure


def backward(loss: Tensor) -> None:
    loss.backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(left: Any, right: Any) -> bool:
    """Whether two nested structures hold the same bits."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


# --------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_by_the_gradient_at_the_worst_point_nearby(adaptive: bool) -> None:
    model = network()
    start, rho, eta, lr = weights(model), 0.3, 0.01, 0.1
    twin = copy.deepcopy(model)
    gradient = torch.autograd.grad(loss_of(twin), [*twin.parameters()])
    size = [w.abs() + eta if adaptive else torch.ones_like(w) for w in start]
    norm = sum(float(((t * g) ** 2).sum()) for t, g in zip(size, gradient, strict=True)) ** 0.5
    with torch.no_grad():
        for p, g, t in zip(twin.parameters(), gradient, size, strict=True):
            p.add_(rho * t * t * g / norm)
    uphill = torch.autograd.grad(loss_of(twin), [*twin.parameters()])

    optimizer = SAM(sgd(model, lr), model, rho=rho, adaptive=adaptive)
    loss = optimizer.step(closure_of(model, optimizer))

    expected = [w - lr * g for w, g in zip(start, uphill, strict=True)]
    for got, want in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    plain = [w - lr * g for w, g in zip(start, gradient, strict=True)]
    assert not torch.allclose(weights(model)[0], plain[0], rtol=1e-3)
    assert torch.equal(torch.as_tensor(loss), loss_of(network()))  # at the weights, not at w + e


def test_perturbs_by_rho_over_all_groups_and_comes_back_exactly() -> None:
    model = network()
    groups: Any = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.5}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), model, rho=0.05)
    before = weights(model)
    backward(loss_of(model))
    with optimizer.perturbed():
        moved = [a - b for a, b in zip(weights(model), before, strict=True)]
        assert all(p.grad is None for p in model[0].parameters())
        backward(loss_of(model))
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.05, rel=1e-4)
    assert same(weights(model), before)


def test_asam_perturbs_alike_whatever_the_scale_of_the_weights() -> None:
    def relative(scale: float) -> Tensor:
        layers = nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)
        model: Any = nn.Sequential(*layers)
        source = network()
        with torch.no_grad():  # the same function at each scale
            model[0].weight.copy_(source[0].weight * scale)
            model[2].weight.copy_(source[3].weight / scale)
        optimizer = SAM(sgd(model), model, adaptive=True, eta=0.0)
        before = weights(model)
        backward(loss_of(model))
        with optimizer.perturbed():
            change = weights(model)[0] / before[0]
            backward(loss_of(model))
        return change

    torch.testing.assert_close(relative(1.0), relative(16.0), rtol=1e-4, atol=1e-6)


def test_each_variant_has_its_own_default_rho() -> None:
    model = network()
    assert SAM(sgd(model), model).param_groups[0]["rho"] == 0.05
    assert SAM(sgd(model), model, adaptive=True).param_groups[0]["rho"] == 0.5


def test_a_group_may_have_its_own_rho() -> None:
    model = network()
    groups: Any = [{"params": [model[0].weight], "rho": 0.2}, {"params": [model[3].weight]}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), model, rho=0.1)
    before = [model[0].weight.detach().clone(), model[3].weight.detach().clone()]
    backward(loss_of(model))
    gradients = [model[0].weight.grad, model[3].weight.grad]
    with optimizer.perturbed():
        first = (model[0].weight.detach() - before[0]).norm() / gradients[0].norm()
        second = (model[3].weight.detach() - before[1]).norm() / gradients[1].norm()
        backward(loss_of(model))
    assert float(first / second) == pytest.approx(2.0, rel=1e-4)


# ------------------------------------------------------------------------- batch-norm statistics


@pytest.mark.parametrize("momentum", [0.1, None])
def test_only_the_first_pass_moves_running_statistics(momentum: float | None) -> None:
    model, twin = network(), network()
    for one in (model, twin):
        one[1].momentum = momentum
    optimizer = SAM(sgd(model), model)
    for step in range(1, 4):
        optimizer.step(closure_of(model, optimizer))
        if step == 1:
            loss_of(twin)
            assert same(dict(model.named_buffers()), dict(twin.named_buffers()))
        assert int(model[1].num_batches_tracked) == step
    assert model[1].momentum == momentum
    assert model[1].training
    assert model[1].track_running_stats


def test_statistics_move_on_after_a_second_pass_inside_another_one_was_refused() -> None:
    model = network()
    optimizer = SAM(sgd(model), model)
    before = weights(model)
    backward(loss_of(model))
    with ExitStack() as stack:
        stack.enter_context(optimizer.perturbed())
        backward(loss_of(model))
        with pytest.raises(RuntimeError, match="perturbed already"):
            stack.enter_context(optimizer.perturbed())
    assert same(weights(model), before)
    mean = model[1].running_mean.clone()
    loss_of(model)
    assert not torch.equal(model[1].running_mean, mean)


def test_a_buffer_that_a_module_assigns_anew_counts_the_first_pass_only() -> None:
    class Counted(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return inputs

    model: Any = nn.Sequential(Counted(), network())
    optimizer = SAM(sgd(model), model)
    optimizer.step(closure_of(model, optimizer))
    optimizer.step(closure_of(model, optimizer))
    assert model[0].calls.item() == 2
    assert "0.calls" in model.state_dict()


# ----------------------------------------------------------------------- what a training does too


def scaler_and_step(
    model: nn.Module, optimizer: SAM, scale: float, spoil: str | None = None
) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    factor = {pass_: float("inf") if pass_ == spoil else 1.0 for pass_ in ("first", "second")}
    optimizer.zero_grad()
    backward(scaler.scale(loss_of(model) * factor["first"]))
    with optimizer.perturbed():
        backward(scaler.scale(loss_of(model) * factor["second"]))
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    return scaler


def test_a_scaled_and_clipped_step_is_the_unscaled_one_clipped() -> None:
    model, twin = network(), network()
    scaler_and_step(model, SAM(sgd(model), model), 2.0**10)

    optimizer = SAM(sgd(twin), twin)

    def closure() -> Any:
        loss = closure_of(twin, optimizer)()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        return loss

    start = weights(twin)
    optimizer.step(closure)
    for got, want in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(twin), start, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.1 * 0.1, rel=1e-3)  # lr · the clipped norm


@pytest.mark.parametrize("spoil", ["first", "second"])
def test_an_overflow_in_either_pass_skips_the_step(spoil: str) -> None:
    model = network()
    optimizer = SAM(BASES["adamw"](model.parameters()), model)
    before = weights(model)
    scaler = scaler_and_step(model, optimizer, 2.0**10, spoil)
    assert same(weights(model), before)
    assert scaler.get_scale() == 2.0**9
    assert not optimizer.state  # the base optimizer has not stepped


def test_without_a_scaler_an_overflow_of_the_first_pass_is_not_hidden() -> None:
    model = network()
    optimizer = SAM(sgd(model), model)
    backward(loss_of(model) * float("inf"))
    with optimizer.perturbed():
        assert all(torch.isfinite(p).all() for p in model.parameters())
        backward(loss_of(model))
    optimizer.step()
    assert all(torch.isnan(p).all() for p in model.parameters())


def test_accumulated_passes_equal_one_large_batch() -> None:
    model, twin = network(normalised=False), network(normalised=False)
    inputs, targets = BATCH
    optimizer = SAM(sgd(model), model, rho=0.3)

    def accumulate() -> None:
        for part in range(4):
            rows = slice(4 * part, 4 * part + 4)
            backward(nn.functional.cross_entropy(model(inputs[rows]), targets[rows]) / 4)

    accumulate()
    with optimizer.perturbed():
        accumulate()
    optimizer.step()

    whole = SAM(sgd(twin), twin, rho=0.3)
    whole.step(closure_of(twin, whole))
    for got, want in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_closure_is_evaluated_twice_and_need_not_empty_gradients() -> None:
    model, twin = network(), network()
    optimizer, other = SAM(sgd(model), model), SAM(sgd(twin), twin)
    backward(loss_of(model) * -3)  # left over: must not turn the perturbation around
    model[1].load_state_dict(twin[1].state_dict())
    calls = []

    def careless() -> Any:
        loss = loss_of(model)
        backward(loss)
        calls.append(loss)
        return loss

    with torch.no_grad():  # as some frameworks call it
        assert optimizer.step(careless) is calls[0]
    other.step(closure_of(twin, other))
    assert len(calls) == 2
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(base: str, adaptive: bool) -> None:
    def run(model: nn.Module, optimizer: SAM, steps: int) -> None:
        for _ in range(steps):
            optimizer.step(closure_of(model, optimizer))

    whole = network()
    run(whole, SAM(BASES[base](whole.parameters()), whole, adaptive=adaptive), 6)

    model = network()
    optimizer = SAM(BASES[base](model.parameters()), model, adaptive=adaptive)
    run(model, optimizer, 3)
    saved = pickle.loads(pickle.dumps({"m": model.state_dict(), "o": optimizer.state_dict()}))
    resumed = network(seed=5)
    again = SAM(BASES[base](resumed.parameters()), resumed, adaptive=adaptive)
    resumed.load_state_dict(saved["m"])
    again.load_state_dict(saved["o"])
    run(resumed, again, 3)
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_run_of_the_base_alone_goes_on_with_sam() -> None:
    model = network()
    base = BASES["sgd"](model.parameters())
    backward(loss_of(model))
    base.step()
    later = SAM(BASES["sgd"](model.parameters()), model)
    later.load_state_dict(base.state_dict())
    assert later.param_groups[0]["rho"] == 0.05
    first = model[0].weight
    assert same(later.state[first]["momentum_buffer"], base.state[first]["momentum_buffer"])
    later.step(closure_of(model, later))


def test_state_that_the_base_has_already_is_kept() -> None:
    model = network()
    base = BASES["sgd"](model.parameters())
    backward(loss_of(model))
    base.step()
    momentum = base.state[model[0].weight]["momentum_buffer"]
    optimizer = SAM(base, model)
    assert optimizer.state[model[0].weight]["momentum_buffer"] is momentum
    assert optimizer.param_groups is base.param_groups


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_with_its_model_trains_alike(how: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = SAM(BASES["adamw"](model.parameters()), model, rho=0.2, adaptive=True)
    optimizer.step(closure_of(model, optimizer))
    twin, other = how((model, optimizer))
    optimizer.step(closure_of(model, optimizer))
    other.step(closure_of(twin, other))
    assert other.param_groups[0]["params"][0] is twin[0].weight
    assert same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("by_closure", [True, False])
def test_schedules_set_its_learning_rate_without_a_warning(by_closure: bool) -> None:
    model = network()
    optimizer = SAM(BASES["sgd"](model.parameters()), model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            if by_closure:
                optimizer.step(closure_of(model, optimizer))
            else:
                optimizer.zero_grad()
                backward(loss_of(model))
                with optimizer.perturbed():
                    backward(loss_of(model))
                optimizer.step()
            schedule.step()
    assert optimizer.base.param_groups[0]["lr"] == schedule.get_last_lr()[0] != 0.1


def test_an_exception_in_the_second_pass_leaves_weights_and_statistics() -> None:
    model = network()
    optimizer = SAM(sgd(model), model)
    before = weights(model)
    calls = []

    def closure() -> Any:
        loss = closure_of(model, optimizer)()
        calls.append(copy.deepcopy(dict(model.named_buffers())))
        if len(calls) == 2:
            assert not same(weights(model), before)
            raise KeyError("no more batches")
        return loss

    with pytest.raises(KeyError, match="no more batches"):
        optimizer.step(closure)
    assert same(weights(model), before)
    assert same(dict(model.named_buffers()), calls[0])
    with pytest.raises(RuntimeError, match="second gradient"):
        optimizer.step()
    optimizer.step(closure_of(model, optimizer))
    assert not same(weights(model), before)


def test_a_preserved_block_gives_back_the_base_optimizer_too() -> None:
    model = network()
    optimizer = SAM(BASES["adamw"](model.parameters()), model)
    optimizer.step(closure_of(model, optimizer))
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    with preserved(model, optimizer):
        optimizer.param_groups[0]["rho"] = 0.5
        optimizer.step(closure_of(model, optimizer))
    assert same([model.state_dict(), optimizer.state_dict()], before)
    assert optimizer.param_groups is optimizer.base.param_groups
    optimizer.step(closure_of(model, optimizer))


def test_new_groups_get_the_options_and_are_perturbed() -> None:
    model = network()
    optimizer = SAM(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.5})
    assert optimizer.base.param_groups[1]["rho"] == 0.05
    before = weights(model)
    optimizer.step(closure_of(model, optimizer))
    assert not torch.equal(before[-1], weights(model)[-1])


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    frozen = weights(model[0])
    optimizer = SAM(sgd(model), model)
    optimizer.step(closure_of(model, optimizer))
    assert same(weights(model[0]), frozen)


# -------------------------------------------------------------------------------------- bad usage


def test_a_step_without_a_second_pass_is_refused() -> None:
    model = network()
    optimizer = SAM(sgd(model), model)
    before = weights(model)
    backward(loss_of(model))
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        optimizer.step()
    with optimizer.perturbed():
        backward(loss_of(model))
        with pytest.raises(RuntimeError, match="within perturbed"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="within perturbed"):
            optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="after perturbed"), optimizer.perturbed():
        pass
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="backward"), optimizer.perturbed():
        pytest.fail("must not be entered")
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.step(lambda: 0.0)
    assert same(weights(model), before)


def test_a_second_gradient_is_used_once() -> None:
    model = network()
    optimizer = SAM(sgd(model), model)
    backward(loss_of(model))
    with optimizer.perturbed():
        backward(loss_of(model))
    optimizer.step()
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    optimizer = SAM(sgd(model), model)
    before = weights(model)
    backward(model(torch.tensor([1])).sum())
    with pytest.raises(RuntimeError, match="sparse"), optimizer.perturbed():
        pytest.fail("must not be entered")
    assert same(weights(model), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rho": 0.0}, ValueError, "rho must be above 0 and finite, got 0.0"),
        ({"rho": float("nan")}, ValueError, "rho must be above 0"),
        ({"rho": "0.05"}, TypeError, "rho must be a number, got '0.05'"),
        ({"eta": -1.0}, ValueError, "eta must be at least 0"),
        ({"adaptive": "yes"}, TypeError, "adaptive must be True or False, got 'yes'"),
        ({"model": nn.Linear(1, 1)}, ValueError, "none of the parameters"),
        ({"model": sgd}, TypeError, "model must be a module or None, not function"),
        ({"base": torch.optim.SGD}, TypeError, "base must be a torch optimizer, not type"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        SAM(**{"base": sgd(model), "model": model, **change})


def test_bad_groups_and_bases() -> None:
    model = network()
    with pytest.raises(TypeError, match="LBFGS evaluates"):
        SAM(torch.optim.LBFGS(model.parameters()), model)
    with pytest.raises(TypeError, match="SAM evaluates"):
        SAM(SAM(sgd(model), model), model)
    groups: Any = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "rho": -1}]
    with pytest.raises(ValueError, match="rho of parameter group 1 must be above 0"):
        SAM(torch.optim.SGD(groups, lr=0.1), model)
    optimizer = SAM(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match="rho"):
        optimizer.add_param_group({"params": model[3].parameters(), "rho": -1})
    assert len(optimizer.param_groups) == 1


# -------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_half_precision_with_a_scaler_on_a_gpu() -> None:
    model = network().cuda()
    optimizer = SAM(BASES["sgd"](model.parameters()), model)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)  # overflows to begin with
    inputs, targets = BATCH[0].cuda(), BATCH[1].cuda()
    losses, skipped = [], 0
    for _ in range(60):
        before, scale = weights(model), scaler.get_scale()

        def scaled() -> Any:
            with torch.autocast("cuda", torch.float16):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            backward(scaler.scale(loss))
            return loss

        optimizer.zero_grad()
        losses.append(scaled().item())
        with optimizer.perturbed():
            scaled()
        assert same(weights(model), before)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            skipped += 1
            assert same(weights(model), before)
    assert skipped > 0
    assert losses[-1] < 0.5 * losses[0]
    assert int(model[1].num_batches_tracked) == 60
