"""One row per layer of a design: what it is made of, and what it costs where that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.network.spec import Network


class LayerCostLike(Protocol):
    """What is read of one layer's cost."""

    @property
    def name(self) -> str:
        """Name of the layer."""

    @property
    def crossbars(self) -> int:
        """Crossbars that the layer occupies."""

    @property
    def rounds(self) -> int:
        """Activation rounds of one output position."""

    @property
    def sequential_latency_ns(self) -> float:
        """Time of all output positions, one after the other: the layer's hardware is busy."""

    @property
    def energy_nj(self) -> Mapping[str, float]:
        """Component -> energy, with ``total``."""


class NetworkCostLike(Protocol):
    """What is read of a network's cost."""

    @property
    def layers(self) -> Sequence[Any]:
        """Per-layer costs (:class:`LayerCostLike`)."""


@dataclass(frozen=True)
class LayerRow:
    """One weighted layer of a design. Values that need the network or the cost may be None.

    Attributes:
        name: name of the layer.
        type: ``conv`` or ``fc``.
        weight_shape: (O, I/groups, Kh, Kw) of the dense weight.
        epitome_shape: (Oe, Ie, He, We), None for a dense layer.
        rows: word lines of the crossbar matrix.
        columns: columns of the crossbar matrix before bit slicing.
        patch: (Op, Ip) of an epitome.
        wrap: output-channel wrapping.
        wrap_in: input-channel wrapping.
        weight_bits: bits of a weight, None for floating point.
        activation_bits: bits of an input, None for floating point.
        size_fraction: elements of the epitome over elements of the dense weight.
        crossbars: crossbars that the layer occupies.
        rounds: activation rounds of one output position.
        latency_ns: busy latency of the layer.
        energy_nj: energy of the layer.
    """

    name: str
    type: str | None
    weight_shape: tuple[int, int, int, int] | None
    epitome_shape: tuple[int, int, int, int] | None
    rows: int | None
    columns: int | None
    patch: tuple[int, int] | None
    wrap: bool
    wrap_in: bool
    weight_bits: int | None
    activation_bits: int | None
    size_fraction: float | None
    crossbars: int | None
    rounds: int | None
    latency_ns: float | None
    energy_nj: float | None

    @property
    def shape_text(self) -> str:
        """The epitome's size as text, ``dense`` for a dense layer."""
        return "dense" if self.epitome_shape is None else "x".join(map(str, self.epitome_shape))


def layer_rows(
    design: Design, network: Network | None = None, cost: NetworkCostLike | None = None
) -> tuple[LayerRow, ...]:
    """The rows of a design, in the network's order where it is given.

    Args:
        design: the design.
        network: its network; without it weight shapes of dense layers and size fractions are
            unknown.
        cost: the design's cost; without it crossbars, latency and energy are unknown.

    Raises:
        InputError: the design does not fit the network.
    """
    if network is not None:
        design.check_fits(network)
        names: Iterable[str] = [layer.name for layer in network.weighted]
    else:
        names = design
    costs = {layer.name: layer for layer in cost.layers} if cost is not None else {}
    return tuple(_row(name, design[name], network, costs.get(name)) for name in names)


def _row(name: str, choice: Choice, network: Network | None, cost: Any) -> LayerRow:
    spec = network[name] if network is not None else None
    plan = choice.plan(spec) if spec is not None else None
    stored = plan
    if spec is not None and choice.shape is None and spec.groups > 1:
        # Kept dense, a grouped convolution lies on crossbars with the zeros between its groups.
        stored = SamplingPlan.identity((spec.out_channels, spec.in_channels, *spec.kernel))
    shape = choice.shape or (stored.shape if stored is not None else None)
    patch = None
    if choice.shape is not None:
        patch = choice.patch or choice.shape.channels
    fraction = None
    if plan is not None:
        out_channels, in_channels, height, width = plan.conv_shape
        fraction = plan.shape.size / (out_channels * in_channels * height * width)
    return LayerRow(
        name=name,
        type=spec.type if spec is not None else None,
        weight_shape=spec.weight_shape if spec is not None else None,
        epitome_shape=choice.shape.as_tuple if choice.shape is not None else None,
        rows=shape.rows if shape is not None else None,
        columns=shape.out_channels if shape is not None else None,
        patch=patch,
        wrap=choice.wrap,
        wrap_in=choice.wrap_in,
        weight_bits=choice.weight_bits,
        activation_bits=choice.activation_bits,
        size_fraction=fraction,
        crossbars=int(cost.crossbars) if cost is not None else None,
        rounds=_rounds(stored, cost),
        latency_ns=float(cost.sequential_latency_ns) if cost is not None else None,
        energy_nj=float(cost.energy_nj["total"]) if cost is not None else None,
    )


def _rounds(plan: SamplingPlan | None, cost: Any) -> int | None:
    if plan is not None:
        return plan.rounds
    return int(cost.rounds) if cost is not None else None
