"""Arithmetic of kernels, strides and paddings, each a (height, width)."""

from __future__ import annotations

Pair = tuple[int, int]


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, in both directions."""
    height, width = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return (height, width)


def same_padding(kernel: Pair, dilation: Pair) -> Pair | None:
    """The padding on both sides that keeps the size at stride 1, or None if the sides differ."""
    height, width = (dilation[i] * (kernel[i] - 1) for i in (0, 1))
    return None if height % 2 or width % 2 else (height // 2, width // 2)


def adaptive_pooling(size: Pair, output: Pair) -> tuple[Pair, Pair]:
    """(kernel, stride) of the regular pooling from ``size`` to a smaller or equal ``output``.

    Where ``output`` divides ``size`` it is the adaptive pooling itself; elsewhere its windows
    differ from the adaptive ones by at most one element.
    """
    stride_h, stride_w = (size[i] // output[i] for i in (0, 1))
    kernel = (size[0] - (output[0] - 1) * stride_h, size[1] - (output[1] - 1) * stride_w)
    return kernel, (stride_h, stride_w)
