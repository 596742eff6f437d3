"""A design with continuous sizes and bits."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from epim_nas.network.spec import Network


@dataclass(frozen=True)
class RelaxedDesign:
    """Sizes and bits of the layers with weights; every tensor is (..., layers), float64.

    An epitome that is not smaller than the layer's weight stands for the dense layer; grouped
    convolutions are always dense.

    Input-channel wrapping, which changes the plan by a whole, has no relaxation; ``totals`` costs
    it exactly.

    Attributes:
        out_channels: Oe.
        in_channels: Ie.
        height: He.
        width: We.
        weight_bits: bits of a weight.
        activation_bits: bits of an input.
        wrap: output-channel wrapping (bool).
    """

    out_channels: Tensor
    in_channels: Tensor
    height: Tensor
    width: Tensor
    weight_bits: Tensor
    activation_bits: Tensor
    wrap: Tensor

    @classmethod
    def dense(
        cls, network: Network, bits: float, device: torch.device | str = "cpu"
    ) -> RelaxedDesign:
        """The dense network, (1, layers), to start from."""
        shape = np.array([layer.weight_shape for layer in network.weighted], dtype=float)
        sizes = torch.as_tensor(shape, device=device).T[:, None]
        out_channels, in_channels, height, width = sizes
        all_bits = torch.full_like(out_channels, bits)
        wrap = torch.zeros_like(out_channels, dtype=torch.bool)
        return cls(out_channels, in_channels, height, width, all_bits, all_bits.clone(), wrap)

    def flat(self) -> RelaxedDesign:
        """With all leading dimensions in one."""
        return RelaxedDesign(
            *(getattr(self, f.name).reshape(-1, self.wrap.shape[-1]) for f in fields(self))
        )
