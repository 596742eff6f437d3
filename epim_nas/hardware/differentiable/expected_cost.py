"""Expected costs under probabilities of every layer's choices, differentiable."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from epim_nas.errors import InputError
from epim_nas.hardware.dependencies import Dependencies
from epim_nas.hardware.differentiable.torch_pipeline import pipelined_latency
from epim_nas.hardware.table import METRICS, CostTable


class ExpectedCost:
    """Expectation of the cost of a design whose layers choose independently.

    Additive metrics are exact: E[sum c] = sum of p c, with the costs of the table. The pipelined
    latency is an estimate at the layout of the table's reference:

    - without samples, the latency at the expected times of the positions. Latency is convex in
      these times, so by Jensen's inequality it is never above the expectation, and it is exact
      where every layer has made its choice;
    - with samples, the mean latency of sampled designs, which is unbiased. Gradients pass straight
      through the sampling to the probabilities.

    Args:
        table: costs of the choices; see :meth:`CostModel.table`.
        needs: what every position waits for.
        layers: positions of the table's layers in the network.
        device: where to compute.

    Example:
        >>> from epim_nas.epitome.design import Choice
        >>> from epim_nas.hardware import CostModel, load_chip
        >>> from epim_nas.network.spec import LayerSpec, Network
        >>> conv = LayerSpec("c", "conv", ("input",), 64, 64, (8, 8), (6, 6), kernel=(3, 3))
        >>> model = CostModel(Network("one", (conv,), (64, 8, 8)), load_chip("epim_256"))
        >>> cost = model.expected({"c": [Choice(weight_bits=b) for b in (3, 9)]})
        >>> float(cost({"c": torch.tensor([0.5, 0.5])})["crossbars"])
        6.0
    """

    def __init__(
        self,
        table: CostTable,
        needs: Dependencies,
        layers: list[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.names = table.names
        self._needs = needs
        self._layers = layers
        self._device = torch.device(device)
        self._counts = [len(table.choices[name]) for name in table.names]
        entries = (len(METRICS) + 4, len(self.names), max(self._counts))
        values = np.zeros(entries)
        for index, name in enumerate(self.names):
            costs = [getattr(table[name], metric) for metric in METRICS]
            values[:, index, : self._counts[index]] = np.concatenate([costs, table[name].steps_ns])
        self._values = torch.as_tensor(values, device=self._device)
        self._constant = {metric: table.constant[metric] for metric in METRICS}
        self._steps = torch.as_tensor(table.reference_steps_ns, device=self._device)

    def __call__(
        self,
        probabilities: Mapping[str, Tensor],
        *,
        latency: bool = True,
        samples: int = 0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Expected totals.

        Args:
            probabilities: layer -> (..., choices) probabilities of its choices, for every layer
                of the table; gradients flow to them.
            latency: whether to estimate the pipelined latency as well.
            samples: designs to sample for the latency, 0 for the latency at the expected times.
            generator: random numbers of the sampling.

        Returns:
            Metric -> (...) float64: the additive ``METRICS``, and ``latency_ns``.

        Raises:
            InputError: a layer is missing, or has another number of choices.
        """
        padded = self._padded(probabilities)
        sums = torch.einsum("...lc,mlc->...m", padded, self._values[: len(METRICS)])
        result = {
            metric: sums[..., index] + self._constant[metric]
            for index, metric in enumerate(METRICS)
        }
        if latency:
            flat = padded.reshape(-1, *padded.shape[-2:])
            chosen = flat if not samples else _sampled(flat, samples, generator)
            result["latency_ns"] = (
                self._latency(chosen).reshape(*padded.shape[:-2], max(samples, 1)).mean(-1)
            )
        return result

    def _latency(self, weights: Tensor) -> Tensor:
        """(designs,) latency at times that (designs, layers, choices) weights average."""
        steps = self._steps[:, None].expand(-1, len(weights), -1).clone()
        steps[:, :, self._layers] = torch.einsum(
            "nlc,mlc->mnl", weights, self._values[len(METRICS) :]
        )
        return pipelined_latency(self._needs, steps)

    def _padded(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """(..., layers, choices) with zeros where a layer has fewer choices."""
        parts = []
        for name, count in zip(self.names, self._counts, strict=True):
            if name not in probabilities:
                raise InputError(f"probabilities.{name}", "is missing", "every layer of the table")
            part = probabilities[name]
            if part.shape[-1:] != (count,):
                raise InputError(
                    f"probabilities.{name}", f"got shape {tuple(part.shape)}", f"(..., {count})"
                )
            missing = self._values.shape[-1] - count
            part = part.to(device=self._device, dtype=torch.float64)
            parts.append(torch.nn.functional.pad(part, (0, missing)))
        return torch.stack(torch.broadcast_tensors(*parts), dim=-2)


def _sampled(probabilities: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """(designs * samples, layers, choices) one-hot choices, straight-through to (designs, ...)."""
    designs, layers, choices = probabilities.shape
    picks = torch.multinomial(
        probabilities.detach().reshape(-1, choices), samples, replacement=True, generator=generator
    )
    one_hot = torch.nn.functional.one_hot(picks, choices).to(probabilities.dtype)
    one_hot = one_hot.reshape(designs, layers, samples, choices).transpose(1, 2)
    through = probabilities[:, None] - probabilities[:, None].detach()
    return (one_hot + through).reshape(designs * samples, layers, choices)
