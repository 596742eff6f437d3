"""The sampling plan: which patch of the epitome fills which part of the convolution's weight.

The plan is the single source of truth about an epitome layer. The operator gathers its weight by
:attr:`SamplingPlan.weight_index`, the projection and the quantizer read
:attr:`SamplingPlan.repeats`, and the cost model counts :attr:`SamplingPlan.rounds`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import ceil
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.patches import Patch, Round, offset_sequence, spread, unused_source
from epim_nas.epitome.shape import EpitomeShape, WeightShape
from epim_nas.errors import InputError

IntArray = npt.NDArray[np.int64]


MOST_PATCHES = 2**20
"""Patches of a weight; ResNet-50's largest has as many weights of 1x1 kernels."""

Order = tuple[int, ...]
"""A permutation of channels: position in the plan -> channel of the weight."""


@dataclass(frozen=True)
class SamplingPlan:
    """Patches that tile the weight of a convolution from an epitome (docs/concepts.md).

    The weight is cut into ceil(O/Op) x ceil(I/Ip) slabs; each is one patch of the epitome. Build
    one with :meth:`build`; it is a value: equal arguments give equal plans.

    Attributes:
        conv_shape: (O, I/groups, Kh, Kw) of the weight.
        shape: the epitome's size.
        patch: (Op, Ip), the channels of a patch.
        wrap: output-channel wrapping: every output slab uses the patches of the first.
        groups: groups of the convolution.
        patches: the patches, output slab by output slab.
        out_order: the weight's output channel at every output position of the plan, None where
            they are in order. Index tables absorb it: it decides where results are written.
        in_order: per output slab the input channel at every input position of the plan, None
            where they are in order. It decides which word line an input drives.
        wrap_in: input-channel wrapping: every input slab of an output slab uses the patch of the
            first, so that the slabs of the input are summed and convolved once.
    """

    conv_shape: WeightShape
    shape: EpitomeShape
    patch: tuple[int, int]
    wrap: bool
    groups: int
    patches: tuple[Patch, ...]
    out_order: Order | None = None
    in_order: tuple[Order, ...] | None = None
    wrap_in: bool = False

    @classmethod
    def build(
        cls,
        conv_shape: Sequence[int],
        shape: EpitomeShape,
        wrap: bool = False,
        *,
        patch: tuple[int, int] | None = None,
        groups: int = 1,
        wrap_in: bool = False,
    ) -> SamplingPlan:
        """The plan of a convolution's weight.

        Spatial offsets are used in turn so that neighbouring slabs differ; channel offsets are
        evenly spaced where the patch has fewer channels than the epitome; slabs that would still
        be identical get a rotated input-channel assignment.

        Args:
            conv_shape: (O, I/groups, Kh, Kw) of the convolution's weight.
            shape: size of the epitome.
            wrap: whether output slabs share the patches of the first.
            patch: (Op, Ip); by default the epitome's channels.
            groups: groups of the convolution; they do not change the weight, only the rounds.
            wrap_in: whether the input slabs of an output slab share the patch of the first.

        Raises:
            InputError: the epitome or the patch does not fit the weight.
        """
        if len(conv_shape) != 4:
            raise InputError("conv_shape", f"got {tuple(conv_shape)}", "(O, I/groups, Kh, Kw)")
        out_total, in_total, kernel_h, kernel_w = (int(size) for size in conv_shape)
        weight_shape = (out_total, in_total, kernel_h, kernel_w)
        shape.check_fits(weight_shape)
        patch_out, patch_in = patch or shape.channels
        if not (1 <= patch_out <= shape.out_channels and 1 <= patch_in <= shape.in_channels):
            raise InputError(
                "patch",
                f"got ({patch_out}, {patch_in})",
                f"channels from (1, 1) to ({shape.out_channels}, {shape.in_channels})",
            )
        if groups < 1 or out_total % groups:
            raise InputError("groups", f"got {groups}", f"a divisor of {out_total} channels")

        out_slabs, in_slabs = ceil(out_total / patch_out), ceil(in_total / patch_in)
        if out_slabs * in_slabs > MOST_PATCHES:
            raise InputError(
                "patch",
                f"({patch_out}, {patch_in}) cuts the weight {weight_shape} into "
                f"{out_slabs * in_slabs} patches",
                f"at most {MOST_PATCHES} patches",
                "Use an epitome with more channels.",
            )
        # Slabs that choose a patch of their own, along the outputs and along the inputs.
        out_turns, in_turns = 1 if wrap else out_slabs, 1 if wrap_in else in_slabs
        out_starts = spread(shape.out_channels - patch_out, out_turns)
        in_starts = spread(shape.in_channels - patch_in, in_turns)
        offsets = offset_sequence(shape.height - kernel_h + 1, shape.width - kernel_w + 1)
        patches: list[Patch] = []
        used: set[tuple[int, int, int, int, int]] = set()
        for s in range(out_slabs):
            for t in range(in_slabs):
                if wrap and s > 0:
                    source = patches[t].source
                elif wrap_in and t > 0:
                    source = patches[-1].source
                else:
                    turn = s * in_turns + t
                    source = unused_source(
                        used, out_starts[s], in_starts[t], offsets, turn, patch_in
                    )
                patches.append(
                    Patch(
                        *source,
                        target_out=s * patch_out,
                        target_in=t * patch_in,
                        out_channels=min(patch_out, out_total - s * patch_out),
                        in_channels=min(patch_in, in_total - t * patch_in),
                    )
                )
        return cls(
            weight_shape,
            shape,
            (patch_out, patch_in),
            wrap,
            groups,
            tuple(patches),
            wrap_in=wrap_in,
        )

    @classmethod
    def identity(cls, conv_shape: Sequence[int], groups: int = 1) -> SamplingPlan:
        """The plan of a dense convolution: one patch, the whole weight."""
        out_total, in_total, height, width = (int(size) for size in conv_shape)
        shape = EpitomeShape(out_total, in_total, height, width)
        return cls.build(conv_shape, shape, groups=groups)

    def reordered(
        self, out_order: Sequence[int] | None, in_order: Sequence[Sequence[int]] | None
    ) -> SamplingPlan:
        """The plan with other channels at its positions.

        Args:
            out_order: a permutation of the O output channels that keeps every channel in its
                group, or None for their own order.
            in_order: for every output slab a permutation of the I/groups input channels, or one
                for all of them, or None. With wrapping, of either side, all share one.

        Raises:
            InputError: not a permutation, or one that the hardware cannot follow.
        """
        outputs, inputs = self.conv_shape[:2]
        if out_order is not None:
            out_order = _permutation("out_order", out_order, outputs)
            size = outputs // self.groups
            if any(
                channel // size != position // size for position, channel in enumerate(out_order)
            ):
                raise InputError(
                    "out_order",
                    "a channel leaves its group",
                    f"permutations within the {self.groups} groups of {size} channels",
                )
            if out_order == tuple(range(outputs)):
                out_order = None
        if in_order is not None:
            rows = [_permutation(f"in_order.{s}", row, inputs) for s, row in enumerate(in_order)]
            if len(rows) not in (1, self.out_slabs):
                raise InputError(
                    "in_order", f"got {len(rows)} permutations", f"1 or {self.out_slabs}"
                )
            rows = rows * self.out_slabs if len(rows) == 1 else rows
            if (self.wrap or self.wrap_in) and len(set(rows)) > 1:
                raise InputError(
                    "in_order", "wrapped slabs have different orders", "the same for all"
                )
            in_order = None if set(rows) == {tuple(range(inputs))} else tuple(rows)
        return replace(self, out_order=out_order, in_order=in_order)

    def __hash__(self) -> int:
        # Plans of the same sizes differ at most in the order of their channels; hashing every
        # patch would cost more than what is looked up by it.
        return hash((self.conv_shape, self.shape, self.patch, self.wrap, self.groups, self.wrap_in))

    def __getstate__(self) -> dict[str, object]:
        # What is cached can be computed again; it is larger than the plan by far.
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @property
    def is_identity(self) -> bool:
        """Whether the epitome is the weight itself."""
        return (
            self.shape.as_tuple == self.conv_shape
            and len(self.patches) == 1
            and self.out_order is None
            and self.in_order is None
        )

    @property
    def out_slabs(self) -> int:
        """ceil(O/Op)."""
        return ceil(self.conv_shape[0] / self.patch[0])

    @property
    def in_slabs(self) -> int:
        """ceil(I/Ip)."""
        return ceil(self.conv_shape[1] / self.patch[1])

    @property
    def distinct(self) -> tuple[int, int]:
        """(rows, columns) of the weight, in the plan's order, that have to be convolved with.

        Those of the first output slab where output slabs are wrapped, and of the first input slab
        where input slabs are; all others repeat them.
        """
        outputs, inputs = self.conv_shape[:2]
        replicated = self.wrap and self.patch[0] < outputs // self.groups
        return (
            self.patch[0] if replicated else outputs,
            self.patch[1] if self.summed_slabs > 1 else inputs,
        )

    @property
    def summed_slabs(self) -> int:
        """Input slabs that are summed before they are convolved: 1 without ``wrap_in``."""
        return self.in_slabs if self.wrap_in else 1

    @property
    def rounds_per_output(self) -> int:
        """Rounds whose partial sums make an output."""
        return self.in_slabs // self.summed_slabs

    @property
    def rounds(self) -> int:
        """Activation rounds of one output position."""
        return len(self.round_sequence)

    @cached_property
    def round_sequence(self) -> tuple[Round, ...]:
        """The rounds of one output position, output slab by output slab.

        One round drives the rows of one patch with the inputs of one group. Wrapped output slabs
        that read the same inputs are computed once and replicated. With wrapped input slabs
        the word lines of the first are driven with the sum of all.
        """
        group_channels, period = self.conv_shape[0] // self.groups, self.patch[0]
        last = self.rounds_per_output - 1
        rounds = []
        # (start, count) of the output positions that are computed, and how often they repeat.
        if self.wrap:
            width = min(period, group_channels)
            copies = ceil(group_channels / period) - 1
            spans = [(group * group_channels, width, copies) for group in range(self.groups)]
        else:
            spans = []
            for s in range(self.out_slabs):
                start, end = s * period, min((s + 1) * period, self.conv_shape[0])
                while start < end:  # a slab may reach into several groups
                    stop = min(end, (start // group_channels + 1) * group_channels)
                    spans.append((start, stop - start, 0))
                    start = stop
        for start, count, copies in spans:
            slab = 0 if self.wrap else start // period
            for t in range(self.rounds_per_output):
                rounds.append(
                    Round(
                        patch=self.patches[slab * self.in_slabs + t],
                        group=start // group_channels,
                        first=start % period,
                        out_channels=count,
                        opens=t == 0,
                        closes=t == last,
                        replicas=copies,
                        input_slabs=self.summed_slabs,
                    )
                )
        return tuple(rounds)

    @cached_property
    def weight_index(self) -> IntArray:
        """(O, I/groups, Kh, Kw) flat positions in the epitome of every element of the weight."""
        return self.find_weight_index()

    def find_weight_index(self) -> IntArray:
        """:attr:`weight_index`, not kept with the plan: it takes 8 bytes for every weight."""
        _, epitome_in, height, width = self.shape.as_tuple
        _, _, kernel_h, kernel_w = self.conv_shape
        index = np.empty(self.conv_shape, dtype=np.int64)
        rows = np.arange(kernel_h)[:, None] * width + np.arange(kernel_w)
        for patch in self.patches:
            outs = patch.source_out + np.arange(patch.out_channels)
            shifted = (np.arange(patch.in_channels) + patch.rotation) % self.patch[1]
            ins = patch.source_in + shifted
            channels = outs[:, None] * epitome_in + ins
            base = channels * (height * width) + patch.top * width + patch.left
            out_end = patch.target_out + patch.out_channels
            in_end = patch.target_in + patch.in_channels
            target_out, target_in = slice(patch.target_out, out_end), slice(patch.target_in, in_end)
            values = base[:, :, None, None] + rows
            if self.in_order is None:
                index[target_out, target_in] = values
            else:
                order = self.in_order[patch.target_out // self.patch[0]][target_in]
                index[target_out, list(order)] = values
        if self.out_order is None:
            return index
        ordered = np.empty_like(index)
        ordered[list(self.out_order)] = index
        return ordered

    @cached_property
    def repeats(self) -> IntArray:
        """(Oe, Ie, He, We) how many elements of the weight each epitome element fills."""
        # An array as large as the epitome, which no order changes: the plans of equal layers, each
        # in the order of its own weights, share it.
        key = (self.conv_shape, self.shape, self.patch, self.patches)
        counts = _REPEATS.get(key)
        if counts is None:
            counts = _REPEATS[key] = self._count_repeats()
        return counts

    def _count_repeats(self) -> IntArray:
        # Patch by patch, not from `weight_index`, which takes 8 bytes for every weight.
        counts = np.zeros(self.shape.as_tuple, dtype=np.int64)
        _, _, kernel_h, kernel_w = self.conv_shape
        for patch in self.patches:
            shifted = (np.arange(patch.in_channels) + patch.rotation) % self.patch[1]
            counts[
                patch.source_out : patch.source_out + patch.out_channels,
                patch.source_in + shifted,
                patch.top : patch.top + kernel_h,
                patch.left : patch.left + kernel_w,
            ] += 1
        return counts

    @cached_property
    def output_index(self) -> tuple[IntArray, IntArray]:
        """Which output channels to compute and how to replicate them.

        Returns:
            ``(rows, source)``: ``rows`` are the weight's output channels that have to be computed,
            the same number in every group, and output channel ``o`` is result ``source[o]``.
            Without wrapping both are 0, 1, ..., O - 1, whatever the order of the channels.
        """
        out_total, period = self.conv_shape[0], self.patch[0]
        group_channels = out_total // self.groups
        channels = np.arange(out_total)
        if not self.wrap or period >= group_channels:
            return channels, channels
        # In every group the first `period` channels carry every distinct filter of that group.
        group, within = np.divmod(channels, group_channels)
        rows = channels[within < period]
        # Channel o equals the channel `steps` periods before it, inside its own group.
        source = group * period + within % period
        if self.out_order is None:
            return rows, source
        order = np.array(self.out_order)
        ordered = np.empty_like(source)
        ordered[order] = source
        return order[rows], ordered


_REPEATS: WeakValueDictionary[Hashable, IntArray] = WeakValueDictionary()
"""Geometry of a plan -> its repeats, while a plan holds them."""


def _permutation(field: str, order: Sequence[int], size: int) -> Order:
    found = tuple(int(channel) for channel in order)
    if sorted(found) != list(range(size)):
        raise InputError(field, "is not a permutation", f"every channel of 0..{size - 1} once")
    return found
