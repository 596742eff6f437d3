"""The sensitivity methods, each against its definition computed one image at a time."""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from epim_nas import Choice, InputError, SearchSpace, trace
from epim_nas.epitome.quantization import Quantization
from epim_nas.space import Group
from epim_nas.supernet.evaluation import recalibrate_batch_norm
from epim_nas.supernet.sensitivity import METHODS, Table, find_method, measure_table
from epim_nas.supernet.supernet import Supernet
from tests.supernet.nets import tiny

CPU = torch.device("cpu")
NAMES = ["conv1", "conv2", "conv3", "fc"]


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(12, 1, 8, 8, generator=generator), torch.zeros(12, dtype=torch.long))
        for _ in range(count)
    ]


def make_supernet() -> Supernet:
    model, network, space = tiny()
    supernet = Supernet(model, network, space).eval()
    supernet.calibrate_activations(batches()[0][0])
    return supernet


def table_of(method: str, supernet: Supernet | None = None, count: int = 2, **options) -> Table:
    supernet = supernet or make_supernet()
    return measure_table(supernet, batches(count), find_method(method), device=CPU, **options)


def drawn_losses(
    supernet: Supernet, number: int, seed: int, draws: int = 1
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The losses of the images of a batch against every draw, and the images."""
    x = batches()[number][0]
    logits = supernet(x)
    generator = torch.Generator().manual_seed(seed + number)
    probabilities = F.softmax(logits.detach(), 1)
    labels = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
    return [F.cross_entropy(logits, labels[:, k], reduction="none") for k in range(draws)], x


def on_outputs(name: str, index: int, seed: int, draws: int, whole: bool) -> float:
    """1/2 mean over images of sum (g d)^2 or (sum g d)^2, each channel's statistics matched."""
    supernet = make_supernet()
    layer, total = supernet.layers[name], 0.0
    for number in range(2):
        kept: dict[str, torch.Tensor] = {}

        def keep(_: object, inputs: tuple, output: torch.Tensor, kept: dict = kept) -> None:
            kept["x"], kept["y"] = inputs[0], output

        hook = layer.register_forward_hook(keep)
        drawn, x = drawn_losses(supernet, number, seed, draws)
        hook.remove()
        with torch.no_grad():
            changed = layer.run(layer.quantize_input(kept["x"], index), index)
        difference = changed.double() - kept["y"].detach().double()
        if name in ("conv1", "conv2"):  # batch norm follows
            y, c = kept["y"].detach().double(), changed.double()
            axes = (0, 2, 3)
            c = (c - c.mean(axes, keepdim=True)) / (c.std(axes, keepdim=True) + 1e-12)
            difference = c * y.std(axes, keepdim=True) + y.mean(axes, keepdim=True) - y
        for losses in drawn:
            for i in range(len(x)):
                gradient = torch.autograd.grad(losses[i], kept["y"], retain_graph=True)[0][i]
                products = gradient.double() * difference[i]
                total += float(products.sum() ** 2 if whole else products.square().sum()) / draws
    return total / (2 * 24)


def weight_fisher_by_definition(name: str, index: int, seed: int, draws: int) -> float:
    """1/2 mean over images of sum (g d)^2, g by the dense weight, image by image."""
    supernet = make_supernet()
    weight = supernet.layers[name].dense.weight
    row = [0, 0, 0, 0]
    row[NAMES.index(name)] = index
    alone = supernet.extract(row).get_submodule(name)
    changed = alone.weight
    difference = (changed.reshape(weight.shape) - weight).detach().double()
    total = 0.0
    for number in range(2):
        drawn, x = drawn_losses(supernet, number, seed, draws)
        for losses in drawn:
            for i in range(len(x)):
                gradient = torch.autograd.grad(losses[i], weight, retain_graph=True)[0]
                total += float((gradient.double() * difference).square().sum()) / draws
    return total / (2 * 24)


def measured_by_definition(name: str, index: int, seed: int, draws: int) -> float:
    """Mean KL of a copy of the network with the layer replaced, its batch norm recalibrated."""
    supernet = make_supernet()
    row = [0, 0, 0, 0]
    row[NAMES.index(name)] = index
    total = 0.0
    for x, labels in batches():
        models = [copy.deepcopy(supernet.model), supernet.extract(row)]
        for model in models:
            for norm in (model.bn1, model.bn2):
                norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        with torch.no_grad():
            float_scores, scores = (model.eval()(x).double() for model in models)
        p = F.softmax(float_scores, 1)
        total += float((p * (F.log_softmax(float_scores, 1) - F.log_softmax(scores, 1))).sum())
        del labels
    return total / 24


def curvature_by_definition(name: str, index: int, seed: int, draws: int) -> float:
    """The geometric mean of the diagonal and the whole form."""
    diagonal, whole = (on_outputs(name, index, seed, draws, kind) for kind in (False, True))
    return (diagonal * whole) ** 0.5


DEFINITIONS = {
    "output_curvature": curvature_by_definition,
    "output_fisher": partial(on_outputs, whole=False),
    "gauss_newton": partial(on_outputs, whole=True),
    "weight_fisher": weight_fisher_by_definition,
    "measured": measured_by_definition,
}


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_score_is_its_definition(method: str, name: str, draws: int) -> None:
    table = table_of(method, seed=5, draws=draws)
    definition = DEFINITIONS[method]
    expected = [definition(name, i, 5, draws) for i in range(len(table[name]))]
    np.testing.assert_allclose(table[name], expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_lossless_choice_costs_nothing_and_fewer_bits_cost_more(method: str) -> None:
    table = table_of(method)
    assert list(table) == NAMES
    assert all(scores[0] == pytest.approx(0, abs=1e-6) for scores in table.values())
    assert all((scores >= 0).all() and np.isfinite(scores).all() for scores in table.values())
    two, three, five, nine = table["conv2"][4:]
    assert two > three > five > nine >= 0


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_table_and_labels_make_no_difference(method: str) -> None:
    first, second = table_of(method, seed=4), table_of(method, seed=4)
    others = [(x, torch.full((len(x),), 3)) for x, _ in batches()]
    third = measure_table(make_supernet(), others, find_method(method), device=CPU, seed=4)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name], third[name])


