"""`preserved` leaves everything bit for bit as it was, whatever the block did."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.training import preserved
from tests.support.states import everything, raw

torch.set_num_threads(1)


class Net(nn.Module):
    """Parameters used twice, without gradient and of another type; buffers of each kind."""

    expanded: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("expanded", torch.ones(1, 4).expand(3, 4))
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(inputs)))
        result: Tensor = (self.last(hidden) * self.scale).float() + self.frozen
        return result


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "lbfgs":
        return torch.optim.LBFGS(parameters, max_iter=2)
    groups: list[dict[str, Any]] = [
        {"params": parameters[:1], "lr": 0.1},
        {"params": parameters[1:], "lr": 0.01, "tag": "rest"},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups, amsgrad=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (model(torch.randn(8, 4)) ** 2).mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]  # its stubs want a float


def move_all_random_numbers() -> None:
    random.random()
    np.random.rand()
    torch.rand(())


def trains(model: Net, optimizer: torch.optim.Optimizer) -> None:
    train(model, optimizer)


def changes_modes_and_gradients(model: Net, optimizer: torch.optim.Optimizer) -> None:
    model.eval()
    model.norm.train()
    model.frozen.requires_grad_(True)
    model.first.requires_grad_(False)
    model.scale.grad = torch.ones((), dtype=torch.float64)


def changes_options(model: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 9.0
    optimizer.param_groups[0]["new"] = 1
    optimizer.param_groups.reverse()
    optimizer.add_param_group({"params": [model.frozen]})
    torch.optim.lr_scheduler.StepLR(optimizer, 1)


def replaces_parameters(model: Net, optimizer: torch.optim.Optimizer) -> None:
    model.first = nn.Linear(4, 7)
    model.scale = nn.Parameter(torch.zeros(()))
    model.norm.running_mean = torch.full((4,), 7.0)
    model.register_buffer("another", torch.zeros(1))
    del model.drop


def moves_data(model: Net, optimizer: torch.optim.Optimizer) -> None:
    model.double()
    model.first.weight.data = torch.zeros(1)
    model.expanded.data = torch.zeros(3, 4)


def loads_states(model: Net, optimizer: torch.optim.Optimizer) -> None:
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict({name: value + 1 for name, value in state.items()}, assign=True)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


BLOCKS: list[Callable[[Net, torch.optim.Optimizer], None]] = [
    trains,
    changes_modes_and_gradients,
    changes_options,
    replaces_parameters,
    moves_data,
    loads_states,
]


@pytest.fixture(params=["sgd", "adamw", "lbfgs"])
def pair(request: pytest.FixtureRequest) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Net()
    return model, optimizer_of(model, request.param)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_all_is_as_before_when_the_block_ends_and_when_it_raises(
    pair: tuple[Net, torch.optim.Optimizer], trained: bool, block: Callable[..., None]
) -> None:
    model, optimizer = pair
    if block is changes_options and isinstance(optimizer, torch.optim.LBFGS):
        pytest.skip("L-BFGS takes one group only")
    if trained:
        train(model, optimizer)  # leaves gradients and state
    model.norm.eval()
    before = everything(model, optimizer)
    with preserved(model, optimizer):
        assert model.scale.grad is None
        block(model, optimizer)
        move_all_random_numbers()
        assert everything(model, optimizer) != before
    assert everything(model, optimizer) == before
    with pytest.raises(ZeroDivisionError), preserved(model, optimizer):  # noqa: PT012
        block(model, optimizer)
        move_all_random_numbers()
        raise ZeroDivisionError
    assert everything(model, optimizer) == before


@pytest.mark.parametrize("name", ["sgd", "adamw", "lbfgs"])
def test_what_comes_after_is_the_same_training(name: str) -> None:
    weights = []
    for disturbed in (False, True):
        torch.manual_seed(3)
        model = Net()
        optimizer = optimizer_of(model, name)
        train(model, optimizer)
        if disturbed:
            with preserved(model, optimizer):
                train(model, optimizer, steps=3)
        train(model, optimizer)
        weights.append([raw(parameter) for parameter in model.parameters()])
    assert weights[0] == weights[1]


def test_state_of_a_higher_precision_than_its_parameter_keeps_it() -> None:
    # load_state_dict casts it to the parameter's type
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.state[parameter]["momentum_buffer"] = torch.full((3,), 1.0001)
    with preserved(optimizer=optimizer):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros(3)
        parameter.data.zero_()
    buffer = optimizer.state[parameter]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    assert buffer.tolist() == torch.full((3,), 1.0001).tolist()
    assert parameter.tolist() == [1.0, 1.0, 1.0]


def test_the_block_can_begin_anew(pair: tuple[Net, torch.optim.Optimizer]) -> None:
    model, optimizer = pair
    train(model, optimizer)
    before = everything(model, optimizer)
    with preserved(model, optimizer) as begin_anew:
        weights = []
        for _ in range(2):
            begin_anew()
            torch.manual_seed(1)
            assert model.first.weight.grad is None
            train(model, optimizer)
            weights.append([raw(parameter) for parameter in model.parameters()])
        assert weights[0] == weights[1]
    assert everything(model, optimizer) == before


class Around(torch.optim.Optimizer):
    """Drives another optimizer, as SAM does, and shares its groups."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base = base
        self.param_groups = base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_a_wrapped_optimizer_is_kept_with_its_wrapper() -> None:
    model = Net()
    optimizer = Around(optimizer_of(model, "adamw"))
    train(model, optimizer)
    before = everything(model, optimizer, optimizer.base)
    with preserved(model, optimizer):
        train(model, optimizer)
    assert everything(model, optimizer, optimizer.base) == before
    assert optimizer.param_groups is optimizer.base.param_groups


