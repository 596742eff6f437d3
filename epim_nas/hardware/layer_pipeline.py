"""When every output position of every layer is finished, with layers overlapping.

Positions are processed in raster order, one at a time, as soon as their inputs exist:

    begin(n) = max(finish(n-1), ready(n)),   finish(n) = begin(n) + step(n)

with ready(n) the latest finish of the input positions that position n needs. Source: MNSIM 2.0,
commit ca39ccb, latency mode 1. Unrolled, with C = cumsum(step), it is
finish = C + cummax(ready - C + step), which ``torch_pipeline`` differentiates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.dependencies import Dependencies

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Timeline(NamedTuple):
    """Begin and end in the pipelined network, in ns: (designs, layers), or of one layer."""

    begin_ns: Any
    first_finish_ns: Any
    finish_ns: Any


class Pipeline:
    """Times a network's positions, for many designs at once.

    Args:
        dependencies: what every position waits for.
    """

    def __init__(self, dependencies: Dependencies) -> None:
        self._needs = dependencies

    def run(self, steps: FloatArray) -> tuple[Timeline, FloatArray]:
        """Time the network.

        Args:
            steps: (4, designs, layers) times (ns) of a layer's positions: first, first column,
                first row, all others.

        Returns:
            The timeline, and per design the time at which the last result of the network (of a
            layer that nobody reads) is finished.
        """
        # Compiled on first use: not at import, which everything pays.
        from epim_nas.hardware.numba_loops import finish_times

        times = finish_times(np.ascontiguousarray(steps.transpose(1, 2, 0)), self._needs.tables)
        timeline = Timeline(*times)
        return timeline, timeline.finish_ns[:, self._needs.sinks].max(1)

    def critical_path(self, steps: FloatArray) -> IntArray:
        """How often each kind of position's step is on the path that decides one design's latency.

        A latency is the longest of all paths through the positions, and a path's length is the sum
        of its steps. So the returned counts times the steps of *any* design are at most that
        design's latency, and equal it for the design that they were taken from.

        Args:
            steps: (4, layers) times (ns) of a layer's positions, as for :meth:`run`.

        Returns:
            (4, layers) counts.
        """
        from epim_nas.hardware.numba_loops import critical_path

        counts: IntArray = critical_path(
            np.ascontiguousarray(steps.T),
            self._needs.tables,
            np.array(self._needs.sinks, dtype=np.int64),
        )
        return counts.T
