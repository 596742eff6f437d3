"""Choices per layer, grouped by ties; a design is a row of choice indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError, nearest
from epim_nas.files import digest
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.space.config import LayerChoices, SpaceConfig

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
class _Option:
    """A choice before it meets a layer: relative sizes instead of channels."""

    out_size: int | Fraction = Fraction(1)
    in_size: int | Fraction = Fraction(1)
    out_patch: Fraction = Fraction(1)
    growth: int = 0
    wrap: bool = False
    wrap_in: bool = False
    dense: bool = False
    weight_bits: int = 9
    activation_bits: int = 9

    def choice(self, layer: LayerSpec) -> Choice | None:
        """The choice on ``layer``; None where it is no smaller than the dense layer."""
        bits: dict[str, Any] = {
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }
        if self.dense:
            return Choice(**bits)
        out_channels, in_channels, height, width = layer.weight_shape
        shape = EpitomeShape(
            _channels(self.out_size, out_channels),
            _channels(self.in_size, in_channels),
            height + self.growth,
            width + self.growth,
        )
        if shape.size >= math.prod(layer.weight_shape):
            return None
        if shape.out_channels > out_channels or shape.in_channels > in_channels:
            return None
        if self.wrap and shape.out_channels == out_channels:
            return None  # nothing to wrap: one output slab
        if self.wrap_in and shape.in_channels == in_channels:
            return None  # one input slab
        patch = None
        if self.out_patch < 1:
            channels = _channels(self.out_patch, shape.out_channels)
            if self.wrap or channels == shape.out_channels:
                return None
            patch = (channels, shape.in_channels)
        return Choice(shape, self.wrap, patch=patch, wrap_in=self.wrap_in, **bits)


def _channels(size: int | Fraction, channels: int) -> int:
    return max(1, math.ceil(size * channels)) if isinstance(size, Fraction) else size


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
    def build(cls, config: SpaceConfig, network: Network) -> SearchSpace:
        """The choices that ``config`` gives the layers of ``network``.

        Raises:
            InputError: a pattern that matches no layer, a layer in two ties, or a layer without
                any choice left.
        """
        layers = network.weighted
        options = {layer.name: _options(_choices_of(layer, config, network)) for layer in layers}
        groups = []
        for members in _tied(config, network):
            first = options[members[0].name]
            shared = [o for o in first if all(o in options[member.name] for member in members)]
            rows: dict[tuple[Choice, ...], None] = {}
            for option in shared:
                row = tuple(option.choice(member) for member in members)
                if all(choice is not None for choice in row):
                    rows[row] = None  # type: ignore[index]
            names = tuple(member.name for member in members)
            if not rows:
                raise InputError(
                    f"search space {config.name}: {', '.join(names)}",
                    "no choice is left: every epitome is at least as large as the layer"
                    if shared
                    else "the tied layers have no choice in common",
                    hint="Add `dense: true` or smaller epitomes.",
                )
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

        A choice is dropped where another one costs no more in every metric and has at least as
        many bits, an epitome at least as large in every dimension, and is not wrapped unless both
        are. (Epitomes of different sizes tile a weight differently, so the larger one fits better
        as a rule, not by proof; finer patches are kept.) Cost is a staircase, so with small layers
        this drops most.

        Args:
            costs: metric -> layer -> cost of each of the layer's choices. The first metric orders
                the choices.
        """
        sums = [self.group_sums(per_layer) for per_layer in costs.values()]
        order, dropped = [], 0
        for position, group in enumerate(self.groups):
            cost = np.stack([np.asarray(total[position], dtype=float) for total in sums], axis=1)
            kept: list[int] = []
            # Cheapest and most expressive first, so that a kept choice is never dropped later.
            ranked = sorted(
                range(len(group)),
                key=lambda i: (*cost[i], *(-v for v in _ability(group.choices[i][0])), i),
            )
            for index in ranked:
                if not any(
                    np.all(cost[other] <= cost[index])
                    and all(
                        _covers(a, b)
                        for a, b in zip(group.choices[other], group.choices[index], strict=True)
                    )
                    for other in kept
                ):
                    kept.append(index)
            dropped += len(group) - len(kept)
            order.append(kept)
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