def test_schedules_and_scalers_are_kept() -> None:
    model = Net()
    optimizer = optimizer_of(model, "adamw")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    before = everything(model, optimizer, schedule, scaler)
    with preserved(model, optimizer, others=[schedule, scaler]):
        for _ in range(3):
            scaler.scale(model(torch.randn(8, 4)).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        assert everything(model, optimizer, schedule, scaler) != before
    assert everything(model, optimizer, schedule, scaler) == before


def test_a_scaler_left_in_the_middle_of_a_step_can_go_on() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")

    def unscaled() -> None:
        scaler.scale(model(torch.ones(3, 2)).mean()).backward()
        scaler.unscale_(optimizer)  # a second call before update() is refused

    with pytest.raises(MemoryError), preserved(model, optimizer, others=[scaler]):  # noqa: PT012
        unscaled()
        raise MemoryError
    unscaled()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def get_extra_state(self) -> Any:
        return self.calls

    def set_extra_state(self, state: Any) -> None:
        self.calls = state


def test_extra_state_is_kept() -> None:
    model = Counting()
    with preserved(model):
        model.calls[0] = 5
    assert model.calls == [0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_model_is_kept() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    before = {name: raw(value) for name, value in model.state_dict().items()}
    with preserved(model):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model.eval()
    assert {name: raw(value) for name, value in model.state_dict().items()} == before
    assert model.training


def test_everything_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizer = optimizer_of(model, "adamw")
    train(model, optimizer)
    copied: list[Tensor] = []
    to = Tensor.to

    def counting(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copied.append(to(self, *args, **kwargs))
        return copied[-1]

    monkeypatch.setattr(Tensor, "to", counting)
    with preserved(model, optimizer):
        pass
    held = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    held |= {id(value): value for state in optimizer.state.values() for value in state.values()}
    expanded = model.expanded[0]  # holds its four numbers once, though it shows them three times
    held[id(model.expanded)] = expanded
    assert sum(map(nbytes, copied)) == sum(map(nbytes, held.values()))


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model: int is not a torch.nn.Module"),
        ({"optimizer": "sgd"}, "optimizer: str is not a torch.optim.Optimizer"),
        ({"others": [object()]}, "others: object lacks state_dict and load_state_dict"),
        ({"others": None}, "others: NoneType is not a list of objects to restore"),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message), preserved(**arguments):
        pass


def test_a_lazy_model_is_refused_before_anything_is_done() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    model[0].weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"parameter 1\.weight of a lazy module"), preserved(model):
        pass
    assert model[0].weight.grad is not None


def test_a_model_without_values_and_an_unknown_device_are_refused() -> None:
    model = nn.Linear(2, 2, device="meta")
    with (
        pytest.raises(ValueError, match="parameter weight is on the meta device"),
        preserved(model),
    ):
        pass
    with pytest.raises(ValueError, match="device='gpu': must be a device"), preserved(device="gpu"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_random_numbers_and_tensors_are_kept() -> None:
    model = Net().cuda()
    optimizer = optimizer_of(model, "adamw")

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 4, device="cuda")).square().mean().backward()
        optimizer.step()

    def state() -> list[bytes]:
        states = [value for kept in optimizer.state.values() for value in kept.values()]
        tensors = [*model.parameters(), *model.buffers(), *states]
        return [raw(tensor.cpu()) for tensor in tensors] + [raw(torch.cuda.get_rng_state())]

    step()
    for held in (None, "cpu"):
        before = state()
        with preserved(model, optimizer, device=held):
            step()
            assert state() != before
        assert state() == before
