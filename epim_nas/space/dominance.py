"""Which choices of a layer, or of tied layers, another one beats at no cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import Choice


def undominated(choices: Sequence[Sequence[Choice]], costs: npt.NDArray[np.float64]) -> list[int]:
    """The choices that no other one dominates, ordered by the sum of the first metric.

    A choice dominates another where, in each of the layers, it costs no more in every metric and
    has at least as many bits, an epitome at least as large in every dimension, and is not wrapped
    unless both are. (Epitomes of different sizes tile a weight differently, so the larger one fits
    better as a rule, not by proof; finer patches are kept.)

    Costs are compared layer by layer, not by their sum over tied layers: the latency of a pipeline
    is that of its slowest layers, so a sum that is lower can still be slower.

    Args:
        choices: per choice one entry for each of the layers that share it.
        costs: (metrics, layers, choices).

    Returns:
        Indices of the choices that are left.
    """
    sums, each = costs.sum(axis=1), costs.reshape(-1, len(choices))
    # The cheapest first, then the ablest: what comes later dominates nothing before it, so that
    # one pass is enough. All layers count: rounding can make two choices equal in the first one.
    ranked = sorted(
        range(len(choices)),
        key=lambda i: (*sums[:, i], *(-v for choice in choices[i] for v in _ability(choice)), i),
    )
    kept: list[int] = []
    for index in ranked:
        if not any(
            np.all(each[:, other] <= each[:, index])
            and all(_covers(a, b) for a, b in zip(choices[other], choices[index], strict=True))
            for other in kept
        ):
            kept.append(index)
    return kept


def _ability(choice: Choice) -> tuple[float, ...]:
    size = math.inf if choice.shape is None else choice.shape.size
    return (
        choice.weight_bits or 33,
        choice.activation_bits or 33,
        size,
        not choice.wrap,
        not choice.wrap_in,
        -math.inf if choice.shape is None else -_patch_channels(choice),
    )


def _covers(better: Choice, worse: Choice) -> bool:
    """Whether ``better`` has at least the bits and the size of ``worse`` in every respect."""
    if (better.weight_bits or 33) < (worse.weight_bits or 33):
        return False
    if (better.activation_bits or 33) < (worse.activation_bits or 33):
        return False
    if better.shape is None:
        return True
    if worse.shape is None or (better.wrap and not worse.wrap):
        return False
    if better.wrap_in and not worse.wrap_in:
        return False
    if worse.patch is not None and _patch_channels(better) > worse.patch[0]:
        return False  # finer patches may fit better
    pairs = zip(better.shape.as_tuple, worse.shape.as_tuple, strict=True)
    return all(a >= b for a, b in pairs)


def _patch_channels(choice: Choice) -> int:
    assert choice.shape is not None
    return choice.shape.out_channels if choice.patch is None else choice.patch[0]
