"""Where the channels of a weight are while they are being aligned, and the gain of moving them.

An element e of the epitome is the mean of the weights that map to it, so the projection error is
sum f w^2 - sum_e S_e^2 / C_e with S_e = sum f w and C_e = sum f over those weights. Only S and C
are kept; a move changes the rows and columns of its channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from epim_nas.epitome.plan import IntArray, SamplingPlan

FloatArray = npt.NDArray[np.float64]


class AlignmentState:
    """The order of the channels and the sums of every epitome element.

    Args:
        weight: (O, I, Kh, Kw), finite.
        plan: the sampling plan; the state starts from its order.
        importance: positive f that broadcasts to the weight's shape.

    Attributes:
        out_order: (O,) the output channel at every output position.
        in_orders: (scopes, I) the input channel at every input position.
        scopes: how many input orders there are: one for every output slab, or one for all of them
            where slabs are wrapped, of either side.
        rows: (O,) the row (output channel) of the epitome that every output position reads.
        channels: (scopes, I) the epitome's input channel that every input position reads; None
            where input positions cannot be moved one by one: output slabs that share their order
            of inputs, but not their patches (input wrapping alone), meet in the same elements.
    """

    def __init__(self, weight: FloatArray, plan: SamplingPlan, importance: FloatArray) -> None:
        outputs, inputs, kernel_h, kernel_w = plan.conv_shape
        kernel = kernel_h * kernel_w
        self.plan = plan
        self.scopes = 1 if plan.wrap or plan.wrap_in else plan.out_slabs
        given = np.arange(outputs) if plan.out_order is None else np.array(plan.out_order)
        self.out_order: IntArray = given
        orders = plan.in_order or [range(inputs)] * plan.out_slabs
        self.in_orders: IntArray = np.array([list(order) for order in orders[: self.scopes]])
        self._factor = np.broadcast_to(importance, plan.conv_shape).reshape(outputs, inputs, kernel)
        self._per_output = importance.shape[1:] == (1, 1, 1)
        self._uniform = importance.size == 1
        self._weighted = weight.reshape(outputs, inputs, kernel) * self._factor
        self._energy = float((self._weighted * weight.reshape(outputs, inputs, kernel)).sum())
        self._slab = np.arange(outputs) // plan.patch[0]
        self._columns = _columns(plan)[: 1 if plan.wrap else plan.out_slabs]
        plane = plan.shape.height * plan.shape.width
        self.channels: IntArray | None = None
        if len(self._columns) == self.scopes:
            self.channels = self._columns[:, :, 0] // plane
        self.rows: IntArray = np.concatenate(
            [
                patch.source_out + np.arange(patch.out_channels)
                for patch in plan.patches[:: plan.in_slabs]
            ]
        )
        width = plan.shape.rows
        # How often an output channel uses each element of its row depends on its slab alone.
        uses = np.stack([np.bincount(c.ravel(), minlength=width) for c in self._columns])
        inverse = np.unique(uses, axis=1, return_inverse=True)[1].ravel()
        self._patterns = [np.flatnonzero(inverse == u) for u in range(inverse.max() + 1)]
        self.sums: FloatArray
        self.counts: FloatArray
        self.set_orders(self.out_order, self.in_orders)

    @property
    def error(self) -> float:
        """The relative squared error of the projection."""
        kept = (np.square(self.sums) / np.maximum(self.counts, np.finfo(float).tiny)).sum()
        return max(0.0, self._energy - float(kept)) / self._energy if self._energy > 0 else 0.0

    def set_orders(self, out_order: IntArray, in_orders: IntArray) -> None:
        """Put the channels in an order."""
        self.out_order, self.in_orders = out_order.copy(), in_orders.copy()
        width = self.plan.shape.rows
        self.sums = np.zeros((self.plan.shape.out_channels, width))
        self.counts = np.zeros_like(self.sums)
        for slab in range(self.plan.out_slabs):
            places = np.flatnonzero(self._slab == slab)
            added, counts = self._filters(slab, self.out_order[places])
            self.sums[self.rows[places]] += added
            self.counts[self.rows[places]] += counts

    def move_outputs(self, places: IntArray) -> None:
        """Put the output channels at ``places``, each with a row of its own, in the best order."""
        rows, filters = self.rows[places], self.out_order[places]
        slabs = self._slab[places]
        gains = np.empty((len(places), len(places)))
        options = {slab: self._filters(slab, filters) for slab in np.unique(slabs)}
        for slab, (added, counts) in options.items():
            own = np.flatnonzero(slabs == slab)
            self.sums[rows[own]] -= added[own]
            self.counts[rows[own]] -= counts if len(counts) == 1 else counts[own]
            gains[own] = assignment_gains(
                self.sums[rows[own]], self.counts[rows[own]], added, counts,
                self._patterns if self._per_output else None,
            )  # fmt: skip
        chosen = linear_sum_assignment(gains, maximize=True)[1]
        self.out_order[places] = filters[chosen]
        for slab, (added, counts) in options.items():
            own = np.flatnonzero(slabs == slab)
            self.sums[rows[own]] += added[chosen[own]]
            self.counts[rows[own]] += counts if len(counts) == 1 else counts[chosen[own]]

    def move_inputs(self, scope: int, places: IntArray) -> None:
        """Put the input channels at ``places``, each with an epitome channel of its own, in the
        best order within one scope."""
        inputs = self.in_orders[scope, places]
        rows, added, counts = self._slices(scope, inputs)
        # (places, rows, kernel) of the epitome; none twice, so they are read and written once.
        where = (rows[None, :, None], self._columns[scope, places][:, None, :])
        others, other_counts = self.sums[where] - added, self.counts[where] - counts
        shape = (len(places), -1)
        gains = assignment_gains(
            others.reshape(shape), other_counts.reshape(shape),
            added.reshape(shape), counts.reshape(len(counts), -1),
        )  # fmt: skip
        chosen = linear_sum_assignment(gains, maximize=True)[1]
        self.in_orders[scope, places] = inputs[chosen]
        self.sums[where] = others + added[chosen]
        if len(counts) > 1:  # else every channel counts the same
            self.counts[where] = other_counts + counts[chosen]

    def _filters(self, slab: int, channels: IntArray) -> tuple[FloatArray, FloatArray]:
        """What output channels add to the sums and counts (channels, columns) of a slab's row.

        Counts have one row where they are the same for all channels.
        """
        order = self.in_orders[min(slab, self.scopes - 1)]
        columns = self._columns[min(slab, len(self._columns) - 1)]
        weighted = self._weighted[channels]
        factor = self._factor[channels[:1] if self._uniform else channels]
        added = np.zeros((len(weighted), self.plan.shape.rows))
        counts = np.zeros((len(factor), self.plan.shape.rows))
        for start in range(0, len(order), self.plan.patch[1]):
            # Within one patch no element is used twice.
            part = slice(start, start + self.plan.patch[1])
            used = columns[part].ravel()
            added[:, used] += weighted.take(order[part], axis=1).reshape(len(added), -1)
            counts[:, used] += factor.take(order[part], axis=1).reshape(len(counts), -1)
        return added, counts

    def _slices(self, scope: int, inputs: IntArray) -> tuple[IntArray, FloatArray, FloatArray]:
        """What input channels add to (channels, rows, kernel) of the epitome, and which rows."""
        places = np.arange(len(self.rows)) if self.plan.wrap else self._slab == scope
        outputs, used = self.out_order[places], self.rows[places]
        rows, row = np.unique(used, return_inverse=True)
        counted = inputs[:1] if self._per_output else inputs
        kernel = self._weighted.shape[2]
        added = np.zeros((len(inputs), len(rows), kernel))
        counts = np.zeros((len(counted), len(rows), kernel))
        for slab in np.unique(self._slab[places]):
            own = self._slab[places] == slab
            added[:, row[own]] += self._weighted[outputs[own], inputs[:, None]]
            counts[:, row[own]] += self._factor[outputs[own], counted[:, None]]
        return rows, added, counts


def assignment_gains(
    sums: FloatArray,
    counts: FloatArray,
    added: FloatArray,
    added_counts: FloatArray,
    patterns: list[IntArray] | None = None,
) -> FloatArray:
    """How much of the weight's energy is kept if channel c is put at place p, but for a constant.

    (S_p + A_c)^2 / (C_p + F_c), summed over the elements of the place.

    Args:
        sums: (places, elements) S without any of the channels.
        counts: (places, elements) C likewise.
        added: (channels, elements) A.
        added_counts: (channels, elements) F, or (1, elements) where it is the same for all.
        patterns: sets of elements within which neither C nor F differ, if that is known.

    Returns:
        (places, channels).
    """
    tiny = np.finfo(float).tiny
    if len(added_counts) == 1:
        inverse = 1 / np.maximum(counts + added_counts, tiny)
        constant = (np.square(sums) * inverse).sum(1)
        product: FloatArray = (2 * sums * inverse) @ added.T + inverse @ np.square(added).T
        return product + constant[:, None]
    gains = np.zeros((len(sums), len(added)))
    if patterns is None:
        for place, (total, count) in enumerate(zip(sums, counts, strict=True)):
            kept = np.square(total + added) / np.maximum(count + added_counts, tiny)
            gains[place] = kept.sum(1)
        return gains
    for pattern in patterns:
        first, s, a = pattern[0], sums[:, pattern], added[:, pattern]
        count = counts[:, first, None] + added_counts[None, :, first]
        squares = np.square(s).sum(1)[:, None] + 2 * s @ a.T + np.square(a).sum(1)
        gains += squares / np.maximum(count, tiny)
    return gains


def _columns(plan: SamplingPlan) -> IntArray:
    """(output slabs, I, Kh Kw) the place in the epitome's row of every input position."""
    plain = plan.reordered(None, None)
    firsts = np.arange(plan.out_slabs) * plan.patch[0]
    index = plain.weight_index[firsts] % plan.shape.rows
    return index.reshape(plan.out_slabs, plan.conv_shape[1], -1)
