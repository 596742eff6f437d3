"""Alignment against every permutation there is, and against the projection it serves."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas import EpitomeShape, InputError, SamplingPlan
from epim_nas.epitome.alignment import AlignmentSearch, align
from epim_nas.epitome.alignment_state import assignment_gains
from epim_nas.epitome.sampling import expand, project


def relative_error(
    weight: np.ndarray, plan: SamplingPlan, importance: np.ndarray | None = None
) -> float:
    """By the projection itself, element by element."""
    factor = (
        np.ones_like(weight) if importance is None else np.broadcast_to(importance, weight.shape)
    )
    given = None if importance is None else torch.tensor(factor.copy())
    tensor = torch.tensor(weight)
    off = (tensor - expand(project(tensor, plan, given), plan)).numpy()
    return float((factor * off**2).sum() / (factor * weight**2).sum())


# (weight, epitome, wrapped, patch, groups)
CASES = [
    ((4, 3, 1, 1), (2, 3, 1, 1), True, None, 1),
    ((4, 3, 1, 1), (2, 3, 1, 1), False, None, 1),
    ((2, 4, 3, 3), (2, 2, 3, 3), False, None, 1),
    ((2, 6, 2, 2), (2, 2, 3, 3), False, None, 1),
    ((5, 4, 1, 1), (2, 2, 1, 1), True, None, 1),
    ((3, 4, 1, 1), (2, 3, 1, 1), False, (2, 2), 1),
    ((6, 2, 2, 2), (2, 2, 2, 2), True, None, 2),
]


def build(case: tuple) -> SamplingPlan:
    conv, epitome, wrap, patch, groups = case
    return SamplingPlan.build(conv, EpitomeShape(*epitome), wrap, patch=patch, groups=groups)


@functools.lru_cache
def every_index(case: tuple) -> list[np.ndarray]:
    """The weight's index in every order that there is."""
    plan = build(case)
    outputs, inputs = plan.conv_shape[:2]
    size = outputs // plan.groups
    slabs = 1 if plan.wrap else plan.out_slabs
    rows = list(itertools.permutations(range(inputs)))
    found = []
    for parts in itertools.product(itertools.permutations(range(size)), repeat=plan.groups):
        out = [group * size + channel for group, part in enumerate(parts) for channel in part]
        for ins in itertools.product(rows, repeat=slabs):
            found.append(plan.reordered(out, ins).weight_index.ravel())
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighting", ["none", "outputs", "elements"])
def test_finds_the_best_of_all_orders(case: tuple, weighting: str) -> None:
    plan = build(case)
    rng = np.random.default_rng(7)
    weight = rng.normal(size=plan.conv_shape)
    importance = {
        "none": None,
        "outputs": rng.uniform(0.2, 3, size=(plan.conv_shape[0], 1, 1, 1)),
        "elements": rng.uniform(0.2, 3, size=plan.conv_shape),
    }[weighting]
    factor = np.broadcast_to(1.0 if importance is None else importance, weight.shape)
    best = np.inf
    for index in every_index(case):
        counts = np.bincount(index, factor.ravel(), minlength=plan.shape.size)
        sums = np.bincount(index, (factor * weight).ravel(), minlength=plan.shape.size)
        off = weight.ravel() - (sums / np.maximum(counts, 1e-300))[index]
        best = min(best, (factor.ravel() * off**2).sum() / (factor * weight**2).sum())
    found = align(weight, plan, importance=importance, search=AlignmentSearch(restarts=30))
    assert found.error_after == pytest.approx(best, abs=1e-5)
    assert found.error_after == pytest.approx(
        relative_error(weight, found.plan, importance), abs=1e-5
    )
    assert found.error_before == pytest.approx(relative_error(weight, plan, importance), abs=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_never_worse_than_naive_and_always_what_it_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 2, 3]))
    conv = (groups * int(rng.integers(1, 7)), int(rng.integers(1, 9)), *rng.integers(1, 4, size=2))
    shape = EpitomeShape(
        int(rng.integers(1, conv[0] + 1)), int(rng.integers(1, conv[1] + 1)),
        int(conv[2] + rng.integers(0, 2)), int(conv[3] + rng.integers(0, 2)),
    )  # fmt: skip
    if shape.size > np.prod(conv):
        return
    patch = (
        int(rng.integers(1, shape.out_channels + 1)),
        int(rng.integers(1, shape.in_channels + 1)),
    )
    wrap, wrap_in = bool(rng.integers(2)), bool(rng.integers(2))
    plan = SamplingPlan.build(conv, shape, wrap, patch=patch, groups=groups, wrap_in=wrap_in)
    weight = rng.normal(size=conv)
    importance = [None, rng.uniform(0, 2, size=(conv[0], 1, 1, 1)), rng.uniform(0, 2, size=conv)][
        int(rng.integers(3))
    ]
    found = align(weight, plan, importance=importance, seed=seed)
    assert found.error_after <= found.error_before + 1e-12
    # The projection is in float64 but floors the importance alike only to 1e-6.
    assert found.error_before == pytest.approx(relative_error(weight, plan, importance), abs=1e-5)
    assert found.error_after == pytest.approx(
        relative_error(weight, found.plan, importance), abs=1e-5
    )


