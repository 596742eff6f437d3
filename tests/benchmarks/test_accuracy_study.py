"""The baselines that the accuracy study compares with."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from epim_nas.models.registry import build_model
from epim_nas.network.trace import trace
from epim_nas.supernet.training import TrainConfig, train

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """The methods' module, importable as it imports its neighbours."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import methods

        yield methods
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model("resnet20", in_channels=3, num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_pruning_nothing_changes_nothing(study: ModuleType, network: torch.nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(study.pruned(network, 1, 1)(IMAGES), network(IMAGES))


def test_pruning_dead_channels_changes_nothing(study: ModuleType, network: torch.nn.Module) -> None:
    """Channels whose batch norm is silenced are the weakest, and nothing reads them."""
    model = copy.deepcopy(network)
    with torch.no_grad():
        streams = [[model.bn1], [], []]
        for number, stage in enumerate((model.layer1, model.layer2, model.layer3)):
            for block in stage:
                dead = torch.randperm(block.bn1.num_features)[: block.bn1.num_features // 2]
                block.bn1.weight[dead] = block.bn1.bias[dead] = 0
                streams[number].append(block.bn2)
        # A channel of the first stream goes into the second one through the shortcut: what is
        # dead there has to be dead here too, at its shifted place.
        dead = torch.arange(0, 16, 4)
        for norms in streams:
            for norm in norms:
                norm.weight[dead] = norm.bias[dead] = 0
            dead = torch.cat([dead + len(norms[0].weight) // 2, torch.arange(len(dead))])
        expected = model(IMAGES)
        small = study.pruned(model, 0.75, 0.5)
        torch.testing.assert_close(small(IMAGES), expected, rtol=1e-4, atol=1e-4)
    shapes = {layer.name: layer.weight_shape for layer in trace(small, (3, 32, 32)).weighted}
    assert shapes["conv1"] == (12, 3, 3, 3)
    assert shapes["layer2.0.conv1"] == (16, 12, 3, 3)
    assert shapes["layer3.2.conv2"] == (48, 32, 3, 3)
    assert shapes["linear"] == (10, 48, 1, 1)


@pytest.fixture(scope="module")
def lab(study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The shipped network and images."""
    from subjects import SHIPPED, Source

    source = Source(SHIPPED, None, tmp_path_factory.mktemp("lab"))
    return study.Lab(source, "resnet20", "xbar_64", "narrow", TrainConfig(1, 128))


def test_every_proposal_keeps_the_budget(study: ModuleType, lab: object) -> None:
    methods = study.Study(lab)
    for compression in (20, 45):
        budget = int(lab.setup.dense_crossbars / compression)
        for method in ("uniform", "pruned", "crossbars"):
            found = methods.propose(method, budget, 0)
            assert found
            for candidate in found:
                assert 0.5 * budget < candidate.crossbars <= budget, candidate.text
                if candidate.design is not None:
                    candidate.design.check_fits(lab.setup.network)
    with pytest.raises(study.Infeasible):
        methods.propose("uniform", 20, 0)


def test_pruned_crossbars_are_whole_and_stay_empty(study: ModuleType, lab: object) -> None:
    """Counted cell by cell: a crossbar of 64 rows holds 7 channels of a 3x3 kernel."""
    setup, budget = lab.setup, 77
    three_bits = study.Study(lab).propose("crossbars", budget, 0)[1]
    assert "3 bits" in three_bits.text
    model = three_bits.network()
    train(model, setup.data, TrainConfig(2, 32, lr=0.1), device="cpu")
    crossbars = 0
    for layer in setup.network.weighted:
        weight = model.get_submodule(layer.name).quantized_epitome.detach()
        first_or_last = layer.name in ("conv1", "linear")
        slices = 8 if first_or_last else 2  # 9 bits and 3 bits, the sign in the pair
        for outputs in weight.split(64 // slices):
            used = int(outputs.flatten(2).abs().amax((0, 2)).count_nonzero())
            held = 64 // (layer.kernel[0] * layer.kernel[1])
            crossbars += -(-used // held)
    assert crossbars <= three_bits.crossbars == budget
    dense = study.crossbars_of(setup, study.Study(lab)._dense_design(3))
    assert crossbars < 0.6 * dense


def test_crossbars_without_weights_are_pruned_first(study: ModuleType, lab: object) -> None:
    from crossbar_pruning import strongest_crossbars

    model = copy.deepcopy(lab.setup.model)
    with torch.no_grad():
        conv = model.layer3[0].conv2
        dead = torch.arange(3, 33, 2)  # 64 channels lie on 10 crossbars, 49 on 7
        conv.weight[:32, dead] = 0
    design = study.Study(lab)._dense_design(3)  # 32 outputs a crossbar
    kept = strongest_crossbars(model, lab.setup.network, design, lab.setup.chip, 3)
    for name, mask in kept.masks.items():
        expected = torch.ones_like(mask)
        if name == "layer3.0.conv2":
            expected[:32, dead] = 0
        torch.testing.assert_close(mask, expected)
    assert strongest_crossbars(model, lab.setup.network, design, lab.setup.chip, 999) is None


def test_what_was_measured_is_not_measured_again(study: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    from lab import Records

    records = Records(file)
    records.add({"method": "bits", "seed": 0, "test_accuracy": 0.5})
    with file.open("a") as stream:
        stream.write('{"method": "bits", "se')  # killed while writing
    again = Records(file)
    assert again.find(method="bits", seed=0) == [json.loads(file.read_text().splitlines()[0])]
    assert again.find(method="bits", seed=1) == []