def _ability(choice: Choice) -> tuple[float, ...]:
    size = math.inf if choice.shape is None else choice.shape.size
    return (
        choice.weight_bits or 33,
        choice.activation_bits or 33,
        size,
        not choice.wrap,
        not choice.wrap_in,
        -math.inf if choice.shape is None else -_patch_channels(choice),
    )


def _covers(better: Choice, worse: Choice) -> bool:
    """Whether ``better`` has at least the bits and the size of ``worse`` in every respect."""
    if (better.weight_bits or 33) < (worse.weight_bits or 33):
        return False
    if (better.activation_bits or 33) < (worse.activation_bits or 33):
        return False
    if better.shape is None:
        return True
    if worse.shape is None or (better.wrap and not worse.wrap):
        return False
    if better.wrap_in and not worse.wrap_in:
        return False
    if worse.patch is not None and _patch_channels(better) > worse.patch[0]:
        return False  # finer patches may fit better
    pairs = zip(better.shape.as_tuple, worse.shape.as_tuple, strict=True)
    return all(a >= b for a, b in pairs)


def _patch_channels(choice: Choice) -> int:
    assert choice.shape is not None
    return choice.shape.out_channels if choice.patch is None else choice.patch[0]


def _choices_of(layer: LayerSpec, config: SpaceConfig, network: Network) -> LayerChoices:
    choices, layers = config.defaults, network.weighted
    for number, rule in enumerate(config.rules):
        _check_patterns(
            rule.patterns, network, f"search space {config.name}: rules.{number}.layers"
        )
        position = {layers[0].name: "first", layers[-1].name: "last"}.get(layer.name)
        if rule.matches(layer, _matches_any(layer.name, rule.patterns), position):
            choices = rule.applied(choices)
    if not choices.dense and choices.epitome is None:
        raise InputError(
            f"search space {config.name}: {layer.name}",
            "the layer may be neither dense nor an epitome",
            hint="Set `dense: true` or give `epitome` sizes.",
        )
    return choices


def _options(choices: LayerChoices) -> list[_Option]:
    options = []
    for weight_bits in choices.weight_bits:
        for activation_bits in choices.activation_bits:
            bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
            if choices.dense:
                options.append(_Option(dense=True, **bits))
            if choices.epitome is not None:
                options += [
                    _Option(out_size, in_size, out_patch, growth, wrap, wrap_in, **bits)
                    for out_size in choices.epitome.out_channels
                    for in_size in choices.epitome.in_channels
                    for out_patch in choices.epitome.out_patch
                    for growth in choices.epitome.growth
                    for wrap in choices.epitome.wrap
                    for wrap_in in choices.epitome.wrap_in
                ]
    return list(dict.fromkeys(options))


def _tied(config: SpaceConfig, network: Network) -> list[list[LayerSpec]]:
    """The layers by group, in network order."""
    owner: dict[str, int] = {}
    for number, patterns in enumerate(config.ties):
        field = f"search space {config.name}: ties.{number}"
        _check_patterns(patterns, network, field)
        for layer in network.weighted:
            if _matches_any(layer.name, patterns):
                if layer.name in owner:
                    raise InputError(
                        field,
                        f"the layer `{layer.name}` is already in tie {owner[layer.name]}",
                        "every layer in at most one tie",
                    )
                owner[layer.name] = number
    groups: dict[Any, list[LayerSpec]] = {}
    for layer in network.weighted:
        groups.setdefault(owner.get(layer.name, layer.name), []).append(layer)
    return list(groups.values())


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(patterns: Sequence[str], network: Network, field: str) -> None:
    names = [layer.name for layer in network.weighted]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(f"`{name}`" for name in names[:12])
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            raise InputError(
                field,
                f"`{pattern}` matches no layer of {network.name}",
                f"a pattern of its layers: {shown}{more}",
                nearest(pattern.strip("*?"), names),
            )
