"""A design: one choice per layer, and its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import pydantic

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.shape import EpitomeShape, WeightShape
from epim_nas.errors import InputError, nearest
from epim_nas.files import dump_yaml, load_yaml, write_text
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.schema import Strict, validate

FLOAT_BITS = 32
"""Bits of a weight that is not quantized, for counting crossbars."""
LEAST_BITS = 2
"""Least bits of a weight or an activation; the most are :data:`FLOAT_BITS`."""


@dataclass(frozen=True)
class Choice:
    """What one layer is made of.

    Attributes:
        shape: the epitome's size, or None for a dense layer.
        wrap: output-channel wrapping.
        weight_bits: bits of a weight, None for floating point.
        activation_bits: bits of the layer's inputs, None for floating point.
        patch: (Op, Ip) if it is not the epitome's channels.
        wrap_in: input-channel wrapping.
    """

    shape: EpitomeShape | None = None
    wrap: bool = False
    weight_bits: int | None = None
    activation_bits: int | None = None
    patch: tuple[int, int] | None = None
    wrap_in: bool = False

    def plan(self, layer: LayerSpec) -> SamplingPlan:
        """The sampling plan of this choice on ``layer``.

        Raises:
            InputError: the epitome does not fit the layer.
        """
        try:
            return _plan(
                layer.weight_shape, self.shape, self.wrap, self.wrap_in, self.patch, layer.groups
            )
        except InputError as error:
            raise InputError(
                f"layer {layer.name}: {error.field}", error.problem, error.allowed, error.hint
            ) from None

    def __str__(self) -> str:
        shape = "dense" if self.shape is None else str(self.shape)
        bits = f"w{self.weight_bits or 'f'}a{self.activation_bits or 'f'}"
        wrap = (" wrap" if self.wrap else "") + (" wrap_in" if self.wrap_in else "")
        whole = None if self.shape is None else self.shape.channels
        patch = f" patch {self.patch[0]}x{self.patch[1]}" if self.patch not in (None, whole) else ""
        return f"{shape}{patch}{wrap} {bits}"


@lru_cache(maxsize=4096)
def _plan(
    weight_shape: WeightShape,
    shape: EpitomeShape | None,
    wrap: bool,
    wrap_in: bool,
    patch: tuple[int, int] | None,
    groups: int,
) -> SamplingPlan:
    if shape is None:
        return SamplingPlan.identity(weight_shape, groups)
    return SamplingPlan.build(
        weight_shape, shape, wrap, patch=patch, groups=groups, wrap_in=wrap_in
    )


@dataclass(frozen=True)
class Design:
    """One :class:`Choice` per layer that has a weight, with where it came from.

    Attributes:
        network: name of the network.
        choices: layer name -> choice, for every weighted layer.
        hardware: ``{"name": ..., "digest": ...}`` of the chip it was costed on.
        totals: cost totals, as in ``epim-nas cost --json``.
        provenance: run, trial, seed, version, metrics and how each was measured.
    """

    network: str
    choices: Mapping[str, Choice]
    hardware: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> Choice:
        return self.choices[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.choices)

    @classmethod
    def uniform(
        cls, network: Network, weight_bits: int | None, activation_bits: int | None
    ) -> Design:
        """The design that keeps every layer dense, at the same bits everywhere."""
        choice = Choice(weight_bits=weight_bits, activation_bits=activation_bits)
        return cls(network.name, {layer.name: choice for layer in network.weighted})

    def check_fits(self, network: Network, source: str = "design") -> None:
        """Check that the design names exactly the weighted layers and that each choice fits.

        Raises:
            InputError: a layer is missing, unknown, or its epitome does not fit.
        """
        names = [layer.name for layer in network.weighted]
        for name in self.choices:
            if name not in names:
                raise InputError(
                    f"{source}: layers.{name}",
                    f"the network {network.name} has no such layer",
                    ", ".join(f"`{known}`" for known in names),
                    nearest(name, names),
                )
        for layer in network.weighted:
            if layer.name not in self.choices:
                raise InputError(
                    f"{source}: layers.{layer.name}",
                    "is missing",
                    hint="Give every convolution and linear layer a choice; `dense: true` "
                    "keeps one as it is.",
                )
            try:
                self.choices[layer.name].plan(layer)
            except InputError as error:
                raise InputError(
                    f"{source}: {error.field}", error.problem, error.allowed, error.hint
                ) from None

    def to_dict(self) -> dict[str, Any]:
        """The content of the design file (``epim-nas/design@1``)."""
        return {
            "schema": DESIGN_SCHEMA,
            "network": self.network,
            "hardware": dict(self.hardware),
            "layers": {name: _choice_to_dict(choice) for name, choice in self.choices.items()},
            "totals": dict(self.totals),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | Path) -> None:
        """Write the design file, replacing it atomically."""
        write_text(path, dump_yaml(self.to_dict()))

    @cached_property
    def key(self) -> tuple[tuple[str, Choice], ...]:
        """The identity of the design: its choices by layer."""
        return tuple(sorted(self.choices.items(), key=lambda item: item[0]))


DESIGN_SCHEMA = "epim-nas/design@1"

Bits = pydantic.Field(default=None, ge=LEAST_BITS, le=FLOAT_BITS)


class _EpitomeFile(Strict):
    out_channels: int = pydantic.Field(ge=1)
    in_channels: int = pydantic.Field(ge=1)
    height: int = pydantic.Field(ge=1)
    width: int = pydantic.Field(ge=1)


class _LayerFile(Strict):
    epitome: _EpitomeFile | None = None
    dense: bool | None = None
    patch: list[int] | None = pydantic.Field(default=None, min_length=2, max_length=2)
    wrap: bool = False
    wrap_in: bool = False
    weight_bits: int | None = Bits
    activation_bits: int | None = Bits

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> _LayerFile:
        if (self.epitome is None) == (not self.dense):
            raise ValueError("give either `epitome: {...}` or `dense: true`")
        if self.dense and (self.wrap or self.wrap_in or self.patch):
            raise ValueError("a dense layer has neither `wrap`, `wrap_in` nor `patch`")
        return self


class DesignFile(Strict):
    """A design file.

    Attributes:
        schema_: ``epim-nas/design@1``.
        network: name of the network.
        hardware: name and digest of the chip.
        layers: name of a layer with a weight -> what it is made of.
        totals: cost totals.
        provenance: where the design came from.
    """

    schema_: Literal["epim-nas/design@1"] = pydantic.Field(alias="schema")
    network: str
    hardware: dict[str, Any] = pydantic.Field(default_factory=dict)
    layers: dict[str, _LayerFile]
    totals: dict[str, Any] = pydantic.Field(default_factory=dict)
    provenance: dict[str, Any] = pydantic.Field(default_factory=dict)


def load_design(path: str | Path) -> Design:
    """Read a design file (``epim-nas/design@1``).

    Raises:
        InputError: the file is missing, not YAML, or has a wrong field.
    """
    data = validate(DesignFile, load_yaml(path), str(path))
    return Design(
        network=data.network,
        choices={name: _choice_from_file(layer) for name, layer in data.layers.items()},
        hardware=data.hardware,
        totals=data.totals,
        provenance=data.provenance,
    )


def _choice_from_file(layer: _LayerFile) -> Choice:
    epitome = layer.epitome
    return Choice(
        shape=EpitomeShape(**epitome.model_dump()) if epitome else None,
        wrap=layer.wrap,
        wrap_in=layer.wrap_in,
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        patch=(layer.patch[0], layer.patch[1]) if layer.patch else None,
    )


def _choice_to_dict(choice: Choice) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    if choice.shape is None:
        layer["dense"] = True
    else:
        layer["epitome"] = {
            "out_channels": choice.shape.out_channels,
            "in_channels": choice.shape.in_channels,
            "height": choice.shape.height,
            "width": choice.shape.width,
        }
        layer["patch"] = list(choice.patch or choice.shape.channels)
        layer["wrap"] = choice.wrap
        if choice.wrap_in:
            layer["wrap_in"] = True
    layer["weight_bits"] = choice.weight_bits
    layer["activation_bits"] = choice.activation_bits
    return layer
