"""Aligned layers: their state, their files, the network of a design, and output projection."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from epim_nas import (
    Choice,
    Design,
    EpitomeConv2d,
    EpitomeLinear,
    EpitomeShape,
    InputError,
    SamplingPlan,
    apply_design,
)
from epim_nas.epitome import output_projection
from epim_nas.epitome.alignment import align
from epim_nas.epitome.output_projection import project_outputs
from epim_nas.epitome.sampling import expand, project
from epim_nas.epitome.statistics import batch_norm_importance, input_covariances, input_rows
from epim_nas.export.weights import export_weights, load_weights
from epim_nas.models.weights import load_weights as load_checked
from epim_nas.models.weights import save_weights
from epim_nas.network.batch_norm import following_batch_norms
from epim_nas.supernet.supernet import Supernet
from tests.supernet.nets import tiny

EPITOME = EpitomeShape(4, 4, 3, 3)
DESIGN = Design(
    "net",
    {
        "0": Choice(EPITOME, weight_bits=5),
        "3": Choice(EPITOME, wrap=True),
        "6": Choice(EpitomeShape(4, 4, 1, 1)),
    },
)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 6),
    ).eval()  # fmt: skip


def relative_error(model: nn.Module, dense: nn.Module, name: str) -> float:
    wanted, got = dense.get_submodule(name).weight, model.get_submodule(name).weight
    return float(((wanted - got).square().sum() / wanted.square().sum()).detach())


def test_a_design_is_aligned_where_it_is_asked_for() -> None:
    dense = net()
    design = Design("net", {n: Choice(c.shape, wrap=c.wrap) for n, c in DESIGN.choices.items()})
    naive, aligned = apply_design(dense, design), apply_design(dense, design, align=True)
    for name in design:
        found = align(
            dense.get_submodule(name).weight.detach().numpy(), naive.get_submodule(name).plan
        )
        assert found.error_after < found.error_before
        assert relative_error(naive, dense, name) == pytest.approx(found.error_before, abs=1e-5)
        assert relative_error(aligned, dense, name) == pytest.approx(found.error_after, abs=1e-5)
        assert aligned.get_submodule(name).plan == found.plan


def test_an_aligned_layer_computes_with_the_weight_it_shows() -> None:
    model = apply_design(net(), DESIGN, align=True)
    x = torch.randn(2, 8, 6, 6)
    for name in ("0", "3"):
        layer = model.get_submodule(name)
        dense = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1, groups=layer.groups)
        torch.testing.assert_close(layer(x), dense)


def test_importance_moves_the_error_to_where_it_does_not_matter() -> None:
    dense = net()
    with torch.no_grad():
        dense[1].weight.copy_(torch.tensor([10.0] * 4 + [0.1] * 4))
    importance = batch_norm_importance(dense)
    assert set(importance) == {"0"}
    scale = 1 / (dense[1].running_var + dense[1].eps)
    torch.testing.assert_close(importance["0"][:, 0, 0, 0], dense[1].weight.detach() ** 2 * scale)
    design = Design("net", {"0": Choice(EPITOME)})
    error = lambda model: (  # noqa: E731
        importance["0"] * (model[0].weight - dense[0].weight).square()
    ).sum()
    plain = apply_design(dense, design, align=True)
    weighted = apply_design(dense, design, align=True, importance=importance)
    assert error(weighted) < 0.9 * error(plain)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_states_load_into_layers_of_any_order(tmp_path: Path, first: bool, second: bool) -> None:
    source = apply_design(net(1), DESIGN, align=first)
    x = torch.randn(3, 8, 6, 6)
    expected = source(x)
    assert torch.equal(copy.deepcopy(source)(x), expected)
    for number, load in enumerate(("state", "checked", "exported")):
        target = apply_design(net(2), DESIGN, align=second)
        path = tmp_path / f"{number}.safetensors"
        if load == "state":
            target.load_state_dict(source.state_dict())
        elif load == "checked":
            save_weights(source, path)
            load_checked(target, path)
        else:
            export_weights(source.state_dict(), path)
            target.load_state_dict(load_weights(path)[0])
            load_checked(target, path)
        assert torch.equal(target(x), expected)
        assert set(target.state_dict()) == set(source.state_dict())
        for name in DESIGN:
            assert target.get_submodule(name).plan == source.get_submodule(name).plan


def test_orders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = apply_design(net(), DESIGN, align=True)
    state = source.state_dict()
    state["0.out_order"] = torch.zeros(8, dtype=torch.int32)
    with pytest.raises(InputError, match=r"out_order.*not a permutation"):
        apply_design(net(), DESIGN).load_state_dict(state)
    # An order that belongs to no epitome is another network's.
    save_weights({**net().state_dict(), "0.out_order": torch.arange(8)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"1 unexpected \(0.out_order\)"):
        load_checked(net(), tmp_path / "w.safetensors")


def test_no_order_leaves_no_buffer() -> None:
    layer = EpitomeLinear(8, 6, shape=EpitomeShape(3, 8, 1, 1))
    layer.reorder([5, 4, 3, 2, 1, 0], None)
    assert set(layer.state_dict()) == {"epitome", "bias", "out_order"}
    assert layer.state_dict()["out_order"].dtype == torch.int32
    layer.reorder(None, None)
    assert set(layer.state_dict()) == {"epitome", "bias"}


def random_covariance(groups: int, size: int, seed: int) -> Tensor:
    root = torch.tensor(np.random.default_rng(seed).normal(size=(groups, size, size)))
    return root @ root.transpose(1, 2) / size


@pytest.mark.parametrize(
    ("conv", "epitome", "wrap", "groups"),
    [
        ((6, 4, 2, 2), (3, 2, 3, 3), False, 1),
        ((6, 4, 3, 3), (3, 2, 3, 3), True, 1),
        ((4, 2, 2, 2), (2, 2, 2, 2), False, 2),
    ],
)
def test_output_projection_is_the_least_squares_solution(
    conv: tuple, epitome: tuple, wrap: bool, groups: int
) -> None:
    plan = SamplingPlan.build(conv, EpitomeShape(*epitome), wrap, groups=groups)
    rng = np.random.default_rng(3)
    plan = plan.reordered(None, [rng.permutation(conv[1])])
    weight, importance = rng.normal(size=conv), rng.uniform(0.3, 2, size=(conv[0], 1, 1, 1))
    size = int(np.prod(conv[1:]))
    covariance = random_covariance(groups, size, 5)
    found = project_outputs(
        torch.tensor(weight), plan, covariance,
        importance=torch.tensor(importance), damping=0.0, steps=2000, tolerance=1e-12,
    )  # fmt: skip
    # The same problem as a matrix: sqrt(f) Sigma^(1/2) (w - P E), filter by filter.
    pick = np.zeros((weight.size, plan.shape.size))
    pick[np.arange(weight.size), plan.weight_index.ravel()] = 1
    blocks = np.zeros((weight.size, weight.size))
    for o in range(conv[0]):
        root = np.linalg.cholesky(covariance[o // (conv[0] // groups)].numpy()).T
        own = slice(o * size, (o + 1) * size)
        blocks[own, own] = np.sqrt(importance[o].item()) * root
    solution = np.linalg.lstsq(blocks @ pick, blocks @ weight.ravel(), rcond=None)[0]
    difference = blocks @ (weight.ravel() - pick @ solution)
    got = blocks @ (weight.ravel() - pick @ found.numpy().ravel())
    assert np.square(got).sum() == pytest.approx(np.square(difference).sum(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("epitome", "options"),
    [
        ((10, 6, 4, 4), {}),
        ((10, 6, 3, 3), {"wrap": True}),
        ((8, 5, 3, 3), {}),  # last slabs are partial
        ((8, 5, 4, 4), {"wrap": True}),
        ((8, 5, 4, 4), {"wrap_in": True}),
        ((20, 5, 4, 4), {}),
    ],
)
def test_the_reduced_operator_is_the_whole_one(
    epitome: tuple, options: dict, ordered: bool, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plan = SamplingPlan.build((20, 12, 3, 3), EpitomeShape(*epitome), **options)
    rng = np.random.default_rng(4)
    if ordered:
        slabs = 1 if options else plan.out_slabs
        orders = [rng.permutation(12).tolist() for _ in range(slabs)]
        plan = plan.reordered(rng.permutation(20).tolist(), orders)
    weight = torch.tensor(rng.normal(size=(20, 12, 3, 3)), dtype=dtype)
    covariance = random_covariance(1, 108, 6)
    # Rounding decides where float32 is on the way, not where it ends.
    steps, tolerance = (20, 1e-8) if dtype == torch.float64 else (100, 1e-4)
    found = []
    for worthwhile in (0.0, np.inf):
        monkeypatch.setattr(output_projection, "_WORTHWHILE", worthwhile)
        found.append(project_outputs(weight, plan, covariance, steps=steps))
    assert found[0].dtype == dtype
    torch.testing.assert_close(*found, rtol=0, atol=tolerance)
    assert "weight_index" not in vars(plan), "an index as large as the weight is not kept"


def test_output_projection_with_a_white_input_is_the_projection() -> None:
    plan = SamplingPlan.build((8, 6, 3, 3), EpitomeShape(4, 3, 4, 4))
    weight = torch.randn(8, 6, 3, 3, dtype=torch.double)
    covariance = 3 * torch.eye(54, dtype=torch.double)[None]
    torch.testing.assert_close(project_outputs(weight, plan, covariance), project(weight, plan))
    for wrong in (covariance[:, :50, :50], covariance[0], covariance.repeat(3, 1, 1),
                  covariance[:0]):  # fmt: skip
        with pytest.raises(InputError, match=r"covariance.*\(groups, 54, 54\) of 8 outputs"):
            output_projection.OutputProjection(weight, wrong)
    with pytest.raises(InputError, match=r"plan.* in 1 groups.* in the 2 groups of the covariance"):
        project_outputs(weight, plan, covariance.repeat(2, 1, 1))
    with pytest.raises(InputError, match=r"plan.*\(8, 6, 3, 3\).*\(8, 3, 3, 3\)"):
        project_outputs(weight[:, :3], plan, covariance[:, :27, :27])
    with pytest.raises(InputError, match=r"importance.*\(8, 1, 1, 1\)"):
        project_outputs(weight, plan, covariance, importance=torch.ones(8, 6, 3, 3))


def test_a_linear_layer_is_projected_onto_its_outputs_with_importance() -> None:
    layer = EpitomeLinear(8, 6, shape=EpitomeShape(3, 8, 1, 1))
    weight, importance = torch.randn(6, 8), torch.rand(6, 1) + 0.1
    covariance = random_covariance(1, 8, 2).float()
    layer.project_from(weight, importance, covariance)
    expected = project_outputs(
        weight[:, :, None, None], layer.plan, covariance, importance=importance[..., None, None]
    )
    assert torch.equal(layer.epitome, expected)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 6, (1, 5), stride=(2, 1), padding=(0, 2), groups=3),
        nn.Conv2d(6, 6, 3, padding=2, dilation=(2, 1), groups=6, padding_mode="reflect"),
        nn.Conv2d(6, 6, (4, 2), padding="same"),
        nn.Linear(9, 4),
    ],
)
def test_some_positions_are_rows_of_all(module: nn.Module) -> None:
    images = torch.randn(5, 6, 11, 9)
    rows = input_rows(module, images)
    weight = module.weight.flatten(1)
    filters = weight.reshape(rows.shape[1], -1, weight.shape[1])
    outputs = torch.einsum("pgi,goi->pgo", rows, filters).flatten(1) + module.bias
    expected = module(images)
    if isinstance(module, nn.Conv2d):
        expected = expected.movedim(1, -1)
    torch.testing.assert_close(outputs, expected.reshape(outputs.shape))
    assert torch.equal(input_rows(module, images, 20), rows[:: len(rows) // 20])


def test_covariances_are_those_of_what_the_layers_multiply() -> None:
    model = net().double()
    images = torch.randn(5, 8, 6, 6, dtype=torch.double)
    found = input_covariances(model, [(images, images)], ["0", "3", "6"], positions=10**6)
    assert [tuple(value.shape) for value in found.values()] == [(1, 72, 72), (2, 36, 36), (1, 8, 8)]
    change = torch.randn(8, 8, 3, 3, dtype=torch.double)
    outputs = nn.functional.conv2d(images, change, padding=1).transpose(0, 1).flatten(1)
    flat = change.flatten(1)
    predicted = torch.einsum("oi,ij,oj->o", flat, found["0"][0].double(), flat)
    torch.testing.assert_close(predicted, outputs.var(1, correction=0), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="layers: 1"):
        input_covariances(model, [], ["1"])
    with pytest.raises(InputError, match="batches"):
        input_covariances(model, [], ["0"])


def test_projecting_onto_outputs_changes_them_less() -> None:
    torch.manual_seed(5)
    dense = net()
    mixed = torch.randn(64, 3, 6, 6)
    images = torch.einsum("oi,nihw->nohw", torch.randn(8, 3), mixed)  # strongly correlated
    covariances = input_covariances(dense, [(images, images)], ["0"])
    design = Design("net", {"0": Choice(EpitomeShape(4, 8, 3, 3))})
    wanted = dense[0](images)
    off = [
        (apply_design(dense, design, align=True, covariances=given)[0](images) - wanted).var()
        for given in (None, covariances)
    ]
    assert off[1] < 0.8 * off[0]


def test_batch_norms_are_found_where_nothing_else_reads_the_convolution() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.norm_a, self.norm_b, self.twice = (nn.BatchNorm2d(4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.norm_a(self.a(x)))
            return y + self.norm_b(y) + self.twice(self.c(x)) + self.twice(self.d(x))

    assert following_batch_norms(Shared()) == {"a": "norm_a"}


def test_the_supernets_choices_are_aligned_and_leave_it_as_they_were() -> None:
    model, network, space = tiny()
    from epim_nas.epitome.alignment import AlignmentSearch

    plain, aligned = (Supernet(model, network, space, align=a) for a in (None, AlignmentSearch()))
    images = torch.randn(4, 1, 8, 8)
    for net_ in (plain, aligned):
        net_.calibrate_activations(images)
    layer = model.conv2
    for index, choice in enumerate(aligned.layers["conv2"].choices):
        before = plain.layers["conv2"].plans[index]
        plan = aligned.layers["conv2"].plans[index]
        assert plan == align(layer.weight.detach().numpy(), before).plan
        weight = layer.weight.detach()
        errors = [
            float((expand(project(weight, p), p) - weight).square().sum()) for p in (before, plan)
        ]
        assert errors[1] <= errors[0] + 1e-6, choice
    row = [len(group.choices) - 1 if n != 1 else 1 for n, group in enumerate(space.groups)]
    alone = aligned.extract(row).eval()
    with aligned.eval().selected(row):
        torch.testing.assert_close(alone(images), aligned(images))
    assert isinstance(alone.conv2, EpitomeConv2d)
    assert "conv2.out_order" in alone.state_dict()
