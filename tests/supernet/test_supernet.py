"""The supernet under a design is the design's own network."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from epim_nas import apply_design, load_chip
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.output_projection import project_outputs
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization import Quantization
from epim_nas.epitome.sampling import expand, project
from epim_nas.epitome.statistics import input_covariances
from epim_nas.hardware.mapping import quantized_by_crossbar
from epim_nas.supernet.supernet import Supernet
from tests.supernet.nets import tiny

ROWS = [(0, 0, 0, 0), (1, 1, 2, 1), (0, 3, 1, 0), (1, 2, 3, 1), (1, 5, 0, 1)]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def calibrated(images: torch.Tensor) -> Supernet:
    model, network, space = tiny()
    supernet = Supernet(model, network, space).eval()
    supernet.calibrate_activations(images)
    return supernet


def test_without_a_design_it_is_the_dense_network(images: torch.Tensor) -> None:
    model, _, _ = tiny()
    assert torch.equal(calibrated(images)(images), model(images))


def test_it_starts_at_the_pretrained_network(images: torch.Tensor) -> None:
    model, _, _ = tiny()
    supernet = calibrated(images)
    with supernet.selected((0, 0, 0, 0)):
        torch.testing.assert_close(supernet(images), model(images))


@pytest.mark.parametrize("row", ROWS)
def test_a_selected_design_equals_its_stand_alone_network(row: tuple, images: torch.Tensor) -> None:
    supernet = calibrated(images)
    model, _, space = tiny()
    alone = apply_design(model, space.design(row))
    for name, layer in alone.named_modules():
        if isinstance(layer, (EpitomeConv2d, EpitomeLinear)) and layer.activation is not None:
            source = supernet.layers[name].activations[str(layer.activation_bits)]
            layer.activation.load_state_dict(source.state_dict())
    with supernet.selected(row):
        torch.testing.assert_close(supernet(images), alone.eval()(images))
    extracted = supernet.extract(row).eval()
    torch.testing.assert_close(extracted(images), alone(images))
    assert all(module.active is None for module in supernet.layers.values()), "restored"


def test_options_of_quantization_reach_every_choice(images: torch.Tensor) -> None:
    model, network, space = tiny()
    options = Quantization(
        weight_range="least_squares",
        by_repeats=True,
        activation_range="percentile",
        percentile=99.0,
    )
    rule = quantized_by_crossbar(options, load_chip("xbar_64"))
    supernet = Supernet(model, network, space, rule).eval()
    supernet.calibrate_activations(images)
    default = calibrated(images)
    for row in ROWS[1:]:
        extracted = supernet.extract(row).eval()
        with supernet.selected(row), default.selected(row):
            torch.testing.assert_close(supernet(images), extracted(images))
            assert not torch.allclose(supernet(images), default(images), atol=1e-4)


def test_learned_steps_start_from_the_rule_of_the_supernet(images: torch.Tensor) -> None:
    model, network, space = tiny()
    supernet = Supernet(model, network, space, Quantization(learned_weight_step=True)).eval()
    supernet.calibrate_activations(images)
    assert not any("weight_quantizer" in name for name in supernet.state_dict())
    row = (1, 1, 2, 1)
    extracted = supernet.extract(row).eval()
    assert sum("weight_quantizer.step" in name for name in extracted.state_dict()) == 4
    with supernet.selected(row):
        torch.testing.assert_close(extracted(images), supernet(images))


def test_extracting_leaves_the_supernet_alone(images: torch.Tensor) -> None:
    supernet = calibrated(images)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    extracted = supernet.extract((1, 1, 2, 1))
    with torch.no_grad():
        for parameter in extracted.parameters():
            parameter.zero_()
    after = supernet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_training_one_design_moves_the_shared_weights(images: torch.Tensor) -> None:
    supernet = calibrated(images).train()
    with supernet.selected((1, 1, 2, 1)):
        supernet(images).square().sum().backward()
    for name, layer in supernet.layers.items():
        gradient = layer.dense.weight.grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_a_pickled_supernet_scores_the_same(images: torch.Tensor) -> None:
    supernet = calibrated(images)
    copy = pickle.loads(pickle.dumps(supernet))
    with supernet.selected((1, 2, 3, 1)), copy.selected((1, 2, 3, 1)):
        assert torch.equal(copy(images), supernet(images))


def test_calibration_leaves_mode_and_statistics_alone(images: torch.Tensor) -> None:
    model, network, space = tiny()
    supernet = Supernet(model, network, space).train()
    mean = supernet.model.bn1.running_mean.clone()
    supernet.calibrate_activations(images)
    assert supernet.training
    assert torch.equal(supernet.model.bn1.running_mean, mean)


@pytest.fixture
def covariances(images: torch.Tensor) -> dict[str, torch.Tensor]:
    model, _, _ = tiny()
    return input_covariances(model, [(images, torch.zeros(16).long())], ["conv2", "conv3"])


@pytest.mark.parametrize("row", ROWS)
def test_choices_start_from_the_projection_onto_outputs(
    row: tuple, images: torch.Tensor, covariances: dict[str, torch.Tensor]
) -> None:
    model, network, space = tiny()
    supernet = Supernet(model, network, space, covariances=covariances).eval()
    for group, index in zip(space.groups, row, strict=True):
        layer, choice = supernet.layers[group.name], group.choices[index][0]
        weight = model.get_submodule(group.name).weight.detach()
        found = layer.unquantized(index).detach()
        plan = choice.plan(network[group.name])
        plain = project(weight.reshape(plan.conv_shape), plan)
        if choice.shape is None or group.name not in covariances:
            torch.testing.assert_close(found, plain.reshape(found.shape))
            continue
        # It is what a long solution of the linear problem finds, and better than the plain one.
        covariance = covariances[group.name]
        exact = project_outputs(weight, plan, covariance, steps=2000, tolerance=1e-7)

        def error(
            epitome: torch.Tensor, weight: torch.Tensor = weight, plan: SamplingPlan = plan,
            covariance: torch.Tensor = covariance,
        ) -> float:  # fmt: skip
            lost = (weight - expand(epitome, plan)).flatten(1)
            level = 0.01 * covariance[0].diagonal().mean()
            damped = covariance[0] + level * torch.eye(len(covariance[0]))
            return float(((lost @ damped) * lost).sum())

        assert error(exact) <= error(found) * (1 + 1e-5)
        assert error(found) < 1.02 * error(exact)
        # Of a wrapped half every element is the mean of two weights, the best for both errors.
        assert choice.wrap or error(found) < error(plain)


def test_the_start_moves_with_the_shared_weights(
    images: torch.Tensor, covariances: dict[str, torch.Tensor]
) -> None:
    model, network, space = tiny()
    supernet = Supernet(model, network, space, covariances=covariances)
    layer, plain = supernet.layers["conv2"], Supernet(model, network, space).layers["conv2"]
    offset = layer.unquantized(2) - plain.unquantized(2)
    assert offset.abs().max() > 1e-3
    with torch.no_grad():
        for weight in (layer.dense.weight, plain.dense.weight):
            weight.add_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))
    torch.testing.assert_close(layer.unquantized(2) - plain.unquantized(2), offset)
    # Checkpoints hold the shared weights alone; the start is recomputed.
    assert supernet.state_dict().keys() == Supernet(model, network, space).state_dict().keys()


@pytest.mark.parametrize("row", ROWS)
def test_a_frozen_design_computes_the_same_and_is_let_go(
    row: tuple, images: torch.Tensor, covariances: dict[str, torch.Tensor]
) -> None:
    model, network, space = tiny()
    supernet = Supernet(model, network, space, covariances=covariances).eval()
    supernet.calibrate_activations(images)
    with supernet.selected(row):
        expected = supernet(images).detach()
    with supernet.frozen(row):
        assert torch.equal(supernet(images), expected)
    with torch.no_grad():
        for layer in supernet.layers.values():
            layer.dense.weight.mul_(2)
    with supernet.selected(row):
        assert not torch.allclose(supernet(images), expected), "nothing is held any more"


def test_starts_are_kept_for_the_same_network_and_images(
    images: torch.Tensor, covariances: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model, network, space = tiny()
    expected = Supernet(model, network, space, covariances=covariances, alignments=tmp_path)
    files = {path.name for path in tmp_path.glob("*.npz")}
    assert files == {"conv2.start.npz", "conv3.start.npz"}
    marked = {name: (tmp_path / name).stat().st_mtime_ns for name in files}
    done: list[int] = []
    again = Supernet(
        model, network, space, covariances=covariances, alignments=tmp_path, progress=done.append
    )
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files} == marked
    assert done[-1] == sum(len(again.layers[name].choices) for name in covariances)
    for name in covariances:
        for index in range(len(again.layers[name].choices)):
            torch.testing.assert_close(
                again.layers[name].unquantized(index), expected.layers[name].unquantized(index)
            )
    # Other images, other weights, or a damaged file: solved again.
    other = {name: covariance + torch.eye(72) for name, covariance in covariances.items()}
    changed = Supernet(model, network, space, covariances=other, alignments=tmp_path)
    fresh = Supernet(model, network, space, covariances=other)
    assert torch.equal(changed.layers["conv2"].unquantized(2), fresh.layers["conv2"].unquantized(2))
    (tmp_path / "conv2.start.npz").write_bytes(b"damaged")
    mended = Supernet(model, network, space, covariances=other, alignments=tmp_path)
    assert torch.equal(mended.layers["conv2"].unquantized(2), fresh.layers["conv2"].unquantized(2))
