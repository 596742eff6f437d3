"""Sensitivity of networks that work in place, on odd batches, and beside files of other runs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epim_nas import Choice, EpitomeShape, InputError, SearchSpace, trace
from epim_nas.epitome.alignment import AlignmentSearch
from epim_nas.epitome.quantization import Quantization
from epim_nas.errors import EpimError
from epim_nas.space import Group
from epim_nas.supernet.sensitivity import METHODS, Table, measure_table
from epim_nas.supernet.sensitivity import fisher as fisher_module
from epim_nas.supernet.sensitivity.capture import captured_pass
from epim_nas.supernet.supernet import Supernet

CPU = torch.device("cpu")
FISHER = sorted(set(METHODS) - {"measured"})


class Plain(nn.Module):
    """Convolutions without batch norm, one in two groups, as in VGG and AlexNet."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class Joined(nn.Module):
    """A shortcut with a convolution; the sum is the user's."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(2, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        main = self.norm1(self.conv1(x))
        return self.fc(self.join(main, self.shortcut(x)).relu().mean((2, 3)))


def make(model: nn.Module, layers: list[str], **options) -> Supernet:
    choices = [
        Choice(),
        Choice(EpitomeShape(4, 2, 3, 3) if layers[0] == "conv2" else None, weight_bits=3),
        Choice(weight_bits=2, activation_bits=6),
    ]
    groups = tuple(Group(name, (name,), tuple((c,) for c in choices)) for name in layers)
    space = SearchSpace("s", "n", groups)
    supernet = Supernet(model, trace(model, (2, 6, 6), "n"), space, **options).eval()
    supernet.calibrate_activations(images(1)[0][0])
    return supernet


def images(count: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 2, 6, 6, generator=generator), torch.zeros(size, dtype=torch.long))
        for _ in range(count)
    ]


def plain(inplace: bool = False) -> nn.Module:
    torch.manual_seed(2)
    return Plain(inplace).eval()


def assert_equal(first: Table, second: Table) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("method", METHODS)
def test_activations_that_work_in_place_make_no_difference(method: str) -> None:
    """They overwrite the output of a layer that no batch norm follows."""
    tables = [
        measure_table(
            make(plain(inplace), ["conv1", "conv2", "fc"]), images(2), METHODS[method], device=CPU
        )
        for inplace in (False, True)
    ]
    assert_equal(*tables)
    assert all(scores[0] == 0 < scores[1] for scores in tables[1].values())


def test_an_activation_between_a_layer_and_batch_norm() -> None:
    """Batch norm does not absorb the scale of what goes through an activation first."""

    class Between(nn.Sequential):
        def __init__(self, inplace: bool) -> None:
            super().__init__(nn.Conv2d(2, 8, 3), nn.ReLU(inplace), nn.BatchNorm2d(8),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))  # fmt: skip

    tables = []
    for inplace in (False, True):
        torch.manual_seed(2)
        supernet = make(Between(inplace).eval(), ["0"])
        tables.append(measure_table(supernet, images(1), device=CPU))
    assert_equal(*tables)


@pytest.mark.parametrize("join", [torch.add, lambda a, b: a.add_(b)], ids=["sum", "in place"])
def test_measured_where_branches_are_joined_in_place(join) -> None:
    """Replacing the shortcut alone must not add to a sum that holds the old one already."""
    torch.manual_seed(2)
    supernet = make(Joined(join).eval(), ["shortcut", "conv1", "fc"])
    table = measure_table(supernet, images(1), METHODS["measured"], device=CPU)
    x, _ = images(1)[0]
    for position, name in enumerate(supernet.layers):
        found = []
        for index in range(3):
            row = [0, 0, 0]
            row[position] = index
            model = copy.deepcopy(supernet)
            norm = model.model.norm1
            norm.running_mean = norm.running_var = None
            with torch.no_grad(), model.selected(row):
                found.append(F.log_softmax(model(x.clone()).double(), 1))
        expected = [float((found[0].exp() * (found[0] - f)).sum()) / len(x) for f in found]
        np.testing.assert_allclose(table[name], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("draws", [3, 10])
def test_with_as_many_draws_as_classes_the_expectation_is_exact(draws: int) -> None:
    supernet = make(plain(), ["conv2"])
    table = measure_table(supernet, images(1), draws=draws, seed=1, device=CPU)
    again = measure_table(supernet, images(1), draws=draws, seed=2, device=CPU)
    assert_equal(table, again)  # nothing is drawn
    (x, _), layer, kept = images(1)[0], supernet.layers["conv2"], {}
    hook = layer.register_forward_hook(lambda _, given, y: kept.update(x=given[0], y=y))
    log_p = F.log_softmax(supernet(x), 1)
    hook.remove()
    for index in range(3):
        changed = layer.run(layer.quantize_input(kept["x"], index), index)
        expected = 0.0
        for image in range(len(x)):
            for label in range(3):
                gradient = torch.autograd.grad(log_p[image, label], kept["y"], retain_graph=True)[0]
                square = ((changed - kept["y"]) * gradient).square().sum()
                expected += float((log_p[image, label].exp() * square).detach()) / (2 * len(x))
        assert table["conv2"][index] == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_a_squared_drawn_gradient_is_expected_to_be_the_exact_one() -> None:
    supernet = make(plain(), ["conv2"])
    x, _ = images(1)[0]
    exact = sum(
        g.square() for g in captured_pass(supernet, x, 3, torch.Generator())["conv2"].gradients
    )
    # Two draws of three classes, many times.
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros_like(exact)
    for _ in range(400):
        drawn = captured_pass(supernet, x, 2, generator)["conv2"].gradients
        mean += sum(g.square() for g in drawn) / 400
    assert float(mean.sum()) == pytest.approx(float(exact.sum()), rel=0.05)


def test_weight_gradients_in_small_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large layers are done a few images at a time, here one."""
    supernet = make(plain(), ["conv1", "conv2", "fc"])
    whole = measure_table(supernet, images(1), METHODS["weight_fisher"], draws=2, device=CPU)
    monkeypatch.setattr(fisher_module, "_MOST_ELEMENTS", 1)
    parts = measure_table(supernet, images(1), METHODS["weight_fisher"], draws=2, device=CPU)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_callers_images_stay_as_they_are(method: str) -> None:
    class Centred(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5))

    given = images(1)
    measure_table(make(Centred(True).eval(), ["conv1"]), given, METHODS[method], device=CPU)
    assert not given[0][0].requires_grad
    assert torch.equal(given[0][0], images(1)[0][0])


