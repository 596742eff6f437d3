"""Ties by the network's structure, and ties that contradict one another."""

from __future__ import annotations

import numpy as np
import pytest

from epim_nas import Choice, InputError, LayerSpec, Network, SearchSpace, trace
from epim_nas.models.registry import build_model
from epim_nas.schema import validate
from epim_nas.space import SpaceConfig
from epim_nas.space.space import Group
from epim_nas.space.ties import residual_partners, stages


@pytest.fixture(scope="module")
def resnet20() -> Network:
    return trace(build_model("resnet20", in_channels=3, num_classes=10), (3, 32, 32), "resnet20")


@pytest.fixture(scope="module")
def resnet50() -> Network:
    return trace(build_model("resnet50", in_channels=3, num_classes=10), (3, 64, 64), "resnet50")


def build(network: Network, **keys: object) -> SearchSpace:
    config = validate(SpaceConfig, {"schema": "epim-nas/space@1", "name": "s", **keys}, "s.yaml")
    return SearchSpace.build(config, network)


def tied(space: SearchSpace) -> list[set[str]]:
    return [set(group.layers) for group in space.groups if len(group.layers) > 1]


def test_stages_of_resnet20(resnet20: Network) -> None:
    # Three stages of six 3x3 convolutions; the stem has the kernel and output of the first.
    by_hand = [
        {f"layer{s}.{b}.conv{c}" for b in range(3) for c in (1, 2)}
        | ({"conv1"} if s == 1 else set())
        for s in (1, 2, 3)
    ]
    space = build(resnet20, ties=["stages"])
    assert tied(space) == by_hand
    assert [group.name for group in space.groups] == ["conv1", "layer2.0.conv1", "layer3.0.conv1",
                                                      "linear"]  # fmt: skip


def test_residual_partners_of_resnet20(resnet20: Network) -> None:
    # Shortcuts have no weights (option A), so one stream goes from the stem to the last sum.
    by_hand = {"conv1"} | {f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in range(3)}
    assert tied(build(resnet20, ties=["residual"])) == [by_hand]


def test_stages_of_resnet50(resnet50: Network) -> None:
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    found = [set(group) for group in stages(resnet50)]
    assert {"conv1"} in found  # 7x7
    for stage, count in blocks.items():
        threes = {f"layer{stage}.{b}.conv2" for b in range(count)}
        ones = {f"layer{stage}.{b}.conv{c}" for b in range(count) for c in (1, 3)}
        ones |= {f"layer{stage}.0.downsample.0"}
        # The stride is in the 3x3 convolution, so the first 1x1 of a stage has the size before.
        if stage > 1:
            ones -= {f"layer{stage}.0.conv1"}
        if stage < 4:
            ones |= {f"layer{stage + 1}.0.conv1"}
        assert threes in found
        assert ones in found
    assert len(found) == 9


def test_residual_partners_of_resnet50(resnet50: Network) -> None:
    # Each stage begins with a projection, which starts a stream of its own.
    by_hand = [
        {f"layer{s}.{b}.conv3" for b in range(count)} | {f"layer{s}.0.downsample.0"}
        for s, count in ((1, 3), (2, 4), (3, 6), (4, 3))
    ]
    assert tied(build(resnet50, ties=["residual"])) == by_hand


def layer(name: str, inputs: tuple[str, ...], type_: str = "conv", **keys: object) -> LayerSpec:
    geometry = {"input_size": (8, 8), "output_size": (8, 8), **keys}
    return LayerSpec(name, type_, inputs, 16, 16, **geometry)


def test_sums_are_followed_through_pooling_and_a_gate_is_no_partner() -> None:
    network = Network(
        "net",
        (
            layer("a", ("input",)),
            layer("pool", ("a",), "pooling"),
            layer("b", ("pool",)),
            layer("sum1", ("b", "pool"), "element_sum"),
            layer("c", ("sum1",)),
            layer("gate_pool", ("c",), "pooling", output_size=(1, 1)),
            layer("gate", ("gate_pool",), input_size=(1, 1), output_size=(1, 1)),
            layer("scaled", ("c", "gate"), "element_sum"),
            layer("sum2", ("scaled", "sum1"), "element_sum"),
            layer("d", ("sum2",)),
        ),
        (16, 8, 8),
    )
    assert residual_partners(network) == [["a", "b", "c"], ["gate"], ["d"]]


def test_words_combine_with_lists_and_can_be_limited(resnet20: Network) -> None:
    space = build(
        resnet20,
        defaults={"weight_bits": [3, 4]},
        rules=[{"position": "first", "weight_bits": [9]}],
        ties=[{"stages": "layer[12].*"}, ["layer3.0.*"], {"residual": ["layer3.1*", "layer3.2*"]}],
    )
    assert tied(space) == [
        {f"layer1.{b}.conv{c}" for b in range(3) for c in (1, 2)},
        {f"layer2.{b}.conv{c}" for b in range(3) for c in (1, 2)},
        {"layer3.0.conv1", "layer3.0.conv2"},
        {"layer3.1.conv2", "layer3.2.conv2"},
    ]
    assert len(space) == 4 + 2 + 2  # and the stem, the classifier, conv1 of the last two blocks


def test_a_layer_in_two_ties_is_named_with_both(resnet20: Network) -> None:
    with pytest.raises(InputError) as caught:
        build(resnet20, ties=["stages", ["layer3.*.conv1"]])
    assert "ties.1: contradictory ties: the layer `layer3.0.conv1`" in str(caught.value)
    assert "ties.0 (stages)" in str(caught.value)
    assert "ties.1 (layer3.*.conv1)" in str(caught.value)
    with pytest.raises(InputError, match=r"ties\.0 \(stages\) and by ties\.1 \(residual\)"):
        build(resnet20, ties=["stages", "residual"])


