"""Choices per layer, grouped by ties; a design is a row of choice indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.files import digest
from epim_nas.network.spec import Network
from epim_nas.space.config import SpaceConfig
from epim_nas.space.dominance import undominated
from epim_nas.space.options import options_of_layers
from epim_nas.space.ties import common_options, tied_layers

if TYPE_CHECKING:
    from epim_nas.hardware.chip import Chip

Row = tuple[int, ...]
"""A design as the choice index of every group."""


@dataclass(frozen=True)
class Group:
    """Layers that share one decision.

    Attributes:
        name: name of the parameter: the layer's name, or of its first layer when tied.
        layers: names of the layers.
        choices: per option one :class:`Choice` for every layer, in the order of ``layers``.
    """

    name: str
    layers: tuple[str, ...]
    choices: tuple[tuple[Choice, ...], ...]

    def __len__(self) -> int:
        return len(self.choices)


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every group of layers.

    Attributes:
        name: name of the space.
        network: name of the network it was built for.
        groups: groups in the order of the network's layers.
        dropped: choices dropped because another one dominates them.
    """

    name: str
    network: str
    groups: tuple[Group, ...]
    dropped: int = 0

    @classmethod
    def build(cls, config: SpaceConfig, network: Network, chip: Chip | None = None) -> SearchSpace:
        """The choices that ``config`` gives the layers of ``network``.

        Args:
            config: the search space's file.
            network: the network.
            chip: the chip, needed for sizes in crossbars.

        Raises:
            InputError: a pattern that matches no layer, a layer in two ties, a layer without any
                choice left, tied layers without a common one, or a size in crossbars and no chip.
        """
        options = options_of_layers(config, network, chip)
        groups = []
        for tie in tied_layers(config, network):
            members = tie.layers
            shared = common_options(tie, options, f"search space {config.name}")
            rows = dict.fromkeys(
                tuple(options[member.name][option] for member in members) for option in shared
            )
            names = tuple(member.name for member in members)
            groups.append(Group(names[0], names, tuple(rows)))
        return cls(config.name, network.name, tuple(groups))

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def layer_choices(self) -> dict[str, tuple[Choice, ...]]:
        """Layer -> its choices, in the order of its group's options."""
        return {
            layer: tuple(row[position] for row in group.choices)
            for group in self.groups
            for position, layer in enumerate(group.layers)
        }

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of designs."""
        return sum(math.log10(len(group)) for group in self.groups)

    def design(self, row: Sequence[int], **attributes: Any) -> Design:
        """The design of a row of choice indices (further arguments: fields of Design)."""
        choices: dict[str, Choice] = {}
        for group, index in zip(self.groups, row, strict=True):
            choices.update(zip(group.layers, group.choices[index], strict=True))
        return Design(self.network, choices, **attributes)

    def row(self, design: Design) -> Row:
        """The row of a design.

        Raises:
            InputError: a choice of the design is not in the space.
        """
        row = []
        for group in self.groups:
            wanted = tuple(design[layer] for layer in group.layers)
            if wanted not in group.choices:
                raise InputError(
                    f"design: layers.{group.name}",
                    f"`{wanted[0]}` is not in the search space {self.name}",
                )
            row.append(group.choices.index(wanted))
        return tuple(row)

    def group_sums(self, per_layer: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Per group the sum over its layers of a per-layer array over choices."""
        return [
            np.sum([np.asarray(per_layer[layer]) for layer in group.layers], axis=0)
            for group in self.groups
        ]

    def arranged(self, order: Sequence[Sequence[int]], dropped: int = 0) -> SearchSpace:
        """The space with each group's choices picked and ordered by indices."""
        groups = tuple(
            replace(group, choices=tuple(group.choices[index] for index in indices))
            for group, indices in zip(self.groups, order, strict=True)
        )
        return replace(self, groups=groups, dropped=self.dropped + dropped)

    def without_dominated(self, costs: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> SearchSpace:
        """The space without choices that are never better, ordered by their cost.

        A choice is dropped where another one costs no more in every metric and can represent all
        that it can, in each of the tied layers (see :func:`~epim_nas.space.dominance.undominated`).
        Cost is a staircase, so with small layers this drops most.

        Args:
            costs: metric -> layer -> cost of each of the layer's choices. The first metric orders
                the choices.
        """
        order = [
            undominated(
                group.choices,
                np.stack(
                    [
                        np.asarray(per_layer[layer], dtype=float)
                        for per_layer in costs.values()
                        for layer in group.layers
                    ]
                ).reshape(len(costs), len(group.layers), len(group)),
            )
            for group in self.groups
        ]
        dropped = sum(len(group) for group in self.groups) - sum(map(len, order))
        return self.arranged(order, dropped)

    def to_dict(self) -> dict[str, Any]:
        """The space as plain data, for the run folder."""
        return {
            "schema": "epim-nas/resolved-space@1",
            "name": self.name,
            "network": self.network,
            "dropped": self.dropped,
            "groups": [
                {
                    "name": group.name,
                    "layers": list(group.layers),
                    "choices": [[_encode(choice) for choice in row] for row in group.choices],
                }
                for group in self.groups
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """The space from :meth:`to_dict`."""
        groups = tuple(
            Group(
                group["name"],
                tuple(group["layers"]),
                tuple(tuple(_decode(choice) for choice in row) for row in group["choices"]),
            )
            for group in data["groups"]
        )
        return cls(data["name"], data["network"], groups, data["dropped"])

    @property
    def digest(self) -> str:
        """Identity of the space: changes when any choice changes."""
        return digest(self.to_dict())


def _encode(choice: Choice) -> list[Any]:
    shape = None if choice.shape is None else list(choice.shape.as_tuple)
    patch = None if choice.patch is None else list(choice.patch)
    encoded = [shape, choice.wrap, choice.weight_bits, choice.activation_bits, patch]
    # Spaces without input wrapping keep the digest that stored runs were made with.
    return [*encoded, True] if choice.wrap_in else encoded


def _decode(data: Sequence[Any]) -> Choice:
    shape, wrap, weight_bits, activation_bits, patch, *wrap_in = data
    return Choice(
        None if shape is None else EpitomeShape(*shape),
        wrap,
        weight_bits,
        activation_bits,
        None if patch is None else (patch[0], patch[1]),
        bool(wrap_in and wrap_in[0]),
    )
