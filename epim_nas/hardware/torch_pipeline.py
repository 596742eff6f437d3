"""The pipelined latency in torch: the closed form of ``pipeline``, with (sub)gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from epim_nas.hardware.pipeline import Dependencies, steps_taken


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
    ends = []
    for layer, sources in enumerate(needs.sources):
        taken = torch.as_tensor(steps_taken(*needs.sizes[layer]), device=steps.device)
        finish = steps[:, :, layer].T @ taken.to(steps.dtype)
        if sources:
            ready: Tensor | None = None
            for source in sources:
                times = finished[source.layer]
                if source.positions is not None:
                    times = times[:, torch.as_tensor(source.positions, device=steps.device)]
                ready = times if ready is None else torch.maximum(ready, times)
            assert ready is not None
            delay = torch.cat([ready[:, :1], ready[:, 1:] - finish[:, :-1]], dim=1)
            finish = finish + torch.cummax(delay, dim=1).values
        finished[layer] = finish
        if layer in needs.sinks:
            ends.append(finish[:, -1])
        for source_layer in {source.layer for source in sources}:
            if needs.last_reader[source_layer] == layer:
                del finished[source_layer]
    return torch.stack(ends).amax(0)
