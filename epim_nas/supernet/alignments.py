"""The orders of the channels of a layer's choices, kept in a file.

Aligning a wide network takes minutes. A search that is resumed reads what it has found, which also
keeps the orders that its shared weights were trained with: on another machine the last digit of a
sum could lead to others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.alignment import AlignmentSearch, align
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.files import digest
from epim_nas.supernet.caches import read_cache, write_cache


def align_plans(
    weight: npt.NDArray[np.float64],
    plans: Sequence[SamplingPlan],
    search: AlignmentSearch | None = None,
    *,
    file: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[SamplingPlan]:
    """Each plan of one weight with its channels aligned; equal plans are aligned once.

    Args:
        weight: (O, I/groups, Kh, Kw).
        plans: the plans of the layer's choices.
        search: how long to search.
        file: where the orders are kept; what is there is used if it was found for the same
            arguments, and replaced otherwise.
        progress: called with how many plans have been finished since the last call.
    """
    search = search or AlignmentSearch()
    times = Counter(plans)
    identity = _identity(weight, list(times), search)
    found = _read(file, list(times), identity)
    if found is not None:
        progress(len(plans))
    else:
        found = {}
        for plan, count in times.items():
            found[plan] = align(weight, plan, search=search).plan
            progress(count)
        if file is not None:
            _write(file, list(found.values()), identity)
    return [found[plan] for plan in plans]


def _identity(
    weight: npt.NDArray[np.float64], plans: Sequence[SamplingPlan], search: AlignmentSearch
) -> str:
    """Digest of what the orders depend on."""
    return digest(
        {
            "weight": hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest(),
            "plans": [
                [p.conv_shape, p.shape.as_tuple, p.patch, p.wrap, p.wrap_in, p.groups]
                for p in plans
            ],
            "search": asdict(search),
        }
    )


def _read(
    file: Path | None, plans: Sequence[SamplingPlan], identity: str
) -> dict[SamplingPlan, SamplingPlan] | None:
    """The aligned plans in a file; None where it holds others, or is damaged."""

    def read(stored: Mapping[str, Any]) -> dict[SamplingPlan, SamplingPlan] | None:
        if str(stored["identity"]) != identity:
            return None
        found = {}
        for number, plan in enumerate(plans):
            orders = [
                stored[key].tolist() if key in stored else None
                for key in (f"out.{number}", f"in.{number}")
            ]
            found[plan] = plan.reordered(*orders)
        return found

    return read_cache(file, read)


def _write(file: Path, plans: Sequence[SamplingPlan], identity: str) -> None:
    arrays = {"identity": np.array(identity)}
    for number, plan in enumerate(plans):
        if plan.out_order is not None:
            arrays[f"out.{number}"] = np.array(plan.out_order, dtype=np.int32)
        if plan.in_order is not None:
            rows = plan.in_order[:1] if plan.wrap or plan.wrap_in else plan.in_order
            arrays[f"in.{number}"] = np.array(rows, dtype=np.int32)
    write_cache(file, arrays)