def test_layers_that_exclude_one_another_are_named(resnet20: Network) -> None:
    with pytest.raises(InputError) as caught:
        build(
            resnet20,
            defaults={"weight_bits": [3, 4]},
            rules=[{"position": "first", "weight_bits": [9]}],
            ties=["stages"],
        )
    assert "ties.0 (stages)" in str(caught.value)
    assert (
        "`conv1` and `layer1.0.conv1` exclude one another: `conv1` allows 9 weight bits, "
        "the other 3, 4" in str(caught.value)
    )
    with pytest.raises(InputError) as caught:
        build(
            resnet20,
            rules=[
                {"layers": "layer1.0.conv1", "dense": False, "epitome": {"in_channels": ["1/2"]}}
            ],
            ties=[["layer1.0.*"]],
        )
    assert "`layer1.0.conv1` allows `epitome 1 of O, 1/2 of I, w9a9`" in str(caught.value)
    assert "the other `dense w9a9`" in str(caught.value)


def test_three_layers_without_a_common_choice_are_all_shown(resnet20: Network) -> None:
    bits = {"layer1.0.conv1": [2, 3], "layer1.0.conv2": [3, 4], "layer1.1.conv1": [2, 4]}
    with pytest.raises(InputError) as caught:
        build(
            resnet20,
            rules=[{"layers": name, "weight_bits": allowed} for name, allowed in bits.items()],
            ties=[list(bits)],
        )
    assert "not all together" in str(caught.value)
    for name, (low, high) in bits.items():
        assert f"`{name}` allows `dense w{low}a9`, `dense w{high}a9`" in str(caught.value)


WRONG = {
    "an unknown word": (["stage"], "Did you mean `stages`"),
    "neither word in a limited tie": ([{}], "either `stages` or `residual`"),
    "both words in a limited tie": ([{"stages": "a", "residual": "a"}], "either `stages`"),
    "a wrong key in a limited tie": ([{"stage": "a"}], "`stages`"),
    "a limit that matches nothing": ([{"stages": "layer9*"}], "layer9"),
    "no residual partners": ([{"residual": "layer*.conv1"}], "no two of them are added"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_ties_are_refused_by_name(case: str, resnet20: Network) -> None:
    ties, words = WRONG[case]
    with pytest.raises(InputError, match="ties") as caught:
        build(resnet20, ties=ties)
    assert words in str(caught.value)


def _covers(a: Choice, b: Choice) -> bool:
    if a.weight_bits < b.weight_bits or a.activation_bits < b.activation_bits:
        return False
    if a.shape is None:
        return True
    if b.shape is None or (a.wrap and not b.wrap):
        return False
    return all(x >= y for x, y in zip(a.shape.as_tuple, b.shape.as_tuple, strict=True))


def test_dropping_from_tied_layers_is_by_layer(resnet20: Network) -> None:
    space = build(
        resnet20,
        defaults={
            "epitome": {
                "out_channels": [1, "1/2", "1/3", "1/17", "1/20"],
                "in_channels": [1, "1/2"],
                "wrap": [False, True],
            },
            "weight_bits": [2, 3],
        },
        ties=[["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]],
    )
    group = next(group for group in space.groups if len(group.layers) == 3)
    rng = np.random.default_rng(0)
    costs = {
        metric: {
            name: np.array([1 + (c.shape.size if c.shape else 40000) // 3000 for c in choices])
            + (rng.integers(0, 3, len(choices)) if metric == "latency" else 0)
            for name, choices in space.layer_choices.items()
        }
        for metric in ("crossbars", "latency")
    }
    reduced = space.without_dominated(costs)
    kept = next(g for g in reduced.groups if g.name == group.name).choices

    def beats(a: int, b: int) -> bool:
        return all(
            costs[metric][name][a] <= costs[metric][name][b]
            for metric in costs
            for name in group.layers
        ) and all(_covers(x, y) for x, y in zip(group.choices[a], group.choices[b], strict=True))

    indices = range(len(group))
    expected = {
        group.choices[b] for b in indices if not any(beats(a, b) for a in indices if a != b)
    }
    assert set(kept) == expected
    assert 1 < len(kept) < len(group)
    before, after = (sum(len(g) for g in s.groups) for s in (space, reduced))
    assert reduced.dropped == before - after


def test_a_tied_choice_that_is_slower_in_one_layer_is_kept() -> None:
    wide, narrow = Choice(None, False, 3, 8), Choice(None, False, 2, 8)
    space = SearchSpace("s", "n", (Group("a", ("a", "b"), ((wide, wide), (narrow, narrow))),))
    # 3 bits cost less together, but more in layer b: a pipeline may wait for b.
    costs = {"latency": {"a": np.array([1.0, 5.0]), "b": np.array([4.0, 3.0])}}
    assert len(space.without_dominated(costs).groups[0]) == 2
    costs = {"latency": {"a": np.array([1.0, 5.0]), "b": np.array([3.0, 3.0])}}
    assert space.without_dominated(costs).groups[0].choices == ((wide, wide),)


def test_choices_that_round_alike_in_the_first_layer_are_compared_in_the_others() -> None:
    from epim_nas import EpitomeShape

    small, large = (
        (Choice(EpitomeShape(1, 2, 3, 3)), Choice(EpitomeShape(n, 64, 3, 3))) for n in (16, 22)
    )
    space = SearchSpace("s", "n", (Group("a", ("a", "b"), (small, large)),))
    same = {"crossbars": {"a": np.array([1, 1]), "b": np.array([2, 2])}}
    assert space.without_dominated(same).groups[0].choices == (large,)
