"""What a network shows of its layers: the covariance of their inputs, the scale of their outputs.

They say which errors of a weight matter: those that inputs excite, in channels that batch norm
does not shrink.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from epim_nas.errors import InputError
from epim_nas.network.batch_norm import following_batch_norms


@torch.no_grad()
def input_covariances(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[str],
    *,
    positions: int = 2048,
) -> dict[str, Tensor]:
    """The covariance of what each convolution or linear layer multiplies with its weight.

    An error D of a filter (I/groups * Kh * Kw values) changes the layer's output by a variance of
    D^T Sigma D, and by a mean that batch norm removes. A layer takes (I/groups * Kh * Kw)^2 values
    a group.

    Args:
        model: in evaluation mode, on the device of the batches.
        batches: (images, labels); the labels are not used.
        layers: dotted paths of convolutions and linear layers.
        positions: output positions of a batch to look at, evenly spread.

    Returns:
        Layer -> (groups, I/groups * Kh * Kw, I/groups * Kh * Kw).

    Raises:
        InputError: a layer is of another kind, or there are no batches.
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def observe(name: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        rows = input_rows(module, x, positions).transpose(0, 1).float()
        count, total, product = sums.get(name, (0, rows.new_zeros(()), rows.new_zeros(())))
        sums[name] = (
            count + rows.shape[1],
            total + rows.sum(1),
            product + rows.transpose(1, 2) @ rows,
        )

    hooks = []
    for name in layers:
        module = model.get_submodule(name)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            raise InputError(f"layers: {name}", f"is a {type(module).__name__}", "conv or linear")
        hook = lambda m, inputs, name=name: observe(name, m, inputs[0])  # noqa: E731
        hooks.append(module.register_forward_pre_hook(hook))
    try:
        for images, _ in batches:
            model(images)
    finally:
        for registered in hooks:
            registered.remove()
    if len(sums) < len(layers):
        raise InputError("batches", "there are no images", "at least one batch")
    return {
        name: product / count - torch.einsum("gi,gj->gij", total / count, total / count)
        for name, (count, total, product) in sums.items()
    }


def input_rows(module: nn.Conv2d | nn.Linear, x: Tensor, positions: int | None = None) -> Tensor:
    """What output positions multiply with the weight.

    Args:
        module: a convolution or linear layer.
        x: its input: (N, C, H, W), or (..., features).
        positions: look at about so many output positions, evenly spread over all images; by
            default at all.

    Returns:
        (positions, groups, I/groups * Kh * Kw).
    """
    if isinstance(module, nn.Linear):
        rows = x.reshape(-1, 1, x.shape[-1])
        return rows[:: _step(len(rows), positions)]
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, padding, mode=mode)
    (kernel_h, kernel_w), dilation, stride = module.kernel_size, module.dilation, module.stride
    height = (x.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    width = (x.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    count = len(x) * height * width
    step = _step(count, positions)
    if step == 1:
        columns = functional.unfold(x, module.kernel_size, dilation, 0, stride)
        return columns.transpose(1, 2).reshape(count, module.groups, -1)
    # Only what is looked at is copied: all windows of a batch take Kh * Kw times its memory.
    index = torch.arange(0, count, step, device=x.device)
    image, place = index // (height * width), index % (height * width)
    down = torch.arange(kernel_h, device=x.device) * dilation[0]
    across = torch.arange(kernel_w, device=x.device) * dilation[1]
    ys = (place // width * stride[0])[:, None, None] + down[:, None]
    xs = (place % width * stride[1])[:, None, None] + across
    windows = x[image[:, None, None], :, ys, xs]  # (positions, Kh, Kw, C)
    return windows.permute(0, 3, 1, 2).reshape(len(index), module.groups, -1)


def _step(count: int, positions: int | None) -> int:
    return 1 if positions is None else max(1, count // positions)


def batch_norm_importance(model: nn.Module) -> dict[str, Tensor]:
    """(gamma / sigma)^2 of every output channel that goes into a batch norm, (O, 1, 1, 1).

    So weighted, the squared error of a weight is that of what leaves the batch norm.

    Raises:
        InputError: the model cannot be traced.
    """
    found = {}
    for name, norm_name in following_batch_norms(model).items():
        norm = model.get_submodule(norm_name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
        found[name] = (gain.square() / (norm.running_var + norm.eps))[:, None, None, None]
    return found
