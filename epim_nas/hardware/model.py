"""The cost model: what a design of a network costs on a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from epim_nas.epitome.design import Choice, Design
from epim_nas.errors import InputError
from epim_nas.hardware.accumulator import accumulator_size, shared_parts
from epim_nas.hardware.batch import BatchCost, BatchCostModel
from epim_nas.hardware.bits import check_bits
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.equations import Evaluation
from epim_nas.hardware.layer_pipeline import Timeline
from epim_nas.hardware.mapping import LayerMapping, map_layer
from epim_nas.hardware.results import CostTotals, LayerCost, NetworkCost
from epim_nas.hardware.table import CostTable, Options, build_table, check_choices
from epim_nas.hardware.timing import Hops
from epim_nas.network.spec import LayerSpec, Network

if TYPE_CHECKING:
    from epim_nas.hardware.differentiable.expected_cost import ExpectedCost
    from epim_nas.hardware.differentiable.relaxed import RelaxedCostModel

_NO_CHOICE = Choice()

DENSE_BITS = 9
"""Bits of weights and activations where no design is given: MNSIM 2.0's setting."""


class CostModel:
    """Cost of designs of one network on one chip.

    For dense networks with ``sliced`` packing every number equals MNSIM 2.0's (commit ca39ccb).
    The equations, and what epitomes add, are in ``docs/cost_model.md``.

    Args:
        network: the network.
        chip: the chip.

    Example:
        >>> from epim_nas.hardware import CostModel, load_chip
        >>> from epim_nas.network.spec import LayerSpec, Network
        >>> conv = LayerSpec("c", "conv", ("input",), 64, 64, (8, 8), (6, 6), kernel=(3, 3))
        >>> model = CostModel(Network("one", (conv,), (64, 8, 8)), load_chip("epim_256"))
        >>> model.evaluate(weight_bits=32, activation_bits=9).totals.crossbars
        24

    Raises:
        InputError: the network has no layers.
    """

    def __init__(self, network: Network, chip: Chip) -> None:
        if not network.layers:
            raise InputError(f"network {network.name}", "it has no layers")
        self.network = network
        self.chip = chip
        self.evaluation = Evaluation(network, chip)
        self._mappings: dict[tuple[str, Choice], LayerMapping] = {}

    def evaluate(
        self,
        design: Design | None = None,
        *,
        weight_bits: int | None = DENSE_BITS,
        activation_bits: int | None = DENSE_BITS,
    ) -> NetworkCost:
        """Cost of a design.

        Args:
            design: one choice per weighted layer; None keeps every layer dense.
            weight_bits: bits of the dense layers' weights where there is no design; None counts
                as 32-bit floating point, in a design as well.
            activation_bits: likewise of their inputs.

        Raises:
            InputError: the design does not fit the network, or the network not the chip.
        """
        choices = self._choices(design, weight_bits, activation_bits)
        single = {name: [choice] for name, choice in choices.items()}
        return self._network_cost(self.batch(single).evaluate([[0] * len(single)]), choices)

    def batch(self, choices: Mapping[str, Sequence[Choice]]) -> BatchCostModel:
        """The whole model for many designs at once, each a row of choice indices.

        Args:
            choices: name of every layer with weights -> its choices.

        Raises:
            InputError: a layer that is unknown or missing, no choices, or one that does not fit.
        """
        check_choices(self.network, choices)
        ordered = {}
        for layer in self.network.weighted:
            if layer.name not in choices:
                raise InputError(f"choices.{layer.name}", "is missing", "every layer with weights")
            ordered[layer.name] = tuple(choices[layer.name])
        mappings = [
            [self.mapping(layer, choice) for choice in ordered[layer.name]]
            for layer in self.network.weighted
        ]
        return BatchCostModel(self.evaluation, ordered, mappings)

    def evaluate_many(self, designs: Sequence[Design]) -> dict[str, np.ndarray]:
        """Totals of many designs.

        Args:
            designs: the designs.

        Returns:
            Field of :class:`CostTotals` -> (designs,) array.

        Raises:
            InputError: a design does not fit the network, or the network not the chip.
        """
        choices: dict[str, dict[Choice, int]] = {layer.name: {} for layer in self.network.weighted}
        rows = []
        for design in designs:
            picked = self._choices(design, None, None)
            rows.append(
                [choices[name].setdefault(c, len(choices[name])) for name, c in picked.items()]
            )
        if not rows:
            raise InputError("designs", "got none", "at least one design")
        return self.batch({name: list(found) for name, found in choices.items()}).totals(rows)

    def table(
        self,
        choices: Mapping[str, Sequence[Choice]],
        reference: Design | None = None,
    ) -> CostTable:
        """Additive costs of every choice of every layer.

        What one layer does not know (hops, buffer sizes, the bits its consumers read) is taken
        from a reference design; for that design the table's totals are exact.

        Args:
            choices: layer name -> its choices. Weighted layers without choices, and all layers
                without weights, keep what they are in the reference.
            reference: the reference design; None is the dense network at 9-bit weights and
                activations.

        Raises:
            InputError: an unknown layer, no choices, or a choice that does not fit.
        """
        check_choices(self.network, choices)
        fixed = self._choices(reference, DENSE_BITS, DENSE_BITS)
        options = []
        for layer in self.network.weighted:
            all_choices = (*choices.get(layer.name, ()), fixed[layer.name])
            options.append(
                Options(all_choices, tuple(self.mapping(layer, choice) for choice in all_choices))
            )
        return build_table(self.evaluation, self.network, options, tuple(choices))

    def expected(
        self,
        choices: Mapping[str, Sequence[Choice]],
        reference: Design | None = None,
        device: str = "cpu",
    ) -> ExpectedCost:
        """Expected costs under probabilities of the choices, differentiable in torch.

        Args:
            choices: as for :meth:`table`.
            reference: as for :meth:`table`.
            device: torch device to compute on.
        """
        from epim_nas.hardware.differentiable.expected_cost import ExpectedCost

        table = self.table(choices, reference)
        layers = [self.network.index[name] for name in table.names]
        return ExpectedCost(table, self.evaluation.dependencies, layers, device)

    def relaxed(self, device: str = "cpu") -> RelaxedCostModel:
        """Costs over continuous epitome sizes and bits, differentiable in torch.

        Args:
            device: torch device to compute on.
        """
        from epim_nas.hardware.differentiable.relaxed import RelaxedCostModel

        return RelaxedCostModel(self, device)

    def mapping(self, layer: LayerSpec, choice: Choice) -> LayerMapping:
        """The mapping of a layer made of ``choice``; remembered.

        Raises:
            InputError: it does not fit, or bits are out of range.
        """
        key = (layer.name, choice)
        found = self._mappings.get(key)
        if found is None:
            check_bits(f"layer {layer.name}: weight_bits", choice.weight_bits)
            check_bits(f"layer {layer.name}: activation_bits", choice.activation_bits)
            found = self._mappings[key] = map_layer(layer, choice, self.chip)
        return found

    def _choices(
        self, design: Design | None, weight_bits: int | None, activation_bits: int | None
    ) -> dict[str, Choice]:
        if design is None:
            check_bits("--weight-bits", weight_bits)
            check_bits("--activation-bits", activation_bits)
            dense = Choice(weight_bits=weight_bits, activation_bits=activation_bits)
            return {layer.name: dense for layer in self.network.weighted}
        names = {layer.name for layer in self.network.weighted}
        if names != set(design):
            design.check_fits(self.network)
        return {layer.name: design[layer.name] for layer in self.network.weighted}

    def _network_cost(self, batch: BatchCost, choices: Mapping[str, Choice]) -> NetworkCost:
        """The costs of a batch of one design."""
        totals = {
            name: int(values[0]) if name in ("crossbars", "tiles", "rounds") else float(values[0])
            for name, values in batch.totals.items()
        }
        shared = shared_parts(
            accumulator_size(self.network, batch.output_bits[0].tolist()),
            float(batch.sizes.pe_input_kb[0, 0]),
            float(batch.sizes.tile_output_kb[0, 0]),
            self.chip,
        )
        return NetworkCost(
            self.network.name,
            self.chip.name,
            CostTotals(**totals),  # type: ignore[arg-type]
            shared,
            partial(self._layer_costs, batch, choices),
        )

    def _layer_costs(
        self, batch: BatchCost, choices: Mapping[str, Choice]
    ) -> tuple[LayerCost, ...]:
        values = {
            name: getattr(batch, name)[0].tolist()
            for name in ("crossbars", "tiles", "rounds", "utilization", "sequential_latency_ns")
        }
        parts = {
            name: _columns(getattr(batch, name))
            for name in ("latency_ns", "energy_nj", "power_w", "area_um2", "counts")
        }
        hops = [Hops(*pair) for pair in zip(*(h[0].tolist() for h in batch.hops), strict=True)]
        spans = zip(*(times[0].tolist() for times in batch.timeline), strict=True)
        timeline = [Timeline(*span) for span in spans]
        return tuple(
            LayerCost(
                name=layer.name,
                type=layer.type,
                crossbars=int(values["crossbars"][index]),
                tiles=int(values["tiles"][index]),
                rounds=int(values["rounds"][index]),
                latency_ns=parts["latency_ns"][index],
                energy_nj=parts["energy_nj"][index],
                power_w=parts["power_w"][index],
                area_um2=parts["area_um2"][index],
                counts=parts["counts"][index],
                utilization=values["utilization"][index],
                sequential_latency_ns=values["sequential_latency_ns"][index],
                mapping=self.mapping(layer, choices.get(layer.name, _NO_CHOICE)),
                hops=hops[index],
                timeline=timeline[index],
            )
            for index, layer in enumerate(self.network.layers)
        )


def _columns(components: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    """Per layer, component -> value of the first design."""
    names = tuple(components)
    values = np.stack([component[0] for component in components.values()], axis=1).tolist()
    return [dict(zip(names, row, strict=True)) for row in values]
