"""The score that ranks designs before they are trained on their own."""

from __future__ import annotations

import math
from collections.abc import Mapping

_LEAST = 1e-12
"""Stands for a loss of nothing."""


def expected_rank(metrics: Mapping[str, float]) -> float:
    """How good a design will be after its own fine-tuning: more is better, only the order counts.

    -log(S sqrt(L)), where S is the additive sensitivity and L the loss with shared weights. The
    two err differently: S adds up layers that were measured alone, in a network without other
    errors, L has the interplay of all layers, but of weights that are shared and not yet at rest.
    Together they rank better than either (benchmarks/ranking.py, docs/sensitivity.md).

    Args:
        metrics: of a trial; ``sensitivity`` (nats) and ``loss`` (nats).
    """
    sensitivity = max(metrics["sensitivity"], _LEAST)
    return -math.log(sensitivity) - 0.5 * math.log(max(metrics["loss"], _LEAST))
