"""Initialisation of the reference models."""

from __future__ import annotations

from torch import nn


def he_init(model: nn.Module, linear_std: float | None = None) -> None:
    """He initialisation (He et al., ICCV 2015) of every convolution and linear layer.

    Convolutions keep the variance of their outputs' gradients (fan out); batch norms start as the
    identity, biases at zero.

    Args:
        model: the model, changed in place.
        linear_std: standard deviation of the linear layers' weights; None for He's (fan in).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            if linear_std is None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            else:
                nn.init.normal_(module.weight, 0.0, linear_std)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
