"""The sampling plan: which patch of the epitome fills which part of the convolution's weight.

The plan is the single source of truth about an epitome layer. The operator gathers its weight by
:attr:`SamplingPlan.weight_index`, the projection and the quantizer read
:attr:`SamplingPlan.repeats`, and the cost model counts :attr:`SamplingPlan.rounds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.shape import EpitomeShape, WeightShape
from epim_nas.errors import InputError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Patch:
    """A sub-tensor of the epitome, of the kernel's height and width, placed in the weight.

    Input channel ``j`` of the patch is epitome channel
    ``source_in + (j + rotation) % patch_in``: the word lines of a round can be driven in any
    order, so a rotation costs nothing.

    Attributes:
        source_out: first output channel in the epitome.
        source_in: first input channel in the epitome.
        top: first row of the epitome's height.
        left: first column of the epitome's width.
        rotation: shift of the input-channel assignment.
        target_out: first output channel in the weight.
        target_in: first input channel in the weight.
        out_channels: output channels that this patch fills (fewer in a last, partial slab).
        in_channels: input channels that this patch fills.
    """

    source_out: int
    source_in: int
    top: int
    left: int
    rotation: int
    target_out: int
    target_in: int
    out_channels: int
    in_channels: int

    @property
    def source(self) -> tuple[int, int, int, int, int]:
        """What the patch reads: equal for patches that copy the same elements."""
        return (self.source_out, self.source_in, self.top, self.left, self.rotation)


@dataclass(frozen=True)
class SamplingPlan:
    """Patches that tile the weight of a convolution from an epitome (DESIGN.md section 4).

    The weight is cut into ceil(O/Op) x ceil(I/Ip) slabs; each is one patch of the epitome. Build
    one with :meth:`build`; it is a value: equal arguments give equal plans.

    Attributes:
        conv_shape: (O, I/groups, Kh, Kw) of the weight.
        shape: the epitome's size.
        patch: (Op, Ip), the channels of a patch.
        wrap: output-channel wrapping: every output slab uses the patches of the first.
        groups: groups of the convolution.
        patches: the patches, output slab by output slab.
    """

    conv_shape: WeightShape
    shape: EpitomeShape
    patch: tuple[int, int]
    wrap: bool
    groups: int
    patches: tuple[Patch, ...]

    @classmethod
    def build(
        cls,
        conv_shape: Sequence[int],
        shape: EpitomeShape,
        wrap: bool = False,
        *,
        patch: tuple[int, int] | None = None,
        groups: int = 1,
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

        Raises:
            InputError: the epitome or the patch does not fit the weight.
        """
        if len(conv_shape) != 4:
            raise InputError("conv_shape", f"got {tuple(conv_shape)}", "(O, I/groups, Kh, Kw)")
        out_total, in_total, kernel_h, kernel_w = (int(size) for size in conv_shape)
        weight_shape = (out_total, in_total, kernel_h, kernel_w)
        shape.check_fits(weight_shape)
        patch_out, patch_in = patch or (shape.out_channels, shape.in_channels)
        if not (1 <= patch_out <= shape.out_channels and 1 <= patch_in <= shape.in_channels):
            raise InputError(
                "patch",
                f"got ({patch_out}, {patch_in})",
                f"channels from (1, 1) to ({shape.out_channels}, {shape.in_channels})",
            )
        if groups < 1 or out_total % groups:
            raise InputError("groups", f"got {groups}", f"a divisor of {out_total} channels")

        out_slabs, in_slabs = ceil(out_total / patch_out), ceil(in_total / patch_in)
        out_starts = _spread(shape.out_channels - patch_out, 1 if wrap else out_slabs)
        in_starts = _spread(shape.in_channels - patch_in, in_slabs)
        offsets = _offsets(shape.height - kernel_h + 1, shape.width - kernel_w + 1)
        patches: list[Patch] = []
        used: set[tuple[int, int, int, int, int]] = set()
        for s in range(out_slabs):
            for t in range(in_slabs):
                if wrap and s > 0:
                    source = patches[t].source
                else:
                    source = _unused_source(
                        used, out_starts[s], in_starts[t], offsets, s * in_slabs + t, patch_in
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
        return cls(weight_shape, shape, (patch_out, patch_in), wrap, groups, tuple(patches))

    @classmethod
    def identity(cls, conv_shape: Sequence[int], groups: int = 1) -> SamplingPlan:
        """The plan of a dense convolution: one patch, the whole weight."""
        out_total, in_total, height, width = (int(size) for size in conv_shape)
        shape = EpitomeShape(out_total, in_total, height, width)
        return cls.build(conv_shape, shape, groups=groups)

    def __getstate__(self) -> dict[str, object]:
        # What is cached can be computed again; it is larger than the plan by far.
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @property
    def is_identity(self) -> bool:
        """Whether the epitome is the weight itself."""
        return self.shape.as_tuple == self.conv_shape and len(self.patches) == 1

    @property
    def out_slabs(self) -> int:
        """ceil(O/Op)."""
        return ceil(self.conv_shape[0] / self.patch[0])

    @property
    def in_slabs(self) -> int:
        """ceil(I/Ip)."""
        return ceil(self.conv_shape[1] / self.patch[1])

    @cached_property
    def rounds(self) -> int:
        """Activation rounds of one output position.

        One round drives the rows of one patch with the inputs of one group. Wrapped output slabs
        that read the same inputs are computed once and replicated.
        """
        group_channels = self.conv_shape[0] // self.groups
        activations = set()
        for patch in self.patches:
            first = patch.target_out // group_channels
            last = (patch.target_out + patch.out_channels - 1) // group_channels
            for group in range(first, last + 1):
                key = patch.target_out if not self.wrap else 0
                activations.add((group, key, patch.target_in))
        return len(activations)

    @cached_property
    def weight_index(self) -> IntArray:
        """(O, I/groups, Kh, Kw) flat positions in the epitome of every element of the weight."""
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
            target = index[patch.target_out : out_end, patch.target_in : in_end]
            target[...] = base[:, :, None, None] + rows
        return index

    @cached_property
    def repeats(self) -> IntArray:
        """(Oe, Ie, He, We) how many elements of the weight each epitome element fills."""
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
            Without wrapping both are 0, 1, ..., O - 1.
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
        return rows, source


def _spread(slack: int, count: int) -> list[int]:
    """``count`` starts evenly spaced over 0..slack."""
    if count == 1:
        return [0]
    return [round(index * slack / (count - 1)) for index in range(count)]


def _offsets(tops: int, lefts: int) -> list[tuple[int, int]]:
    """Every spatial offset, each as far as possible from those before it.

    So a plan with fewer slabs than offsets still reaches into every corner of the epitome, and
    no crossbar row is left without a weight to hold.
    """
    left_over = [(top, left) for top in range(tops) for left in range(lefts)]
    order = [left_over.pop(0)]
    while left_over:
        farthest = max(
            left_over,
            key=lambda spot: min((spot[0] - a) ** 2 + (spot[1] - b) ** 2 for a, b in order),
        )
        left_over.remove(farthest)
        order.append(farthest)
    return order


def _unused_source(
    used: set[tuple[int, int, int, int, int]],
    source_out: int,
    source_in: int,
    offsets: list[tuple[int, int]],
    turn: int,
    patch_in: int,
) -> tuple[int, int, int, int, int]:
    """The source of the next slab: the offset whose turn it is, rotated until it is new."""
    source = (source_out, source_in, *offsets[turn % len(offsets)], 0)
    for attempt in range(len(offsets) * patch_in):
        rotation, shift = divmod(attempt, len(offsets))
        offset = offsets[(turn + shift) % len(offsets)]
        source = (source_out, source_in, *offset, rotation)
        if source not in used:
            break
    used.add(source)
    return source