class Biased(torch.nn.Module):
    """A convolution with a bias, batch norm and a classifier; one filter is nearly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 6, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(6)
        self.fc = torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("bias", [0.1, -3.3, 200.7])
def test_a_filter_that_rounds_to_zero_beside_its_bias_is_a_constant_channel(bias: float) -> None:
    torch.manual_seed(0)
    model = Biased().eval()
    with torch.no_grad():
        model.conv.weight[2] *= 1e-2  # a small part of a step of the whole tensor
        model.conv.bias.fill_(bias)
    choices = tuple((Choice(weight_bits=bits),) for bits in (2, 9))
    groups = (Group("conv", ("conv",), choices), Group("fc", ("fc",), ((Choice(),),)))
    network = trace(model, (1, 8, 8), "biased")
    space = SearchSpace("biased", "biased", groups)
    rule = Quantization(granularity="tensor")
    supernet = Supernet(model, network, space, quantization=rule).eval()
    x = batches()[0][0]
    layer = supernet.layers["conv"]
    assert (layer.run(x, 0)[:, 2] == bias).all(), "the filter rounds to zero"
    found = measure_table(
        supernet, [(x, torch.zeros(12))], METHODS["output_fisher"], device=CPU, seed=5, draws=4
    )
    kept: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda *given: kept.append(given[2]))
    logits = supernet(x)
    hook.remove()
    axes = (0, 2, 3)
    for index in range(2):
        with torch.no_grad():
            y, changed = kept[0].double(), layer.run(x, index).double()
        centred = changed - changed.mean(axes, keepdim=True)
        own = centred.square().mean(axes, keepdim=True).sqrt()
        gain = torch.where(own > 1e-9, y.std(axes, keepdim=True, correction=0) / own, 0.0)
        difference = centred * gain + y.mean(axes, keepdim=True) - y
        expected = 0.0
        for label in range(4):  # as many draws as classes: each counts by its probability
            losses = -F.log_softmax(logits, 1)[:, label]
            weighted = (losses * F.softmax(logits, 1)[:, label].detach().sqrt()).sum()
            gradient = torch.autograd.grad(weighted, kept[0], retain_graph=True)[0]
            expected += float((gradient.double() * difference).square().sum()) / (2 * len(x))
        assert found["conv"][index] == pytest.approx(expected, rel=5e-3, abs=1e-9)


def test_more_draws_make_less_noise() -> None:
    def spread(draws: int) -> float:
        seeds = [table_of("output_fisher", seed=100 * s, draws=draws)["conv2"] for s in range(12)]
        values = np.stack(seeds)[:, 1:]
        return float((values.std(0) / values.mean(0)).mean())

    # The standard deviation falls with the root of the draws: a third with nine.
    assert spread(9) < 0.55 * spread(1)


def test_measured_is_what_recalibration_leads_to() -> None:
    """With one batch, batch statistics are those of recalibration with the same images."""
    supernet = make_supernet()
    table = measure_table(supernet, batches(1), METHODS["measured"], device=CPU)
    x, _ = batches(1)[0]
    with torch.no_grad():
        recalibrate_batch_norm(supernet, batches(1))
        expected = F.log_softmax(supernet(x), 1)
        for index in range(1, 8):
            with supernet.selected((0, index, 0, 0)):
                recalibrate_batch_norm(supernet, batches(1))
                found = F.log_softmax(supernet(x), 1)
            kl = float(F.kl_div(found, expected, reduction="batchmean", log_target=True))
            # Running variances are unbiased, those of a batch are not.
            assert table["conv2"][index] == pytest.approx(kl, rel=0.02, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_pass_goes_on(method: str, tmp_path: Path) -> None:
    supernet = make_supernet()
    whole = table_of(method, supernet, 3, seed=1)
    path = tmp_path / "partial.npz"
    table_of(method, supernet, 2, seed=1, checkpoint=path)
    seen = []
    resumed = table_of(
        method, supernet, 3, seed=1, checkpoint=path,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(9, 12), (10, 12), (11, 12), (12, 12)], "only the third batch is computed"
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name])


def _other_weights(supernet: Supernet) -> dict[str, object]:
    with torch.no_grad():
        supernet.layers["conv1"].dense.weight[0, 0, 0, 0] += 0.5
    return {}


@pytest.mark.parametrize(
    "change",
    [lambda _: {"seed": 2}, lambda _: {"draws": 2}, _other_weights],
    ids=["seed", "draws", "weights"],
)
def test_a_table_of_something_else_is_measured_again(change, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    supernet = make_supernet()
    table_of("output_fisher", supernet, checkpoint=path)
    options = change(supernet)
    fresh = table_of("output_fisher", supernet, **options)
    again = table_of("output_fisher", supernet, checkpoint=path, **options)
    for name in NAMES:
        np.testing.assert_array_equal(again[name], fresh[name])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a table"])
def test_a_damaged_file_is_measured_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.npz"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = table_of("output_fisher", checkpoint=path)
    assert "table.npz cannot be read" in caplog.text
    np.testing.assert_array_equal(found["fc"], table_of("output_fisher")["fc"])


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"`outputfisher` is not a method.*output_fisher"):
        find_method("outputfisher")


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method: str) -> None:
    supernet = make_supernet().train()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    table_of(method, supernet)
    assert supernet.training
    assert all(layer.active is None for layer in supernet.layers.values())
    assert all(p.grad is None for p in supernet.parameters())
    after = supernet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], v) for n, v in before.items())
