"""Aligned projection: the order of channels in which an epitome fits a trained weight best.

The order of channels in a trained network is arbitrary, and index tables absorb any order, so it is
free. :func:`align` chooses it such that the weights that share an element of the epitome are alike:
it minimises the projection error sum_w f_w (w - E[w])^2 over permutations of output and input
channels, by large-neighbourhood search. Each step takes a block of channels out, no two of which
touch the same element, and puts them back at the same places in the best order: what a channel
gains at a place does not depend on the others, so this is an exact linear assignment, and the error
never rises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.alignment_state import AlignmentState, FloatArray
from epim_nas.epitome.plan import IntArray, SamplingPlan
from epim_nas.errors import InputError


@dataclass(frozen=True)
class AlignmentSearch:
    """How long to search.

    Attributes:
        sweeps: largest number of sweeps over all blocks in one descent.
        tolerance: a descent ends with the sweep that lowers the relative error by less.
        restarts: further descents, each from the best order with a part of it shuffled.
        shuffled: fraction of the channels that a restart shuffles.
        block: largest number of channels that change places at once. The time of a sweep grows
            with it, that of an assignment with its cube; more sweeps of smaller blocks find as
            much.
    """

    sweeps: int = 30
    tolerance: float = 1e-4
    restarts: int = 2
    shuffled: float = 0.2
    block: int = 256

    def __post_init__(self) -> None:
        checks = {
            "sweeps": (self.sweeps >= 1, "at least 1"),
            "tolerance": (self.tolerance >= 0, "0 or greater"),
            "restarts": (self.restarts >= 0, "at least 0"),
            "shuffled": (0 < self.shuffled <= 1, "above 0, to 1"),
            "block": (self.block >= 2, "at least 2"),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                raise InputError(f"alignment.{name}", f"got {getattr(self, name)}", allowed)


@dataclass(frozen=True)
class Alignment:
    """A plan whose channels are in the order that was found.

    Attributes:
        plan: the plan, reordered.
        error_before: relative squared error sum f (w - E)^2 / sum f w^2 of the plan as given.
        error_after: that of ``plan``; never higher.
    """

    plan: SamplingPlan
    error_before: float
    error_after: float


def align(
    weight: npt.ArrayLike,
    plan: SamplingPlan,
    *,
    importance: npt.ArrayLike | None = None,
    search: AlignmentSearch | None = None,
    seed: int = 0,
) -> Alignment:
    """Choose the order of channels in which ``plan`` fits ``weight`` best.

    Output channels stay in their group. Input channels have one order in every output slab, the
    same in all of them where the plan is wrapped; where it is wrapped along the inputs alone, they
    keep their order. The search starts from the plan's own order and is a function of its
    arguments.

    Args:
        weight: (O, I/groups, Kh, Kw).
        plan: the sampling plan.
        importance: non-negative f, of a shape that broadcasts to the weight's, such as the Fisher
            information, or (O, 1, 1, 1); by default 1. One value an output channel is much faster
            than one an element.
        search: how long to search.
        seed: seed of the blocks.

    Raises:
        InputError: a weight of another shape, or NaN, Inf or negative importance.
    """
    search = search or AlignmentSearch()
    state = AlignmentState(_checked(weight, plan), plan, _factors(importance, plan))
    before = best = state.error
    orders = state.out_order.copy(), state.in_orders.copy()
    rng = np.random.default_rng(seed)
    if not plan.is_identity:
        for descent in range(search.restarts + 1):
            if descent:
                state.set_orders(*orders)
                _shuffle(state, rng, search.shuffled)
            _descend(state, rng, search)
            if state.error < best:
                best, orders = state.error, (state.out_order.copy(), state.in_orders.copy())
    found = plan.reordered(orders[0].tolist(), orders[1].tolist())
    return Alignment(found, before, best)


def _descend(state: AlignmentState, rng: np.random.Generator, search: AlignmentSearch) -> None:
    plan, error = state.plan, state.error
    group = np.arange(plan.conv_shape[0]) // (plan.conv_shape[0] // plan.groups)
    for _ in range(search.sweeps):
        # Where there is one slab only, another order is another name for the same epitome.
        if plan.out_slabs > 1:
            for block in _blocks(state.rows, rng, search.block):
                for g in np.unique(group[block]):
                    state.move_outputs(block[group[block] == g])
        if state.channels is not None and (plan.in_slabs > 1 or state.scopes > 1):
            for scope, channels in enumerate(state.channels):
                for block in _blocks(channels, rng, search.block):
                    state.move_inputs(scope, block)
        last, error = error, state.error
        if last - error <= search.tolerance:
            break


def _blocks(keys: IntArray, rng: np.random.Generator, largest: int) -> Iterator[IntArray]:
    """A random division of the places into blocks in which no key occurs twice."""
    order = rng.permutation(len(keys))
    order = order[np.argsort(keys[order], kind="stable")]
    first = np.searchsorted(keys[order], keys[order])
    turn = np.arange(len(keys)) - first
    for number in range(turn.max() + 1):
        block = order[turn == number]
        parts = ceil(len(block) / largest)
        yield from np.array_split(rng.permutation(block), parts) if parts > 1 else [block]


def _shuffle(state: AlignmentState, rng: np.random.Generator, fraction: float) -> None:
    """Put a part of the channels at random places."""
    plan = state.plan
    out_order, in_orders = state.out_order.copy(), state.in_orders.copy()
    size = plan.conv_shape[0] // plan.groups
    for start in range(0, plan.conv_shape[0], size):
        _shuffle_some(out_order[start : start + size], rng, fraction)
    for order in in_orders:
        _shuffle_some(order, rng, fraction)
    state.set_orders(out_order, in_orders)


def _shuffle_some(order: IntArray, rng: np.random.Generator, fraction: float) -> None:
    places = rng.permutation(len(order))[: max(2, round(fraction * len(order)))]
    order[places] = order[rng.permutation(places)]


def _checked(weight: npt.ArrayLike, plan: SamplingPlan) -> FloatArray:
    array = np.asarray(weight, dtype=float)
    if array.size != np.prod(plan.conv_shape):
        raise InputError("weight", f"got the shape {array.shape}", f"{plan.conv_shape}")
    if not np.isfinite(array).all():
        raise InputError("weight", "has NaN or Inf in it", "finite values")
    return array.reshape(plan.conv_shape)


def _factors(importance: npt.ArrayLike | None, plan: SamplingPlan) -> FloatArray:
    if importance is None:
        return np.ones((1, 1, 1, 1))
    array = np.asarray(importance, dtype=float)
    try:
        np.broadcast_to(array, plan.conv_shape)
    except ValueError:
        raise InputError(
            "importance",
            f"got the shape {array.shape}",
            f"one that broadcasts to {plan.conv_shape}",
        ) from None
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise InputError("importance", "has a negative value, NaN or Inf in it", "0 or greater")
    # As in the projection: where it vanishes everywhere, the plain mean is kept.
    floor = max(float(array.mean()), np.finfo(float).tiny) * 1e-6
    return array.reshape((1,) * (4 - array.ndim) + array.shape) + floor
