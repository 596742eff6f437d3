"""The pipelined latency in torch: the closed form of ``pipeline``, with (sub)gradients."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from epim_nas.hardware.dependencies import Dependencies


def pipelined_latency(needs: Dependencies, steps: Tensor) -> Tensor:
    """Time at which the last result of the network is finished.

    finish = C + cummax(ready - C + step), with C = cumsum(step): a maximum of sums of steps, so it
    is convex in the steps, and its gradient counts the steps on the critical path.

    Args:
        needs: what every position waits for.
        steps: (4, designs, layers) times (ns) of a layer's positions: first, first column, first
            row, all others.

    Returns:
        (designs,) ns.
    """
    finished: dict[int, Tensor] = {}
    for layer, sources in enumerate(needs.sources):
        finish = steps[:, :, layer].T @ _steps_taken(needs.sizes[layer], steps.device)
        ready: Tensor | None = None
        for source in sources:
            columns = needs.sizes[source.layer][1]
            positions = torch.as_tensor(
                (source.rows[:, None] * columns + source.columns).ravel(), device=steps.device
            )
            times = finished[source.layer][:, positions]
            ready = times if ready is None else torch.maximum(ready, times)
        if ready is not None:
            # ready - C + step: the step before position n ends where n - 1 is finished.
            delay = torch.cat([ready[:, :1], ready[:, 1:] - finish[:, :-1]], dim=1)
            finish = finish + torch.cummax(delay, dim=1).values
        finished[layer] = finish
    return torch.stack([finished[sink][:, -1] for sink in needs.sinks]).amax(0)


@lru_cache(maxsize=256)
def _steps_taken(size: tuple[int, int], device: torch.device) -> Tensor:
    """How many positions of each kind there are up to every position, (4, rows * columns).

    C = cumsum(step) is a sum over the four kinds of positions: these counts times their times.
    """
    kinds = torch.zeros(4, *size, dtype=torch.float64, device=device)
    kinds[0, 0, 0] = 1
    kinds[1, 1:, 0] = 1
    kinds[2, 0, 1:] = 1
    kinds[3, 1:, 1:] = 1
    return kinds.flatten(1).cumsum(1)