@pytest.mark.parametrize("method", ["output_fisher", "measured"])
def test_one_image_has_no_statistics(method: str) -> None:
    supernet = make(Joined(torch.add).eval(), ["conv1"])
    with pytest.raises(InputError, match=r"sensitivity.batch_size: a batch has one image.*2"):
        measure_table(supernet, images(1, size=1), METHODS[method], device=CPU)


@pytest.mark.parametrize("method", FISHER)
def test_a_network_that_gives_nan(method: str) -> None:
    supernet = make(Joined(torch.add).eval(), ["conv1"])
    supernet.model.norm1.running_var.fill_(float("nan"))
    with pytest.raises(EpimError, match=r"output is not finite.*batch norm"):
        measure_table(supernet, images(1), METHODS[method], device=CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"align": AlignmentSearch(restarts=0)},
        {"quantization": Quantization(weight_range="max")},
    ],
    ids=["orders", "quantization"],
)
def test_a_table_of_other_choices_is_measured_again(change: dict, tmp_path: Path) -> None:
    """Neither is in any tensor of the supernet."""
    path = tmp_path / "table.npz"
    before = measure_table(make(plain(), ["conv2"]), images(1), device=CPU, checkpoint=path)
    fresh = measure_table(make(plain(), ["conv2"], **change), images(1), device=CPU)
    again = measure_table(
        make(plain(), ["conv2"], **change), images(1), device=CPU, checkpoint=path
    )
    assert_equal(again, fresh)
    assert before["conv2"][1] != fresh["conv2"][1]


def test_a_table_of_more_or_other_images_is_measured_again(tmp_path: Path) -> None:
    supernet, path = make(plain(), ["conv2"]), tmp_path / "table.npz"
    measure_table(supernet, images(3), device=CPU, checkpoint=path)
    for given in (images(2), [images(3)[0], images(3)[2]]):
        found = measure_table(supernet, given, device=CPU, checkpoint=path)
        assert_equal(found, measure_table(supernet, given, device=CPU))


def test_any_damage_is_measured_again(tmp_path: Path) -> None:
    supernet, path = make(plain(), ["fc"]), tmp_path / "table.npz"
    table = measure_table(supernet, images(1), device=CPU, checkpoint=path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    logging.disable(logging.WARNING)
    try:
        for _ in range(150):
            damaged = bytearray(content)
            for position in rng.integers(len(content), size=3):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            assert_equal(measure_table(supernet, images(1), device=CPU, checkpoint=path), table)
    finally:
        logging.disable(logging.NOTSET)
