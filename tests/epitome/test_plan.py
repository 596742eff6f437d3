"""The sampling plan, against brute force and by its properties."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas import EpitomeShape, InputError, SamplingPlan
from epim_nas.epitome.plan import Patch


@st.composite
def plans(draw: st.DrawFn) -> SamplingPlan:
    kernel_h, kernel_w = draw(st.sampled_from([(1, 1), (3, 3), (5, 3)]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    out_total = groups * draw(st.integers(1, 12))
    in_total = draw(st.integers(1, 12))
    oe = draw(st.integers(1, out_total))
    ie = draw(st.integers(1, in_total))
    grow_h, grow_w = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    shape = EpitomeShape(oe, ie, kernel_h + grow_h, kernel_w + grow_w)
    conv = (out_total, in_total, kernel_h, kernel_w)
    while shape.size > np.prod(conv):
        oe, ie = max(1, oe // 2), max(1, ie // 2)
        if (oe, ie) == (1, 1):
            shape = EpitomeShape(1, 1, kernel_h, kernel_w)
        else:
            shape = EpitomeShape(oe, ie, kernel_h + grow_h, kernel_w + grow_w)
    patch = None
    if draw(st.booleans()):
        patch = (
            draw(st.integers(1, shape.out_channels)),
            draw(st.integers(1, shape.in_channels)),
        )
    wrap, wrap_in = draw(st.booleans()), draw(st.booleans())
    return SamplingPlan.build(conv, shape, wrap, patch=patch, groups=groups, wrap_in=wrap_in)


@st.composite
def reordered_plans(draw: st.DrawFn) -> SamplingPlan:
    """Plans whose channels are in another order, as aligned projection makes them."""
    plan = draw(plans())
    outputs, inputs = plan.conv_shape[:2]
    size = outputs // plan.groups
    order = [
        group * size + channel
        for group in range(plan.groups)
        for channel in draw(st.permutations(range(size)))
    ]
    count = 1 if plan.wrap or plan.wrap_in else plan.out_slabs
    rows = [draw(st.permutations(range(inputs))) for _ in range(count)]
    return plan.reordered(draw(st.sampled_from([None, order])), draw(st.sampled_from([None, rows])))


def gather_element_by_element(plan: SamplingPlan) -> np.ndarray:
    """The definition of docs/concepts.md, one element at a time."""
    _, _, kernel_h, kernel_w = plan.conv_shape
    _, epitome_in, height, width = plan.shape.as_tuple
    index = np.full(plan.conv_shape, -1)
    for patch in plan.patches:
        for o in range(patch.out_channels):
            for i in range(patch.in_channels):
                for y in range(kernel_h):
                    for x in range(kernel_w):
                        eo = patch.source_out + o
                        ei = patch.source_in + (i + patch.rotation) % plan.patch[1]
                        ey, ex = patch.top + y, patch.left + x
                        out, into = patch.target_out + o, patch.target_in + i
                        if plan.in_order is not None:
                            into = plan.in_order[patch.target_out // plan.patch[0]][into]
                        if plan.out_order is not None:
                            out = plan.out_order[out]
                        target = (out, into, y, x)
                        assert index[target] == -1, "two patches write one element"
                        index[target] = ((eo * epitome_in + ei) * height + ey) * width + ex
    assert (index >= 0).all(), "an element has no source"
    return index


@given(st.one_of(plans(), reordered_plans()))
@settings(max_examples=150)
def test_weight_index_is_the_definition(plan: SamplingPlan) -> None:
    assert (plan.weight_index == gather_element_by_element(plan)).all()


@given(plans())
@settings(max_examples=150)
def test_every_element_comes_from_the_epitome_and_repeats_add_up(plan: SamplingPlan) -> None:
    index = plan.weight_index
    assert index.shape == plan.conv_shape
    assert index.min() >= 0
    assert index.max() < plan.shape.size
    assert plan.repeats.shape == plan.shape.as_tuple
    assert plan.repeats.sum() == np.prod(plan.conv_shape)


@given(plans())
@settings(max_examples=150)
def test_rounds_cover_every_product_once(plan: SamplingPlan) -> None:
    """Every distinct output gets each of its inputs in exactly one round."""
    size = plan.conv_shape[0] // plan.groups
    seen = np.zeros(plan.conv_shape[:2], dtype=int)
    for turn in plan.round_sequence:
        patch = turn.patch
        columns = {
            patch.source_out + (turn.first + i) % plan.patch[0] for i in range(turn.out_channels)
        }
        index = plan.weight_index // (plan.shape.in_channels * plan.shape.height * plan.shape.width)
        targets = slice(patch.target_in, patch.target_in + patch.in_channels)
        if plan.wrap_in:  # the round drives its rows with the sum of all slabs
            assert turn.input_slabs == plan.in_slabs
            targets = slice(0, plan.conv_shape[1])
        outs = [
            out
            for out in range(turn.group * size, (turn.group + 1) * size)
            if set(np.unique(index[out, targets])) <= columns
            and (plan.wrap or patch.target_out <= out < patch.target_out + patch.out_channels)
        ]
        assert len(outs) >= turn.out_channels * (turn.replicas or 1)
        seen[outs, targets] += 1
    assert (seen == 1).all()
    opened = sum(turn.opens for turn in plan.round_sequence)
    assert opened * (1 if plan.wrap_in else plan.in_slabs) == plan.rounds
    assert opened == sum(turn.closes for turn in plan.round_sequence)


@given(st.one_of(plans(), reordered_plans()))
@settings(max_examples=150)
def test_replicated_outputs_are_the_weight(plan: SamplingPlan) -> None:
    rows, source = plan.output_index
    weight = np.arange(plan.shape.size)[plan.weight_index]
    group_channels = plan.conv_shape[0] // plan.groups
    assert (weight[rows][source] == weight).all()
    assert (rows[source] // group_channels == np.arange(len(source)) // group_channels).all(), (
        "a replica must read the inputs of its own group"
    )


@given(plans())
@settings(max_examples=100)
def test_wrapping_repeats_the_first_output_slab(plan: SamplingPlan) -> None:
    if plan.wrap:
        index, period = plan.weight_index, plan.patch[0]
        for o in range(plan.conv_shape[0]):
            assert (index[o] == index[o % period]).all()


@given(plans())
@settings(max_examples=150)
def test_input_wrapping_repeats_the_first_input_slab(plan: SamplingPlan) -> None:
    if plan.wrap_in:
        index, period = plan.weight_index, plan.patch[1]
        for i in range(plan.conv_shape[1]):
            assert (index[:, i] == index[:, i % period]).all()


def _places(patch: Patch) -> tuple[int, ...]:
    return (patch.source_out, patch.source_in, patch.top, patch.left)


@given(plans())
@settings(max_examples=200)
def test_slabs_take_offsets_in_turn_and_rotate_only_where_all_are_taken(plan: SamplingPlan) -> None:
    """The rules of a plan, checked on the list of its patches from the definition."""
    _, _, kernel_h, kernel_w = plan.conv_shape
    offsets = [
        (top, left)
        for top in range(plan.shape.height - kernel_h + 1)
        for left in range(plan.shape.width - kernel_w + 1)
    ]
    # Slabs that are not repeats of another one.
    own = [
        patch
        for patch in plan.patches
        if not (plan.wrap and patch.target_out) and not (plan.wrap_in and patch.target_in)
    ]
    taken: set[tuple[int, ...]] = set()
    for number, patch in enumerate(own):
        free = [
            (rotation, offset)
            for rotation in range(plan.patch[1])
            for offset in offsets
            if (patch.source_out, patch.source_in, *offset, rotation) not in taken
        ]
        if free:
            assert patch.source not in taken, "identical slabs although others were possible"
            assert patch.rotation == min(free)[0], "a rotation although an offset was free"
        taken.add(patch.source)
        # In turn: slabs of the same channels use every offset before one comes again.
        before = [_places(other) for other in own[max(0, number - len(offsets) + 1) : number]]
        if free and plan.patch == (plan.shape.out_channels, plan.shape.in_channels):
            assert _places(patch) not in before


@given(plans())
@settings(max_examples=150)
def test_channel_offsets_reach_from_end_to_end_in_even_steps(plan: SamplingPlan) -> None:
    for starts, slack in (
        (
            [patch.source_out for patch in plan.patches if patch.target_in == 0],
            0 if plan.wrap else plan.shape.out_channels - plan.patch[0],
        ),
        (
            [patch.source_in for patch in plan.patches if patch.target_out == 0],
            0 if plan.wrap_in else plan.shape.in_channels - plan.patch[1],
        ),
    ):
        steps = np.diff(starts)
        assert starts[0] == 0
        if len(starts) > 1:
            assert starts[-1] == slack
            assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_input_wrapping_makes_one_round_of_all_input_slabs(ratio: int) -> None:
    shape = EpitomeShape(16, 16 // ratio, 3, 3)
    for wrap, rounds in ((False, 2), (True, 1)):
        plan = SamplingPlan.build((32, 16, 3, 3), shape, wrap, wrap_in=True)
        assert plan.rounds == rounds
        assert {turn.input_slabs for turn in plan.round_sequence} == {ratio}
    plain = SamplingPlan.build((32, 16, 3, 3), shape)
    assert plain.rounds == 2 * ratio
    assert {turn.input_slabs for turn in plain.round_sequence} == {1}


def test_wrapped_inputs_share_one_order() -> None:
    plan = SamplingPlan.build((8, 8, 3, 3), EpitomeShape(4, 4, 3, 3), wrap_in=True)
    rows = [list(range(8)), list(range(8))[::-1]]
    with pytest.raises(InputError, match="different orders"):
        plan.reordered(None, rows)
    assert plan.reordered(None, rows[1:]).in_order == (tuple(rows[1]),) * 2


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_wrapping_by_r_divides_the_rounds_by_r(ratio: int) -> None:
    shape = EpitomeShape(32 // ratio, 8, 3, 3)
    plain = SamplingPlan.build((32, 16, 3, 3), shape)
    wrapped = SamplingPlan.build((32, 16, 3, 3), shape, wrap=True)
    assert plain.rounds == ratio * 2
    assert wrapped.rounds * ratio == plain.rounds


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_rounds_count_every_group_once(groups: int) -> None:
    plan = SamplingPlan.identity((16, 4, 3, 3), groups=groups)
    assert plan.rounds == groups


def test_slabs_differ_while_they_can() -> None:
    # 4 x 4 slabs of a 4x4 epitome with 3x3 patches: 4 offsets, then rotations.
    plan = SamplingPlan.build((32, 32, 3, 3), EpitomeShape(8, 8, 4, 4))
    sources = {patch.source for patch in plan.patches}
    assert len(sources) == len(plan.patches) == 16
    assert {patch.rotation for patch in plan.patches[:4]} == {0}
    offsets = [(patch.top, patch.left) for patch in plan.patches[:4]]
    assert len(set(offsets)) == 4, "offsets are used in turn"


def test_two_slabs_reach_opposite_corners() -> None:
    plan = SamplingPlan.build((8, 8, 3, 3), EpitomeShape(8, 4, 4, 4))
    assert [(patch.top, patch.left) for patch in plan.patches] == [(0, 0), (1, 1)]


def test_channel_starts_are_spread_evenly() -> None:
    plan = SamplingPlan.build((9, 9, 1, 1), EpitomeShape(5, 5, 1, 1), patch=(3, 3))
    assert [plan.patches[3 * s].source_out for s in range(3)] == [0, 1, 2]
    assert [plan.patches[t].source_in for t in range(3)] == [0, 1, 2]


def test_plans_are_values() -> None:
    build = [SamplingPlan.build((8, 8, 3, 3), EpitomeShape(4, 4, 3, 3)) for _ in range(2)]
    assert build[0] == build[1]
    assert hash(build[0]) == hash(build[1])
    assert SamplingPlan.identity((8, 8, 3, 3)).is_identity
    assert not build[0].is_identity
    assert build[0].out_slabs == build[0].in_slabs == ceil(8 / 4)


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        (EpitomeShape(9, 8, 3, 3), "out_channels"),
        (EpitomeShape(8, 9, 3, 3), "in_channels"),
        (EpitomeShape(8, 4, 2, 3), "height"),
        (EpitomeShape(8, 4, 3, 2), "width"),
        (EpitomeShape(8, 8, 4, 4), "elements"),
    ],
)
def test_an_epitome_that_does_not_fit_is_refused(shape: EpitomeShape, word: str) -> None:
    with pytest.raises(InputError, match=word):
        SamplingPlan.build((8, 8, 3, 3), shape)


@pytest.mark.parametrize("arguments", [{"patch": (0, 4)}, {"patch": (5, 4)}, {"groups": 3}])
def test_wrong_patches_and_groups_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError):
        SamplingPlan.build((8, 8, 3, 3), EpitomeShape(4, 4, 3, 3), **arguments)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "4"])
def test_sizes_are_positive_integers(value: object) -> None:
    with pytest.raises(InputError, match="positive integer"):
        EpitomeShape(value, 4, 3, 3)  # type: ignore[arg-type]


def test_plans_that_differ_in_their_order_share_their_repeats() -> None:
    plan = SamplingPlan.build((8, 6, 3, 3), EpitomeShape(4, 3, 4, 4))
    ordered = plan.reordered(range(7, -1, -1), [[5, 4, 3, 2, 1, 0]])
    assert ordered != plan
    assert ordered.repeats is plan.repeats
    counted = np.bincount(ordered.weight_index.ravel(), minlength=plan.shape.size)
    assert np.array_equal(plan.repeats.ravel(), counted)
    other = SamplingPlan.build((8, 6, 3, 3), EpitomeShape(4, 3, 4, 4), wrap=True)
    assert other.repeats is not plan.repeats
