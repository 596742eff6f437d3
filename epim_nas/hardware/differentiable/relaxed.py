"""The cost model over continuous epitome sizes and bits, with straight-through gradients.

The value is always the exact cost of the design at the nearest whole numbers. The gradient is that
of a smooth surrogate: the same equations with :class:`SmoothOps` for rounding and table look-ups,
and with the closed form of the default sampling plan for what is counted in plans otherwise.
``docs/cost_model.md``, section 11.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from epim_nas.epitome.design import Choice
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware.batch import BatchCostModel
from epim_nas.hardware.bits import MAX_BITS
from epim_nas.hardware.buffers import BufferSizes, memories_of, needed_sizes, table_kb
from epim_nas.hardware.differentiable.relaxed_design import RelaxedDesign
from epim_nas.hardware.differentiable.relaxed_mapping import WeightShapes, relaxed_mapping
from epim_nas.hardware.differentiable.torch_ops import SmoothOps, TorchOps
from epim_nas.hardware.differentiable.torch_pipeline import pipelined_latency
from epim_nas.hardware.equations import Layout
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.ops import Ops
from epim_nas.hardware.power import consume_pooling, consume_weighted, layer_area_um2, sums_inputs
from epim_nas.hardware.timing import DataBits, Hops, time_pooling, time_sums, time_weighted

if TYPE_CHECKING:
    from epim_nas.hardware.model import CostModel

RELAXED_METRICS = (
    "crossbars",
    "tiles",
    "rounds",
    "sequential_latency_ns",
    "latency_ns",
    "energy_nj",
    "area_um2",
)
"""What the relaxed model returns."""


class RelaxedCostModel:
    """Differentiable costs; get one from :meth:`CostModel.relaxed`.

    Args:
        model: the exact cost model.
        device: where to compute.

    Example:
        >>> from epim_nas.hardware import CostModel, load_chip
        >>> from epim_nas.network.spec import LayerSpec, Network
        >>> conv = LayerSpec("c", "conv", ("input",), 64, 64, (8, 8), (6, 6), kernel=(3, 3))
        >>> model = CostModel(Network("one", (conv,), (64, 8, 8)), load_chip("epim_256"))
        >>> bits = torch.tensor([[9.0]], dtype=torch.float64, requires_grad=True)
        >>> dense = RelaxedDesign.dense(model.network, 9)
        >>> cost = model.relaxed()(replace(dense, weight_bits=bits))
        >>> cost["crossbars"].sum().backward()
        >>> float(cost["crossbars"]), float(bits.grad) > 0
        (9.0, True)
    """

    def __init__(self, model: CostModel, device: torch.device | str = "cpu") -> None:
        self._model = model
        self._device = torch.device(device)
        self._chip = model.chip
        self._evaluation = model.evaluation
        self._geometry = model.evaluation.geometry.mapped(self._tensor)
        self._shapes = WeightShapes.of(model.network, self._device)

    def __call__(self, design: RelaxedDesign) -> dict[str, Tensor]:
        """Exact costs of the nearest whole design, with the gradient of the surrogate.

        Args:
            design: (..., layers) tensors.

        Returns:
            Each of the :data:`RELAXED_METRICS` -> (...) float64.

        Raises:
            InputError: not a number, or a design that does not fit the chip.
        """
        flat = design.flat()
        exact, layout = self._exact(flat)
        smooth = self._smooth(flat, layout)
        shape = design.wrap.shape[:-1]
        return {
            name: (exact[name] + (smooth[name] - smooth[name].detach())).reshape(shape)
            for name in RELAXED_METRICS
        }

    def surrogate(self, design: RelaxedDesign) -> dict[str, Tensor]:
        """The smooth costs themselves, whose gradient :meth:`__call__` returns."""
        flat = design.flat()
        smooth = self._smooth(flat, self._exact(flat)[1])
        return {name: value.reshape(design.wrap.shape[:-1]) for name, value in smooth.items()}

    def totals(self, batch: BatchCostModel, rows: Tensor) -> dict[str, Tensor]:
        """Exact costs of rows of choice indices, computed in torch on the device.

        Placement is computed on the CPU: it moves whole tiles.

        Args:
            batch: the choices, see :meth:`CostModel.batch`.
            rows: (designs, layers) indices of choices.

        Returns:
            Each of the :data:`RELAXED_METRICS` -> (designs,) float64.

        Raises:
            InputError: wrong rows, or a design that does not fit the chip's mesh.
        """
        mapping, input_bits = batch.gather(rows.cpu().numpy())
        layout = self._evaluation.layout(mapping, input_bits)
        tensors = MappingArrays(*(self._tensor(values) for values in mapping))
        return self._totals(TorchOps(), tensors, self._tensor(input_bits), layout)

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(values, device=self._device)

    def _exact(self, design: RelaxedDesign) -> tuple[dict[str, Tensor], Layout]:
        """Costs of the nearest whole designs, and their layout."""
        columns = {
            f.name: getattr(design, f.name).detach().cpu().numpy() for f in fields(RelaxedDesign)
        }
        for name, values in columns.items():
            if not np.isfinite(values).all():
                raise InputError(f"design.{name}", "has NaN or Inf in it", "finite numbers")
        choices, rows = self._nearest(columns)
        model = self._model.batch(choices)
        batch = model.evaluate(rows)
        layout = Layout(batch.hops, batch.output_bits, batch.sizes)
        return {name: self._tensor(batch.totals[name]) for name in RELAXED_METRICS}, layout

    def _nearest(
        self, columns: dict[str, np.ndarray]
    ) -> tuple[dict[str, list[Choice]], np.ndarray]:
        layers = self._model.network.weighted
        rows = np.empty(columns["wrap"].shape, dtype=np.int64)
        choices: dict[str, list[Choice]] = {}
        for number, layer in enumerate(layers):
            found: dict[Choice, int] = {}
            limits = layer.weight_shape
            for row in range(len(rows)):
                sizes = [
                    int(np.clip(np.rint(columns[name][row, number]), low, high))
                    for name, low, high in (
                        ("out_channels", 1, limits[0]),
                        ("in_channels", 1, limits[1]),
                        ("height", limits[2], None),
                        ("width", limits[3], None),
                    )
                ]
                weight_bits, activation_bits = (
                    int(np.clip(np.rint(columns[name][row, number]), 1, MAX_BITS))
                    for name in ("weight_bits", "activation_bits")
                )
                shape = EpitomeShape(*sizes)
                dense = layer.groups > 1 or shape.size >= np.prod(limits)
                choice = Choice(
                    None if dense else shape,
                    bool(columns["wrap"][row, number]) and not dense,
                    weight_bits,
                    activation_bits,
                )
                rows[row, number] = found.setdefault(choice, len(found))
            choices[layer.name] = list(found)
        return choices, rows

    def _smooth(self, design: RelaxedDesign, layout: Layout) -> dict[str, Tensor]:
        ops = SmoothOps()
        mapping = relaxed_mapping(ops, self._chip, self._shapes, design)
        bits = design.activation_bits.clamp(1, MAX_BITS)
        return self._totals(ops, mapping, bits, layout)

    def _totals(
        self, ops: Ops, mapping: MappingArrays, input_bits: Tensor, layout: Layout
    ) -> dict[str, Tensor]:
        """The stages of the cost model in torch; hops are those of the layout."""
        chip, geometry = self._chip, self._geometry
        weighted, pooling, sums = geometry.weighted, geometry.pooling, geometry.sums
        inside, outside = (self._tensor(values) for values in layout.hops)
        output_bits = self._output_bits(input_bits)

        def hops(index: Tensor) -> Hops:
            return Hops(inside[:, index], outside[:, index])

        bits = DataBits(input_bits, output_bits[:, weighted.index])
        sizes = needed_sizes(ops, weighted, mapping, bits)
        memories = memories_of(ops, chip, BufferSizes(*(kb.amax(-1, keepdim=True) for kb in sizes)))
        kinds = (
            (
                weighted.index,
                time_weighted(ops, chip, weighted, mapping, hops(weighted.index), bits),
            ),
            (
                pooling.index,
                time_pooling(
                    ops, chip, pooling, hops(pooling.index), output_bits[:, pooling.index]
                ),
            ),
            (sums.index, time_sums(ops, chip, sums, hops(sums.index), output_bits[:, sums.index])),
        )
        steps = torch.zeros((4, *output_bits.shape), dtype=torch.float64, device=self._device)
        for index, timing in kinds:
            steps[:, :, index] = timing.steps
        energy = (
            consume_weighted(ops, chip, weighted, mapping, kinds[0][1], memories),
            consume_pooling(chip, kinds[1][1], memories),
        )
        tables = table_kb(ops, mapping)
        none = torch.zeros_like(output_bits[:, pooling.index])
        area = (
            layer_area_um2(ops, chip, mapping.tiles, tables, sums_inputs(mapping), memories),
            layer_area_um2(ops, chip, none + 1, none, none, memories),
        )
        return {
            "crossbars": mapping.crossbars.sum(-1),
            "tiles": mapping.tiles.sum(-1) + len(pooling.index),
            "rounds": mapping.rounds.sum(-1),
            "sequential_latency_ns": sum(timing.sequential.sum(-1) for _, timing in kinds),
            "latency_ns": pipelined_latency(self._evaluation.dependencies, steps),
            "energy_nj": sum(part.energy_nj["total"].sum(-1) for part in energy),
            "area_um2": sum(part["total"].sum(-1) for part in area),
        }

    def _output_bits(self, input_bits: Tensor) -> Tensor:
        """See :meth:`DataFlow.output_bits`."""
        columns = [
            input_bits[:, list(deciders)].amax(-1)
            if deciders
            else torch.full_like(input_bits[:, 0], 32.0)
            for deciders in self._evaluation.flow.deciders
        ]
        return torch.stack(columns, dim=-1)