def test_recovers_an_order_that_makes_the_error_vanish() -> None:
    rng = np.random.default_rng(1)
    plan = SamplingPlan.build((32, 24, 3, 3), EpitomeShape(16, 12, 3, 3), wrap=True)
    hidden = plan.reordered(rng.permutation(32), [rng.permutation(24)])
    weight = expand(torch.tensor(rng.normal(size=plan.shape.as_tuple)), hidden).numpy()
    found = align(weight, plan, search=AlignmentSearch(restarts=10))
    assert found.error_before > 0.5
    assert found.error_after < 1e-9


def test_same_seed_same_orders_and_it_starts_from_the_plans_own() -> None:
    weight = np.random.default_rng(2).normal(size=(16, 8, 3, 3))
    plan = SamplingPlan.build(weight.shape, EpitomeShape(8, 4, 3, 3))
    first, again = align(weight, plan, seed=3), align(weight, plan, seed=3)
    assert first == again
    further = align(weight, first.plan, seed=4)
    assert further.error_before == pytest.approx(first.error_after)
    assert further.error_after <= first.error_after + 1e-12


def test_the_identity_keeps_its_order() -> None:
    weight = np.random.default_rng(4).normal(size=(8, 8, 3, 3))
    found = align(weight, SamplingPlan.identity(weight.shape))
    assert found.plan == SamplingPlan.identity(weight.shape)
    assert found.error_after == pytest.approx(0, abs=1e-12)


def test_small_blocks_find_nearly_as_much_as_whole_ones() -> None:
    weight = np.random.default_rng(5).normal(size=(64, 32, 1, 1))
    plan = SamplingPlan.build(weight.shape, EpitomeShape(32, 16, 1, 1))
    gains = []
    for block in (8, 256):
        found = align(weight, plan, search=AlignmentSearch(block=block))
        assert found.error_after == pytest.approx(relative_error(weight, found.plan), abs=1e-9)
        gains.append(found.error_before - found.error_after)
    assert gains[0] > 0.8 * gains[1] > 0


def test_a_weight_of_zeros_has_no_error() -> None:
    plan = SamplingPlan.build((4, 4, 1, 1), EpitomeShape(2, 4, 1, 1))
    assert align(np.zeros((4, 4, 1, 1)), plan).error_after == 0


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_gains_are_the_squares_they_stand_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums, added = rng.normal(size=(3, 6)), rng.normal(size=(4, 6))
    patterns = [np.array([0, 2]), np.array([1, 3, 4, 5])]
    counts, added_counts = np.empty((3, 6)), np.empty((4, 6))
    for pattern in patterns:
        counts[:, pattern] = rng.integers(0, 4, size=(3, 1))
        added_counts[:, pattern] = rng.uniform(0.5, 2, size=(4, 1))
    for places, table in ((patterns, added_counts), (None, added_counts), (None, added_counts[:1])):
        expected = np.zeros((3, 4))
        for p, c, e in itertools.product(range(3), range(4), range(6)):
            count = counts[p, e] + table[min(c, len(table) - 1), e]
            expected[p, c] += (sums[p, e] + added[c, e]) ** 2 / count
        np.testing.assert_allclose(assignment_gains(sums, counts, added, table, places), expected)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"weight": np.full((4, 4, 1, 1), np.nan)}, "weight.*NaN"),
        ({"weight": np.zeros((4, 3, 1, 1))}, r"weight.*\(4, 4, 1, 1\)"),
        ({"importance": -np.ones((4, 1, 1, 1))}, "importance.*0 or greater"),
        ({"importance": np.ones((3, 1, 1, 1))}, "importance.*broadcasts"),
    ],
)
def test_wrong_input_is_refused(arguments: dict, field: str) -> None:
    plan = SamplingPlan.build((4, 4, 1, 1), EpitomeShape(2, 4, 1, 1))
    with pytest.raises(InputError, match=field):
        align(**{"weight": np.ones((4, 4, 1, 1)), "plan": plan, **arguments})


@pytest.mark.parametrize(
    "options",
    [{"sweeps": 0}, {"tolerance": -1.0}, {"restarts": -1}, {"shuffled": 0.0}, {"block": 1}],
)
def test_a_search_that_cannot_be_is_refused(options: dict) -> None:
    with pytest.raises(InputError, match=f"alignment.{next(iter(options))}"):
        AlignmentSearch(**options)
