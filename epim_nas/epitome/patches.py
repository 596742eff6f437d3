"""The pieces of a sampling plan, and where in the epitome the patches lie (docs/concepts.md)."""

from __future__ import annotations

from dataclasses import dataclass


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
class Round:
    """One activation round: the word lines of one patch driven with the inputs of one group.

    Epitome output channel ``i`` of the round is
    ``patch.source_out + (first + i) % Op``, for ``i`` in 0 .. ``out_channels`` - 1.

    Attributes:
        patch: the patch whose rows are driven.
        group: the group of the convolution whose inputs drive them.
        first: first output channel that is read, counted within the patch.
        out_channels: output channels that are read.
        opens: whether it is the first round of its outputs; the others add to a partial sum.
        closes: whether it is the last round of its outputs.
        replicas: further output slabs that get the same results (output-channel wrapping).
        input_slabs: input slabs whose sum drives the word lines (input-channel wrapping): input
            channel ``j`` of the patch is driven by the sum of the slabs' channels ``j``, as far as
            the last one reaches.
    """

    patch: Patch
    group: int
    first: int
    out_channels: int
    opens: bool
    closes: bool
    replicas: int
    input_slabs: int = 1


def spread(slack: int, count: int) -> list[int]:
    """``count`` starts evenly spaced over 0..slack."""
    if count == 1:
        return [0]
    return [round(index * slack / (count - 1)) for index in range(count)]


def offset_sequence(tops: int, lefts: int) -> list[tuple[int, int]]:
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


def unused_source(
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
