"""Loss landscapes: what they measure, and that measuring leaves no trace."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training import (
    LossLandscape,
    average_sharpness,
    compare_landscapes,
    loss_landscape,
)
from orchestrator.training.directions import cosine, random_direction

Pair = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(*, dropout: float = 0.0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(16, 3),
        )  # fmt: skip
        for _ in range(5):
            net(torch.randn(32, 1, 4, 4))
    return net


def samples(n: int = 40) -> Pair:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 3


def batches(size: int = 16, n: int = 40) -> list[Pair]:
    inputs, targets = samples(n)
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def landscape(model: Any = None, **changes: Any) -> LossLandscape:
    words: dict[str, Any] = {"points": 5, "dimensions": 1, **changes}
    data = words.pop("batches", batches())
    return loss_landscape(network() if model is None else model, cross_entropy, data, **words)


def loss_at(model: nn.Module, data: list[Pair]) -> float:
    model.eval()
    with torch.no_grad():
        losses = [(float(cross_entropy(model(x), y).double()), len(x)) for x, y in data]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


# --------------------------------------------------------------------------------- what it measures


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_centre_is_the_model_exactly(dimensions: int) -> None:
    model = network()
    found = landscape(model, dimensions=dimensions, points=3)
    assert found.losses.shape == (3,) * dimensions
    assert found.complete
    assert found.centre == pytest.approx(loss_at(model, batches()), rel=1e-12)  # uneven batches
    assert found.alphas.tolist() == [-1.0, 0.0, 1.0]


def test_each_point_is_the_loss_of_the_moved_model() -> None:
    model = network()
    found = landscape(model, dimensions=2, points=3, radius=0.5, seed=3)
    first = random_direction(model, seed=3)
    for i, j, k in ((0, 1, -0.5), (2, 1, 0.5)):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                if name in first:
                    p.add_(first[name], alpha=k)
        assert found.losses[i, j] == pytest.approx(loss_at(moved, batches()), rel=1e-6)
    assert found.losses[1, 0] != found.losses[0, 1]  # another direction
    assert len(set(found.losses.ravel())) == 9


def test_filters_move_by_their_own_length_and_vectors_do_not_move() -> None:
    model = network()
    direction = random_direction(model, seed=1)
    assert set(direction) == {"0.weight", "5.weight"}
    for name, along in direction.items():
        weight = model.get_parameter(name)
        lengths = [w.detach().flatten(1).norm(dim=1) for w in (along, weight)]
        torch.testing.assert_close(*lengths)
    assert min(float(along.min()) for along in direction.values()) < 0  # Gaussian, not uniform


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_has_its_outputs_in_the_second_dimension(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    along = random_direction(layer)["weight"]
    inputs, outputs = 4 // groups, 6 // groups
    for group in range(groups):
        for output in range(outputs):
            filters = [
                t[group * inputs : (group + 1) * inputs, output] for t in (along, layer.weight)
            ]
            torch.testing.assert_close(filters[0].norm(), filters[1].detach().norm())


def test_two_directions_are_nearly_orthogonal_and_a_seed_gives_the_same_one() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10))
    one, other = random_direction(model, seed=0), random_direction(model, seed=1)
    assert abs(cosine(one, other)) < 0.05  # of 11,000 weights: 0.01 is one standard deviation
    assert cosine(one, random_direction(model, seed=0)) == pytest.approx(1.0)
    part = random_direction(model, seed=0, parameters=model[1].parameters())
    assert torch.equal(part["1.weight"], one["1.weight"])
    assert "0.weight" not in part
    found = landscape(dimensions=2, points=3)
    assert found.cosine is not None
    assert abs(found.cosine) < 0.5  # of 84 weights
    assert found.weights == 84


@pytest.mark.parametrize("batch_norm", ["stored", "recomputed"])
def test_a_rescaled_layer_that_batch_norm_undoes_changes_nothing(batch_norm: str) -> None:
    model, rescaled = network(), network()
    with torch.no_grad():  # the same function, exactly but for batch-norm's epsilon
        rescaled[0].weight.mul_(0.125)
        rescaled[0].bias.mul_(0.125)
        rescaled[1].running_mean.mul_(0.125)
        rescaled[1].running_var.mul_(0.125**2)
        for one in (model, rescaled):
            one[1].eps = 1e-12
    before = landscape(model, batch_norm=batch_norm, dimensions=2, points=3)
    after = landscape(rescaled, batch_norm=batch_norm, dimensions=2, points=3)
    np.testing.assert_allclose(after.losses, before.losses, rtol=1e-4)
    # Without the filters' lengths it would: the same step on both.
    step = random_direction(model)["0.weight"]
    with torch.no_grad():
        for one in (model, rescaled):
            one[0].weight.add_(step)
    assert abs(loss_at(rescaled, batches()) / loss_at(model, batches()) - 1) > 0.05


def test_recomputed_statistics_fit_the_point() -> None:
    model = network()
    whole = [samples()]  # one batch, so that the statistics are exact
    stored = landscape(model, batches=whole, batch_norm="stored")
    recomputed = landscape(model, batches=whole, batch_norm="recomputed")
    twin = copy.deepcopy(model)
    along = random_direction(model)
    with torch.no_grad():
        for name, direction in along.items():
            twin.get_parameter(name).add_(direction)
        twin[1].reset_running_stats()
        twin[1].momentum = 1.0
        twin.train()(whole[0][0])
    assert recomputed.losses[-1] == pytest.approx(loss_at(twin, whole), rel=1e-5)
    assert stored.losses[-1] != pytest.approx(recomputed.losses[-1], rel=1e-3)
    assert (stored.batch_norm, recomputed.batch_norm) == ("stored", "recomputed")


def test_only_the_parameters_given_move() -> None:
    model = network()
    found = landscape(model, parameters=model[5].parameters())
    assert found.weights == 48
    assert found.model != landscape(model).model


def test_a_step_function_reads_batches_of_any_structure() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch["image"]), batch["label"])

    model = network()
    data = [{"image": x, "label": y} for x, y in batches(size=20)]
    found = loss_landscape(model, None, data, step=step, dimensions=1, points=3)
    assert found.losses.tolist() == landscape(model, batches=batches(20), points=3).losses.tolist()


# ------------------------------------------------------------------------------- it leaves no trace


@pytest.mark.parametrize("batch_norm", ["stored", "recomputed"])
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_numbers_are_left_as_they_were(batch_norm: str, fails: bool) -> None:
    model = network(dropout=0.5)
    model[3].eval()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    loader = DataLoader(
        TensorDataset(*samples()), 16, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    calls = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        random.random()
        np.random.rand()
        torch.rand(1)
        calls.append(1)
        if fails and len(calls) == 5:
            raise KeyError("fails")
        return cross_entropy(outputs, targets)

    def state() -> list[Any]:
        return [
            [t.numpy().copy() for t in model.state_dict().values()],
            [m.training for m in model.modules()],
            model[5].weight.grad.tolist(), model[1].momentum, torch.get_rng_state().tolist(),
            loader.generator.get_state().tolist(), random.getstate(), np.random.get_state(),
        ]  # fmt: skip

    before, tensors = state(), [*model.parameters(), *model.buffers()]
    if fails:
        with pytest.raises(KeyError, match="fails"):
            loss_landscape(model, loss_fn, loader, dimensions=1, batch_norm=batch_norm)
    else:
        loss_landscape(model, loss_fn, loader, dimensions=1, points=3, batch_norm=batch_norm)
        average_sharpness(model, loss_fn, loader, directions=2, batch_norm=batch_norm)
    for one, other in zip(before, state(), strict=True):
        np.testing.assert_equal(one, other)
    for one, other in zip(tensors, [*model.parameters(), *model.buffers()], strict=True):
        assert one is other


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_loader_that_shuffles_gives_each_point_the_same_batches(own_generator: bool) -> None:
    generator = torch.Generator().manual_seed(3) if own_generator else None
    loader = DataLoader(TensorDataset(*samples()), 16, shuffle=True, generator=generator)
    seen: list[list[Tensor]] = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        seen.append([*batch, torch.rand(1)])
        return cross_entropy(model(batch[0]), batch[1])

    loss_landscape(network(), None, loader, step=step, dimensions=1, points=3)
    for later in range(3, 9):
        for one, other in zip(seen[later % 3], seen[later], strict=True):
            assert torch.equal(one, other)


# -------------------------------------------------------------------------------- in several parts


def test_parts_give_what_one_go_gives_bit_for_bit(tmp_path: Path) -> None:
    whole = landscape(dimensions=2)
    file = tmp_path / "landscape.json"
    for most in (1, 7, 9):
        part = landscape(dimensions=2, file=file, max_points=most)
    assert not part.complete
    assert int(part.evaluated.sum()) == 17
    assert math.isfinite(part.centre)  # the centre comes first
    assert np.isnan(part.losses[~part.evaluated]).all()
    resumed = landscape(dimensions=2, resume=part)
    assert int(part.evaluated.sum()) == 17  # left as it was
    found = landscape(dimensions=2, file=file)
    for one in (resumed, found, LossLandscape.load(file)):
        assert one.losses.tolist() == whole.losses.tolist()
        assert one.to_dict() == whole.to_dict()


def test_an_interruption_keeps_what_is_evaluated(tmp_path: Path) -> None:
    file = tmp_path / "landscape.json"
    calls = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 8:  # in the third point
            raise KeyboardInterrupt
        return cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        loss_landscape(network(), loss_fn, batches(), dimensions=1, points=5, file=file)
    assert int(LossLandscape.load(file).evaluated.sum()) == 2
    calls = [1] * 100
    found = loss_landscape(network(), loss_fn, batches(), dimensions=1, points=5, file=file)
    assert len(calls) == 109
    assert found.losses.tolist() == landscape().losses.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["landscape.json"]


def test_a_part_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "landscape.json"
    part = landscape(file=file, max_points=2)
    other = network()
    with torch.no_grad():
        other[0].bias[0] += 1e-6
    for changes, message in (
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"points": 7}, "alphas is 5 points from -1 to 1 there and 7 points"),
        ({"dimensions": 2}, "dimensions is 1 there and 2 here"),
        ({"batch_norm": "recomputed"}, "batch_norm is 'stored' there"),
        ({"model": other}, "model is '"),
        ({"batches": batches(size=8)}, "there are 5 now, and 3 at other points"),
    ):
        with pytest.raises(ValueError, match=message):
            landscape(file=file, **changes)
        with pytest.raises(ValueError, match=message):
            landscape(resume=part, **changes)
    with pytest.raises(ValueError, match="file and resume: give one"):
        landscape(file=file, resume=part)
    with pytest.raises(ValueError, match="no folder"):
        landscape(file=tmp_path / "none" / "landscape.json")
    assert LossLandscape.load(file).to_dict() == part.to_dict()


def test_a_file_keeps_losses_that_are_not_finite(tmp_path: Path) -> None:
    found = surface(lambda x, y: math.inf if x > 0.5 else math.nan if y > 0.5 else x + y)
    found.evaluated[0, 0] = False
    found.losses[0, 0] = math.nan
    found.save(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = LossLandscape.load(tmp_path / "a.json")
    np.testing.assert_array_equal(again.losses, found.losses)
    np.testing.assert_array_equal(again.evaluated, found.evaluated)
    assert again.to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a loss landscape"),
        ("[1]", "not a loss landscape"),
        ('{"format": "orchestrator.loss_landscape", "version": 2}', "version 2; .* reads 1"),
        ('{"format": "orchestrator.loss_landscape", "version": 1}', "damaged: KeyError"),
        (
            '{"format": "orchestrator.loss_landscape", "version": 1, "alphas": [0], "losses": [1]}',
            "damaged: .*both sides of a centre",
        ),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=f"a.json: .*{message}"):
        LossLandscape.load(tmp_path / "a.json")


# ---------------------------------------------------------------------------------------- sharpness


def surface(loss: Callable[[float, float], float], n: int = 21) -> LossLandscape:
    alphas = np.arange(-(n // 2), n // 2 + 1) / (n // 2)
    losses = np.array([[loss(x, y) for y in alphas] for x in alphas])
    done = np.ones_like(losses, dtype=bool)
    return LossLandscape(alphas, losses, done, "stored", 0, 0.0, 10, 3, "a")


def test_sharpness_of_a_surface_is_the_rise_on_the_circle() -> None:
    found = surface(lambda x, y: 2.0 + 3 * x + 4 * x * x + y * y)
    mean, maximum, radius, error = found.sharpness(0.5)
    assert mean == pytest.approx(0.5**2 * (4 + 1) / 2, rel=0.02)  # the slope drops out
    assert maximum == pytest.approx(3 * 0.5 + 4 * 0.5**2, rel=0.02)
    assert (radius, error) == (0.5, None)
    assert surface(lambda x, y: 1.0).sharpness(1.0).mean == pytest.approx(0.0, abs=1e-15)


def test_sharpness_of_a_line_is_that_of_its_two_points() -> None:
    found = landscape(points=5)
    mean, maximum, *_ = found.sharpness(0.5)
    rises = found.losses[[1, 3]] - found.losses[2]
    assert mean == pytest.approx(rises.mean())
    assert maximum == pytest.approx(rises.max())


def test_sharpness_needs_the_points_it_is_of() -> None:
    found = landscape(dimensions=2, max_points=9)
    assert found.sharpness(0.4).radius == 0.4
    with pytest.raises(ValueError, match="9 of 25 are"):
        found.sharpness(0.9)
    for radius in (0.0, -1.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            found.sharpness(radius)


def test_average_sharpness_is_the_mean_over_directions_and_their_opposites() -> None:
    model = network()
    found = average_sharpness(model, cross_entropy, batches(), radius=0.5, directions=3)
    two = average_sharpness(model, cross_entropy, batches(), radius=0.5, directions=2)
    plane = landscape(model, dimensions=2, points=3, radius=0.5)  # along the same directions
    rises = plane.losses - plane.centre
    means = [(rises[0, 1] + rises[2, 1]) / 2, (rises[1, 0] + rises[1, 2]) / 2]
    assert two.mean == pytest.approx(sum(means) / 2)
    assert two.standard_error == pytest.approx(abs(means[0] - means[1]) / 2)
    assert two.maximum == pytest.approx(max(rises[[0, 2, 1, 1], [1, 1, 0, 2]]))
    many = average_sharpness(model, cross_entropy, batches(), radius=0.5, directions=48)
    assert found.standard_error is not None
    assert many.standard_error is not None
    assert many.standard_error < found.standard_error
    assert abs(found.mean - many.mean) < 4 * (found.standard_error + many.standard_error)


def test_average_sharpness_grows_with_curvature() -> None:
    model, sharp = network(), network()
    with torch.no_grad():  # outputs, and so the losses' curvature, four times as large
        sharp[5].weight.mul_(4)
        sharp[5].bias.mul_(4)
    flat = average_sharpness(model, cross_entropy, batches())
    assert average_sharpness(sharp, cross_entropy, batches()).mean > 2 * flat.mean


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": 4}, ValueError, "points must be odd"),
        ({"points": 1}, ValueError, "at least 3, got 1"),
        ({"points": 5.0}, TypeError, "points must be a whole number, got 5.0"),
        ({"dimensions": 3}, ValueError, "dimensions must be 1 or 2, got 3"),
        ({"radius": 0}, ValueError, "radius must be above 0 and finite, got 0"),
        ({"radius": "1"}, TypeError, "radius must be a number"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"max_points": 0}, ValueError, "max_points must be at least 1"),
        ({"batch_norm": "store"}, ValueError, "batch_norm='store': .*did you mean 'stored'"),
        ({"batches": iter([1])}, ValueError, "list_iterator can be iterated over only once"),
        ({"batches": 3}, TypeError, "batches: int is not an iterable"),
        ({"batches": [torch.ones(3)]}, TypeError, "batches: .* not a pair"),
        ({"batches": TensorDataset()}, TypeError, "batches"),
        ({"model": nn.BatchNorm1d(3)}, ValueError, "no parameter has two dimensions"),
        ({"model": "net"}, TypeError, "model: str is not"),
        ({"model": nn.LazyLinear(3)}, ValueError, "the parameter weight of a lazy module"),
        ({"model": nn.Linear(2, 2, device="meta")}, ValueError, "weight is on the meta device"),
        ({"parameters": 3}, TypeError, "parameters=3: must be parameters of the model"),
        ({"file": 3}, TypeError, "file=3: must be the path of a file"),
        ({"resume": "x"}, TypeError, "resume: str is no LossLandscape"),
        ({"parameters": [nn.Parameter(torch.ones(2, 2))]}, ValueError, "not a parameter of"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        landscape(**changes)


def test_no_batches_and_no_loss() -> None:
    with pytest.raises(ValueError, match="batches: there is none"):
        loss_landscape(network(), cross_entropy, [], dimensions=1)
    with pytest.raises(TypeError, match="loss_fn: needed"):
        loss_landscape(network(), None, batches())
    with pytest.raises(TypeError, match="loss_fn: int cannot be called"):
        loss_landscape(network(), 3, batches())  # type: ignore[arg-type]
    for words, message in (
        ({"directions": 1}, "at least 2"), ({"radius": -1.0}, "radius"), ({"seed": -1}, "seed"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            average_sharpness(network(), cross_entropy, batches(), **words)


# ----------------------------------------------------------------------------------------- pictures


def test_pictures_of_one_landscape() -> None:
    line, plane = landscape(points=3), landscape(dimensions=2, points=3, max_points=8)
    (curve,) = line.plot().data
    assert [*curve.x] == [-1.0, 0.0, 1.0]
    assert [*curve.y] == line.losses.tolist()
    assert plane.plot().data[0].type == "surface"
    contour = plane.plot("contour").data[0]
    np.testing.assert_array_equal(np.array(contour.z), plane.losses.T)  # x is the first direction
    with pytest.raises(ValueError, match=r"kind='contours': .*did you mean 'contour'"):
        plane.plot("contours")
    with pytest.raises(ValueError, match="must be one of curve"):
        line.plot("surface")


def test_landscapes_side_by_side_have_the_same_axes_and_colours() -> None:
    flat, steep = surface(lambda x, y: 1 + x * x), surface(lambda x, y: 1 + 100 * (x * x + y * y))
    figure = compare_landscapes({"SAM": flat, "SGD": steep})
    surfaces = [t for t in figure.data if t.type == "surface"]
    contours = [t for t in figure.data if t.type == "contour"]
    assert len(surfaces) == len(contours) == 2
    low, high = surfaces[0].cmin, surfaces[0].cmax
    assert low < 0 < math.log10(201) < high  # logarithms, as losses span a factor of 201
    assert all((t.cmin, t.cmax) == (low, high) for t in surfaces)
    assert all((t.zmin, t.zmax) == (low, high) for t in contours)
    assert len({scene.zaxis.range for scene in figure.select_scenes()}) == 1
    assert {axis.range for axis in figure.select_xaxes()} == {(-1.0, 1.0)}
    assert [a.text for a in figure.layout.annotations] == ["SAM", "SGD"]
    np.testing.assert_allclose(contours[1].z, np.log10(steep.losses.T))
    assert sum(bool(t.showscale) for t in figure.data) == 1
    assert len(compare_landscapes({"a": landscape(), "b": landscape(seed=1)}).data) == 2


def test_what_cannot_be_compared_is_refused() -> None:
    plane = surface(lambda x, y: x)
    recomputed = surface(lambda x, y: x)
    recomputed.batch_norm = "recomputed"
    for other, message in ((landscape(), "dimensions is 2 .* 1"), (recomputed, "batch_norm")):
        with pytest.raises(ValueError, match=message):
            compare_landscapes({"a": plane, "b": other})
    for none, message in (([plane], "list is no mapping"), ({"a": 3}, "int of 'a' is no Loss")):
        with pytest.raises(TypeError, match=message):
            compare_landscapes(none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none to compare"):
        compare_landscapes({})


# ---------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_measures_what_the_cpu_does(tmp_path: Path) -> None:
    file = tmp_path / "landscape.json"
    model = network()
    on_cpu = landscape(model, dimensions=2, file=file, max_points=3)
    model.cuda()
    state = torch.cuda.get_rng_state()
    whole = landscape(model, dimensions=2, file=file)  # the same model: the directions are too
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert whole.centre == on_cpu.centre
    np.testing.assert_allclose(
        landscape(model, dimensions=2).losses, landscape(dimensions=2).losses, rtol=1e-3
    )
