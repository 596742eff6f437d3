"""Search spaces: choices, ties, dominated choices, and wrong files."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from epim_nas import Choice, EpitomeShape, InputError, LayerSpec, Network, SearchSpace, trace
from epim_nas.files import dump_yaml, parse_yaml
from epim_nas.hardware import CostModel, load_chip
from epim_nas.models.registry import build_model
from epim_nas.schema import validate
from epim_nas.space import SpaceConfig, load_space_config
from epim_nas.space.resolve import resolve_space


def conv(name: str, inputs: str, channels: tuple[int, int], **geometry: object) -> LayerSpec:
    return LayerSpec(
        name,
        "conv",
        (inputs,),
        *channels,
        input_size=(8, 8),
        output_size=(8, 8),
        kernel=(3, 3),
        padding=(1, 1),
        **geometry,
    )


@pytest.fixture
def network() -> Network:
    return Network(
        "net",
        (
            conv("stem", "input", (3, 16)),
            conv("a.conv1", "stem", (16, 16)),
            conv("a.conv2", "a.conv1", (16, 16)),
            conv("b.conv1", "a.conv2", (16, 32)),
            LayerSpec("fc", "fc", ("b.conv1",), 32, 10),
        ),
        (3, 8, 8),
    )


def space_of(network: Network, **keys: object) -> SearchSpace:
    config = validate(SpaceConfig, {"schema": "epim-nas/space@1", "name": "s", **keys}, "s.yaml")
    return SearchSpace.build(config, network)


EPITOME = {
    "out_channels": [1, "1/2"],
    "in_channels": [1, 0.5, 4],
    "growth": [0, 1],
    "wrap": [False, True],
}


def test_choices_are_every_smaller_epitome_once(network: Network) -> None:
    space = space_of(
        network, defaults={"epitome": EPITOME, "weight_bits": [2, 3], "activation_bits": [8]}
    )
    found = {choice for choice in space.layer_choices["a.conv1"] if choice.weight_bits == 3}
    expected = {Choice(None, False, 3, 8)}
    for oe, ie, growth, wrap in itertools.product([16, 8], [16, 8, 4], [0, 1], [False, True]):
        shape = EpitomeShape(oe, ie, 3 + growth, 3 + growth)
        if shape.size < 16 * 16 * 9 and not (wrap and oe == 16):
            expected.add(Choice(shape, wrap, 3, 8))
    assert found == expected
    assert all(len(set(choices)) == len(choices) for choices in space.layer_choices.values())


@pytest.mark.parametrize("groups", [2, 16])
def test_a_grouped_layer_may_be_stored_whole_without_its_zeros(groups: int) -> None:
    layers = (conv("c", "input", (16, 16)), conv("g", "c", (16, 16), groups=groups))
    network = Network("net", layers, (16, 8, 8))
    epitome = {**EPITOME, "out_patch": [1, "1/2"], "wrap_in": [False, True]}
    for offered in (epitome, {}):
        space = space_of(network, rules=[{"grouped": True, "epitome": offered}])
        assert space.layer_choices["c"] == (Choice(None, False, 9, 9),)
        whole = EpitomeShape.dense(layers[1].weight_shape)
        found = [choice for choice in space.layer_choices["g"] if choice.shape == whole]
        assert found == [Choice(whole, False, 9, 9)]
    assert space.layer_choices["g"] == (Choice(None, False, 9, 9), *found)


@pytest.mark.parametrize(
    ("epitome", "whole"),
    [
        ({"out_channels": [16], "in_channels": ["1/2"]}, True),  # half of one channel, rounded up
        ({"out_channels": ["1/2"], "in_channels": ["1/2"], "matrices": ["9x16"]}, True),
        ({"out_channels": ["1/2"]}, False),
        ({"out_channels": [1], "in_channels": [1], "growth": [1]}, False),
    ],
)
def test_whole_is_what_comes_to_the_shape_of_a_grouped_layer(epitome: dict, whole: bool) -> None:
    layers = (conv("c", "input", (16, 16)), conv("g", "c", (16, 16), groups=16))
    space = space_of(Network("net", layers, (16, 8, 8)), defaults={"epitome": epitome})
    shapes = [choice.shape for choice in space.layer_choices["g"]]
    assert (EpitomeShape(16, 1, 3, 3) in shapes) == whole


def test_input_wrapping_is_a_choice_where_there_are_input_slabs(network: Network) -> None:
    epitome = {**EPITOME, "wrap": [False], "growth": [0], "wrap_in": [False, True]}
    space = space_of(network, defaults={"epitome": epitome})
    found = {choice for choice in space.layer_choices["a.conv1"] if choice.shape}
    expected = {
        Choice(EpitomeShape(oe, ie, 3, 3), False, 9, 9, wrap_in=wrap_in)
        for oe, ie, wrap_in in itertools.product([16, 8], [16, 8, 4], [False, True])
        if (oe, ie) != (16, 16) and not (wrap_in and ie == 16)
    }
    assert found == expected
    assert SearchSpace.from_dict(space.to_dict()) == space
    # Without the option a space is stored as it was before there was one.
    old = space_of(network, defaults={"epitome": EPITOME})
    assert {
        len(choice) for group in old.to_dict()["groups"] for (choice, *_) in group["choices"]
    } == {5}


def test_later_rules_win_and_conditions_are_all_needed(network: Network) -> None:
    space = space_of(
        network,
        defaults={"weight_bits": [2, 3], "activation_bits": [8]},
        rules=[
            {"layers": "a.*", "weight_bits": [4]},
            {"layers": ["*.conv2"], "weight_bits": [5]},
            {"type": "fc", "weight_bits": [9]},
            {"position": "first", "weight_bits": [8]},
            {"layers": "b.*", "kernel": 5, "weight_bits": [7]},
        ],
    )
    bits = {name: [c.weight_bits for c in choices] for name, choices in space.layer_choices.items()}
    assert bits == {"stem": [8], "a.conv1": [4], "a.conv2": [5], "b.conv1": [2, 3], "fc": [9]}


def test_ties_share_the_relative_choice(network: Network) -> None:
    space = space_of(
        network,
        defaults={"epitome": {"out_channels": ["1/2"]}, "weight_bits": [3, 4]},
        rules=[{"type": "fc", "epitome": "none"}, {"position": "first", "epitome": "none"}],
        ties=[["a.*", "b.*"]],
    )
    assert [group.layers for group in space.groups] == [
        ("stem",),
        ("a.conv1", "a.conv2", "b.conv1"),
        ("fc",),
    ]
    design = space.design([0, len(space.groups[1]) - 1, 1])
    assert design["a.conv1"].shape == EpitomeShape(8, 16, 3, 3)
    assert design["b.conv1"].shape == EpitomeShape(16, 16, 3, 3)
    assert space.row(design) == (0, 3, 1)


def test_rows_designs_and_files_round_trip(network: Network) -> None:
    space = space_of(network, defaults={"epitome": EPITOME, "weight_bits": [2, 3]})
    again = SearchSpace.from_dict(space.to_dict())
    assert again == space
    assert again.digest == space.digest
    rng = np.random.default_rng(0)
    for _ in range(20):
        row = tuple(int(rng.integers(len(group))) for group in space.groups)
        assert space.row(space.design(row)) == row
    assert 10**space.log10_size == pytest.approx(np.prod([len(group) for group in space.groups]))


def test_dropped_choices_are_dominated_and_kept_ones_are_not(network: Network) -> None:
    space = space_of(network, defaults={"epitome": EPITOME, "weight_bits": [2, 3, 4]})
    rng = np.random.default_rng(1)
    costs = {
        metric: {
            # A staircase, as crossbars are: many choices cost the same.
            name: np.array([1 + (c.shape.size if c.shape else 4000) // 700 for c in choices])
            + (rng.integers(0, 2, len(choices)) if metric == "energy" else 0)
            for name, choices in space.layer_choices.items()
        }
        for metric in ("crossbars", "energy")
    }
    reduced = space.without_dominated(costs)
    assert reduced.dropped > 0

    def as_good(a: Choice, b: Choice) -> bool:
        if a.weight_bits < b.weight_bits or a.activation_bits < b.activation_bits:
            return False
        if a.shape is None:
            return True
        if b.shape is None or (a.wrap and not b.wrap):
            return False
        return all(x >= y for x, y in zip(a.shape.as_tuple, b.shape.as_tuple, strict=True))

    for name, choices in space.layer_choices.items():
        kept = set(reduced.layer_choices[name])
        cost = {c: [costs[m][name][i] for m in costs] for i, c in enumerate(choices)}
        for b in choices:
            better = [
                a
                for a in choices
                if a != b
                and as_good(a, b)
                and all(x <= y for x, y in zip(cost[a], cost[b], strict=True))
            ]
            if b not in kept:
                assert any(a in kept for a in better), (name, b)
            else:
                assert not any(a in kept for a in better), (name, b)
        ordered = [cost[c][0] for c in reduced.layer_choices[name]]
        assert ordered == sorted(ordered)


WRONG = {
    "unknown key": ({"defaults": {"weight_bit": [3]}}, "weight_bits"),
    "unknown key in a rule": ({"rules": [{"layer": "a.*"}]}, "layers"),
    "no bits": ({"defaults": {"weight_bits": []}}, "defaults.weight_bits"),
    "one bit": ({"defaults": {"weight_bits": [1]}}, "weight_bits.0"),
    "bits as text": ({"defaults": {"weight_bits": "3"}}, "weight_bits"),
    "a fraction above one": ({"defaults": {"epitome": {"in_channels": ["3/2"]}}}, "in_channels"),
    "a fraction by zero": ({"defaults": {"epitome": {"in_channels": ["1/0"]}}}, "in_channels"),
    "no channels": ({"defaults": {"epitome": {"out_channels": [0]}}}, "out_channels"),
    "truth as a size": ({"defaults": {"epitome": {"out_channels": [True]}}}, "out_channels"),
    "wrap as a word": ({"defaults": {"epitome": {"wrap": ["both"]}}}, "wrap"),
    "negative growth": ({"defaults": {"epitome": {"growth": [-1]}}}, "growth"),
    "wrong schema": ({"schema": "epim-nas/space@9"}, "schema"),
    "a pattern that matches nothing": ({"rules": [{"layers": "layer9.*"}]}, "layer9"),
    "a tie that matches nothing": ({"ties": [["c.*"]]}, "ties.0"),
    "a layer in two ties": ({"ties": [["a.*"], ["a.conv1", "b.*"]]}, "ties.1"),
    "neither dense nor epitome": ({"defaults": {"dense": False}}, "stem"),
    "only too large epitomes": (
        {"defaults": {"dense": False, "epitome": {"growth": [1]}}},
        "stem",
    ),
    "ties without a common choice": (
        {"ties": [["a.*"]], "rules": [{"layers": "a.conv1", "weight_bits": [3]}]},
        "a.conv1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_spaces_are_refused_by_name(case: str, network: Network, tmp_path: Path) -> None:
    keys, word = WRONG[case]
    path = tmp_path / "space.yaml"
    path.write_text(dump_yaml({"schema": "epim-nas/space@1", "name": "s", **keys}))
    with pytest.raises(InputError) as caught:
        SearchSpace.build(load_space_config(str(path)), network)
    assert word in str(caught.value)


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_presets_are_valid(name: str, network: Network) -> None:
    space = SearchSpace.build(load_space_config(name), network)
    assert space.log10_size > 3
    design = space.design([0] * len(space))
    design.check_fits(network)


def test_patches_are_a_part_of_the_epitomes_channels(network: Network) -> None:
    epitome = {"in_channels": ["1/2"], "out_channels": [1, "1/2"], "wrap": [False, True]}
    space = space_of(network, defaults={"epitome": {**epitome, "out_patch": [1, "1/4"]}})
    found = {
        (choice.shape.out_channels, choice.wrap, choice.patch)
        for (choice,) in next(g for g in space.groups if g.name == "b.conv1").choices
        if choice.shape is not None
    }
    # Wrapping repeats the patches of the first slab, so a wrapped choice has no patches of its own.
    assert found == {
        (32, False, None),
        (32, False, (8, 8)),
        (16, False, None),
        (16, False, (4, 8)),
        (16, True, None),
    }


def test_a_patch_is_no_larger_than_the_epitome(network: Network) -> None:
    for value in (2, 0, "3/2", "half"):
        with pytest.raises(InputError, match="out_patch"):
            space_of(network, defaults={"epitome": {"in_channels": ["1/2"], "out_patch": [value]}})


def test_finer_patches_are_worth_more_rounds(network: Network) -> None:
    epitome = {"in_channels": ["1/2"], "out_patch": [1, "1/4"]}
    space = space_of(network, defaults={"dense": False, "epitome": epitome})
    plans = {
        layer.name: [choice.plan(layer) for choice in space.layer_choices[layer.name]]
        for layer in network.weighted
    }
    same = {name: np.ones(len(found)) for name, found in plans.items()}
    rounds = {name: np.array([plan.rounds for plan in found]) for name, found in plans.items()}
    kept = space.without_dominated({"crossbars": same, "latency_ns": rounds})
    assert [len(group) for group in kept.groups] == [2, 2, 2, 2, 2]
    # Where they cost nothing, the whole patch has no reason to stay.
    kept = space.without_dominated({"crossbars": same})
    assert all(group.choices[0][0].patch is not None for group in kept.groups)
    assert [len(group) for group in kept.groups] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("space", "model", "chip"),
    [("narrow", "resnet20", "xbar_64"), ("wide", "resnet50", "epim_256")],
)
def test_presets_search_two_bits_and_quarter_size_epitomes(
    space: str, model: str, chip: str
) -> None:
    network = trace(build_model(model, in_channels=3, num_classes=10), (3, 64, 64), model)
    config = load_space_config(space)
    resolved = resolve_space(config, CostModel(network, load_chip(chip)))
    sparing = {layer.name for layer in network.weighted[1:] if layer.type == "conv"}
    assert len(sparing) == len(network.weighted) - 2
    for name in sparing:
        size = math.prod(network[name].weight_shape)
        offered = {
            c.shape.size / size
            for c in resolved.offered.layer_choices[name]
            if c.weight_bits == 2 and c.shape is not None
        }
        assert 0.25 in offered, name
        assert any(c.weight_bits == 2 for c in resolved.space.layer_choices[name]), name
    # Small layers drop what saves no crossbar; where it does, quarters are searched.
    largest = max(sparing, key=lambda name: math.prod(network[name].weight_shape))
    searched = resolved.space.layer_choices[largest]
    size = math.prod(network[largest].weight_shape)
    assert any(
        c.weight_bits == 2 and c.shape is not None and c.shape.size * 4 == size for c in searched
    )


def test_dropped_counts_are_known_by_layer(network: Network) -> None:
    keys = {"defaults": {"epitome": EPITOME, "weight_bits": [2, 3]}, "ties": [["a.*"]]}
    data = {"schema": "epim-nas/space@1", "name": "s", **keys}
    cost = CostModel(network, load_chip("xbar_64"))
    resolved = resolve_space(validate(SpaceConfig, data, "s.yaml"), cost)
    found = resolved.dropped_by_layer
    for layer, choices in resolved.offered.layer_choices.items():
        assert found[layer] == len(choices) - len(resolved.space.layer_choices[layer])
    # Tied layers make one decision, whose choices are dropped once.
    assert resolved.space.dropped == sum(found.values()) - found["a.conv2"] > 0
    kept = resolve_space(validate(SpaceConfig, {**data, "drop_dominated": False}, "s.yaml"), cost)
    assert set(kept.dropped_by_layer.values()) == {0}
    assert kept.space.log10_size == pytest.approx(resolved.offered.log10_size)


def test_examples_of_the_page_are_valid_spaces() -> None:
    page = Path(__file__).parents[2] / "docs" / "search_space.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    network = trace(build_model("resnet20", in_channels=3, num_classes=10), (3, 32, 32), "resnet20")
    assert len(blocks) == 3
    for block in blocks:
        config = validate(SpaceConfig, parse_yaml(block), "search_space.md")
        space = SearchSpace.build(config, network, load_chip("xbar_64"))
        assert space.log10_size > 1, config.name
