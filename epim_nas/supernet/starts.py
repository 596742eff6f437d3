"""Where the choices of a layer start: the projection onto its outputs, kept in a file.

Of a wide network this takes minutes, and a search that is resumed should not solve it again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epim_nas.epitome.output_projection import OutputProjection
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.sampling import project
from epim_nas.files import digest
from epim_nas.supernet.caches import read_cache, write_cache

_SOLVER_STEPS = 20
"""Steps of the projection onto outputs. All designs of a ResNet-20 that were tried had the accuracy
of 100 steps after 10 to 20, and a space has hundreds of plans."""


def output_offsets(
    weight: Tensor,
    plans: Sequence[SamplingPlan],
    covariance: Tensor,
    *,
    file: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[SamplingPlan, Tensor]:
    """What the projection onto a layer's outputs adds to that onto its weight.

    Args:
        weight: (O, I/groups, Kh, Kw) or (O, I).
        plans: the plans of the layer's choices; equal ones are solved once.
        covariance: (groups, n, n) of the layer's inputs, n = I/groups * Kh * Kw.
        file: where the result is kept; what is there is used if it was found for the same
            arguments, and replaced otherwise.
        progress: called with how many plans have been finished since the last call.

    Returns:
        Plan -> (Oe, Ie, He, We), for every plan that is not the dense layer.
    """
    weight = weight.detach()
    times = Counter(plans)
    wanted = [plan for plan in times if not plan.is_identity]
    identity = _identity(weight, wanted, covariance)
    found = _read(file, wanted, identity)
    if found is not None:
        progress(len(plans))
        return {plan: offset.to(weight) for plan, offset in found.items()}
    found = {}
    dense = weight.reshape(next(iter(times)).conv_shape)
    projection = OutputProjection(dense, covariance)
    for plan, count in times.items():
        if not plan.is_identity:
            start = projection.epitome(plan, steps=_SOLVER_STEPS)
            found[plan] = start - project(dense, plan)
        progress(count)
    if file is not None:
        arrays = {f"offset.{n}": found[plan].cpu().numpy() for n, plan in enumerate(wanted)}
        write_cache(file, {"identity": np.array(identity), **arrays})
    return found


def _identity(weight: Tensor, plans: Sequence[SamplingPlan], covariance: Tensor) -> str:
    """Digest of what the offsets depend on."""
    content = hashlib.sha256()
    for tensor in (weight, covariance):
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    described = [
        [p.conv_shape, p.shape.as_tuple, p.patch, p.wrap, p.wrap_in, p.groups, p.out_order,
         p.in_order]
        for p in plans
    ]  # fmt: skip
    return digest([content.hexdigest(), described, _SOLVER_STEPS])


def _read(
    file: Path | None, plans: Sequence[SamplingPlan], identity: str
) -> dict[SamplingPlan, Tensor] | None:
    """The offsets in a file; None where it holds others, or is damaged."""

    def read(stored: Mapping[str, Any]) -> dict[SamplingPlan, Tensor] | None:
        if str(stored["identity"]) != identity:
            return None
        return {plan: torch.from_numpy(stored[f"offset.{n}"]) for n, plan in enumerate(plans)}

    return read_cache(file, read)
