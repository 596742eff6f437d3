"""Whether a layer computes what its weight and bias say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from epim_nas.errors import InputError


def check_forward(
    target: str, module: Any, kind: type[nn.Conv2d] | type[nn.Linear], source: torch.Tensor
) -> None:
    """Refuse a layer whose ``forward`` is not the convolution or product with its ``weight``.

    Crossbars and epitomes hold the weight; what a subclass, or a ``forward`` set on the instance,
    does to it first (standardisation, a gain) would be lost without a word.
    """
    own = type(module)
    overridden = (
        own.forward is not kind.forward
        or (kind is nn.Conv2d and own._conv_forward is not nn.Conv2d._conv_forward)
        or not {"forward", "_conv_forward"}.isdisjoint(vars(module))
    )
    if not isinstance(module, kind) or not overridden or source.is_meta:
        return
    # Not the input of the run: after constant images it can be zero everywhere.
    values = torch.arange(source.numel(), device=source.device, dtype=torch.float32)
    values = (1.7 * values).sin().reshape(source.shape).to(source.dtype)
    with torch.no_grad():
        if isinstance(module, nn.Conv2d):
            plain = nn.Conv2d._conv_forward(module, values, module.weight, module.bias)
            product = nn.Conv2d._conv_forward(module, values, module.weight, None)
        else:
            plain = nn.functional.linear(values, module.weight, module.bias)
            product = nn.functional.linear(values, module.weight)
        found = module(values)
    # A large bias hides what is done to the weight: only its rounding is allowed for. 1e-3 is
    # above the rounding of TF32, which GPUs convolve float32 in.
    unit = torch.finfo(plain.dtype).eps
    allowed = max(1e-3, 4 * unit) * product.float().norm() + 4 * unit * plain.float().norm()
    if found.shape != plain.shape or not (found - plain).float().norm() <= allowed:
        raise InputError(
            f"model: {target}",
            f"{type(module).__name__} computes something else than its `weight` and `bias` say",
            f"a forward that is that of nn.{kind.__name__}, up to rounding",
            f"Replace it by an nn.{kind.__name__} that holds the weights it computes with, and put "
            "what it does before or after (an activation, quantization) in modules of their own.",
        )
