"""The baselines that the accuracy study compares with."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from epim_nas import load_chip
from epim_nas.models.registry import build_model
from epim_nas.network.trace import trace
from epim_nas.pipeline.measure import activation_batch
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
    quick = {
        "sensitivity": {"images": 32, "batch_size": 16},
        "projection": {"align": False, "outputs": 0},
        "search": {"calibration_images": 100, "batch_size": 100},
    }
    return study.Lab(source, "resnet20", "xbar_64", "narrow", TrainConfig(1, 128), changes=quick)


def test_every_proposal_keeps_the_budget(study: ModuleType, lab: object) -> None:
    methods = study.Study(lab)
    for compression, names in ((20, ("uniform", "crossbars")), (45, ("uniform", "pruned"))):
        budget = int(lab.setup.dense_crossbars / compression)
        for method in names:
            found = methods.propose(method, budget, 0)
            assert found
            for candidate in found:
                assert 0.5 * budget < candidate.crossbars <= budget, candidate.text
                if candidate.design is not None:
                    candidate.design.check_fits(lab.setup.network)
    with pytest.raises(study.Infeasible):
        methods.propose("uniform", 20, 0)


@pytest.mark.parametrize(("method", "compression"), [("uniform", 45), ("pruned", 45)])
def test_ranges_of_inputs_are_those_of_the_compressed_network(
    study: ModuleType, lab: object, method: str, compression: float
) -> None:
    """Its layers put out less than the dense ones: where batch norm knows, steps stay as they are.

    With the ranges of what the dense network's batch norm makes of it, steps are up to four times
    too small.
    """
    budget = int(lab.setup.dense_crossbars / compression)
    model = study.Study(lab).propose(method, budget, 0)[0].network()
    lab.measure(model)  # recalibrates
    found: dict[str, tuple[float, float]] = {}

    def observe(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        before = float(module.activation.step)
        module.activation.calibrate(inputs[0])
        found[name] = before, float(module.activation.step)

    for name, module in model.named_modules():
        if getattr(module, "activation", None) is not None:
            module.register_forward_pre_hook(partial(observe, name))
    with torch.no_grad():
        model.eval()(activation_batch(lab.setup)[0])
    assert len(found) == len(lab.setup.network.weighted)
    for name, (before, after) in found.items():
        assert after == pytest.approx(before, rel=0.3), name


@pytest.mark.parametrize("number", [1, 2])  # 3 and 4 bits
def test_pruned_crossbars_are_whole_and_stay_empty(
    study: ModuleType, lab: object, number: int
) -> None:
    """Counted cell by cell: a crossbar of 64 rows holds 7 channels of a 3x3 kernel."""
    setup, budget, bits = lab.setup, 77, number + 2
    candidate = study.Study(lab).propose("crossbars", budget, 0)[number]
    assert f"{bits} bits" in candidate.text
    model = candidate.network()
    train(model, setup.data, TrainConfig(2, 32, lr=0.1), device="cpu")
    crossbars = 0
    for layer in setup.network.weighted:
        weight = model.get_submodule(layer.name).quantized_epitome.detach()
        first_or_last = layer.name in ("conv1", "linear")
        slices = 8 if first_or_last else bits - 1  # the sign is in the pair
        columns = weight.flatten(2).abs().amax(2).repeat_interleave(slices, 0)
        held = 64 // (layer.kernel[0] * layer.kernel[1])
        for group in columns.split(64):
            crossbars += -(-int(group.amax(0).count_nonzero()) // held)
    assert crossbars <= candidate.crossbars == budget
    dense = study.crossbars_of(setup, study.Study(lab)._dense_design(bits))
    assert crossbars < 0.8 * dense


def test_sliced_crossbars_are_saved_by_whole_places(study: ModuleType, lab: object) -> None:
    from crossbar_pruning import strongest_crossbars

    chip = load_chip("xbar_64", ["mapping.packing=sliced"])
    network, design = lab.setup.network, study.Study(lab)._dense_design(3)  # 2 slices
    kept = strongest_crossbars(lab.setup.model, network, design, chip, 5)
    assert kept is not None
    assert kept.saved == 6
    assert sum(int(not mask.all()) for mask in kept.masks.values()) <= 3


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


def test_no_two_variants_share_a_folder(study: ModuleType) -> None:
    from ablation import VARIANTS, space_of
    from lab import known_by

    searches = {
        name: known_by(space_of("narrow", variant), variant.run)
        for name, variant in VARIANTS.items()
        if variant.run or variant.epitome or variant.space or name == "searched"
    }
    assert searches["searched"] == "narrow"
    assert len(set(searches.values())) == len(searches)


@pytest.mark.parametrize("method", ["exact", "refitted"])
def test_what_a_search_does_without_its_parts(
    study: ModuleType, lab: object, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "TRIALS", 12)
    monkeypatch.setattr(study, "REFITS", 2)
    methods = study.Study(lab)
    found = methods.propose(method, 77, 0)
    assert all(candidate.crossbars <= 77 for candidate in found)
    assert len(found) == (1 if method == "exact" else study.CANDIDATES)
    assert len({candidate.design.key for candidate in found}) == len(found)
    assert len(methods._scores) == (0 if method == "exact" else 12)


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
    again.add({"method": "bits", "seed": 1})
    assert [row["seed"] for row in Records(file).rows] == [0, 1]


def test_results_of_other_weights_or_another_recipe_are_others(
    study: ModuleType, lab: object
) -> None:
    from lab import results

    names = {results(lab, "accuracy")._file.name, results(lab, "ablation")._file.name}
    longer = copy.copy(lab)
    longer.recipe = TrainConfig(2, 128)
    names.add(results(longer, "accuracy")._file.name)
    trained = copy.copy(lab)
    trained.setup = replace(lab.setup, model=copy.deepcopy(lab.setup.model))
    assert results(trained, "accuracy")._file.name in names
    next(trained.setup.model.parameters()).data[0] += 1
    names.add(results(trained, "accuracy")._file.name)
    assert len(names) == 4
