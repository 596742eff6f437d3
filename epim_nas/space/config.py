"""The search-space file (``epim-nas/space@1``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

import pydantic

from epim_nas import presets
from epim_nas.errors import InputError, nearest
from epim_nas.files import load_yaml
from epim_nas.network.spec import LayerSpec
from epim_nas.schema import Strict, validate


@dataclass(frozen=True)
class Crossbars:
    """A size of as many channels as fill ``count`` crossbars; written ``2 crossbars``."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} crossbar{'s' * (self.count > 1)}"


@dataclass(frozen=True)
class Matrix:
    """A whole epitome in EPIM's notation, ``1024x256``: rows (Ie * He * We) x columns (Oe)."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


def _size(value: Any) -> Any:
    """Channels of an epitome: a part of the layer's, a number, or as many as fill crossbars."""
    if isinstance(value, bool):
        raise ValueError("got a truth value; give a fraction such as `1/2` or a number of channels")
    if isinstance(value, int):
        if value == 1:
            return Fraction(1)
        if value < 1:
            raise ValueError(f"got {value}; give at least 1 channel")
        return value
    if isinstance(value, str) and "crossbar" in value:
        aligned = re.fullmatch(r"\s*0*([1-9]\d{0,5})\s*crossbars?\s*", value)
        if aligned is None:
            raise ValueError(f"got `{value}`; give a whole number of them, such as `2 crossbars`")
        return Crossbars(int(aligned[1]))
    if isinstance(value, (float, str)):
        try:
            fraction = Fraction(value).limit_denominator(4096)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(
                f"got `{value}`; give a fraction such as `1/2`, a number or `2 crossbars`"
            ) from None
        if not 0 < fraction <= 1:
            raise ValueError(f"got `{value}`; a fraction is larger than 0 and at most 1")
        return fraction
    return value


def _matrix(value: Any) -> Any:
    """An epitome's matrix: `1024x256`."""
    if isinstance(value, Matrix):
        return value
    size = re.fullmatch(r"\s*([1-9]\d{0,7})\s*x\s*([1-9]\d{0,7})\s*", str(value))
    if size is None or not isinstance(value, str):
        raise ValueError(f"got `{value}`; give rows x columns, such as `1024x256`")
    return Matrix(int(size[1]), int(size[2]))


def _written(value: Any) -> Any:
    """A size as it is written in a file."""
    return value if isinstance(value, int) else str(value)


Size = Annotated[
    int | Fraction | Crossbars,
    pydantic.BeforeValidator(_size),
    pydantic.PlainSerializer(_written, when_used="json"),
]
"""Channels: a :class:`~fractions.Fraction` of the layer's, an absolute number, or
:class:`Crossbars` that they fill."""

MatrixSize = Annotated[
    Matrix,
    pydantic.BeforeValidator(_matrix),
    pydantic.PlainSerializer(_written, when_used="json"),
]
"""A :class:`Matrix`, written ``1024x256``."""


def _part(value: Any) -> Any:
    """A fraction: `1/2`, 0.5 or 1."""
    size = _size(value)
    if not isinstance(size, Fraction):
        raise ValueError(f"got `{value}`; give a fraction such as `1/2`, or 1")
    return size


Bits = Annotated[int, pydantic.Field(ge=2, le=32)]


class EpitomeChoices(Strict):
    """Sizes of epitomes; every combination that is smaller than the layer's weight is a choice.

    So is the whole weight of a grouped convolution, which a dense layer stores with zeros.

    Attributes:
        out_channels: output channels Oe. 1 is the whole layer; ``1/2`` half of it; 64 is 64;
            ``2 crossbars`` as many as fill the columns of two, with the choice's weight bits.
        in_channels: input channels Ie, likewise; ``2 crossbars``: as many as fill the rows of two.
        matrices: whole epitomes beside the product of the other sizes, ``1024x256``: rows
            (Ie * He * We) x columns (Oe); Ie follows from the growth.
        out_patch: output channels Op of a patch, as a part of the epitome's. Smaller patches fit a
            trained weight better, since each has its own order of input channels, at more
            activation rounds. Not combined with wrapping.
        growth: rows and columns that the epitome has more than the kernel.
        wrap: whether output slabs share the patches of the first.
        wrap_in: whether the input slabs of an output slab share the patch of the first.
    """

    out_channels: list[Size] = pydantic.Field(default=[Fraction(1)], min_length=1)
    in_channels: list[Size] = pydantic.Field(default=[Fraction(1)], min_length=1)
    matrices: list[MatrixSize] = pydantic.Field(default=[])
    out_patch: list[Annotated[Fraction, pydantic.BeforeValidator(_part)]] = pydantic.Field(
        default=[Fraction(1)], min_length=1
    )
    growth: list[Annotated[int, pydantic.Field(ge=0, le=16)]] = pydantic.Field(
        default=[0], min_length=1
    )
    wrap: list[bool] = pydantic.Field(default=[False], min_length=1)
    wrap_in: list[bool] = pydantic.Field(default=[False], min_length=1)


class LayerChoices(Strict):
    """The choices of a layer.

    Attributes:
        dense: whether the layer may stay a dense convolution.
        epitome: sizes of epitomes, None for none.
        generator: further choices from a function of your own, by its name
            (:func:`epim_nas.extensions.register_choices`).
        weight_bits: bits of a weight.
        activation_bits: bits of the layer's input.
    """

    dense: bool = True
    epitome: EpitomeChoices | None = None
    generator: str | None = None
    weight_bits: list[Bits] = pydantic.Field(default=[9], min_length=1)
    activation_bits: list[Bits] = pydantic.Field(default=[9], min_length=1)


class Rule(Strict):
    """Overrides for the layers that it matches (all given conditions must hold).

    Attributes:
        layers: pattern of the layer's name (``*`` and ``?`` match anything), or several.
        type: ``conv`` or ``fc``.
        position: ``first`` or ``last``: the first or last layer with a weight.
        kernel: height of the kernel.
        grouped: whether the convolution has groups (depthwise included).
        max_weights: largest number of weights.
        dense: see :class:`LayerChoices`.
        epitome: see :class:`LayerChoices`; the string ``none`` forbids epitomes.
        generator: see :class:`LayerChoices`.
        weight_bits: see :class:`LayerChoices`.
        activation_bits: see :class:`LayerChoices`.
    """

    layers: str | list[str] | None = None
    type: Literal["conv", "fc"] | None = None
    position: Literal["first", "last"] | None = None
    kernel: int | None = pydantic.Field(default=None, ge=1, le=2**16)
    grouped: bool | None = None
    max_weights: int | None = pydantic.Field(default=None, ge=0, le=2**53)
    dense: bool | None = None
    epitome: EpitomeChoices | Literal["none"] | None = None
    generator: str | None = None
    weight_bits: list[Bits] | None = pydantic.Field(default=None, min_length=1)
    activation_bits: list[Bits] | None = pydantic.Field(default=None, min_length=1)

    @property
    def patterns(self) -> list[str]:
        """The name patterns."""
        if self.layers is None:
            return []
        return [self.layers] if isinstance(self.layers, str) else self.layers

    def applied(self, choices: LayerChoices) -> LayerChoices:
        """``choices`` with this rule's overrides."""
        changes: dict[str, Any] = {}
        for name in ("dense", "generator", "weight_bits", "activation_bits"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        if self.epitome is not None:
            changes["epitome"] = None if self.epitome == "none" else self.epitome
        return choices.model_copy(update=changes)

    def matches(self, layer: LayerSpec, name_matches: bool, position: str | None) -> bool:
        """Whether every given condition holds for ``layer``."""
        out_channels, in_channels, height, width = layer.weight_shape
        weights = out_channels * in_channels * height * width
        return (
            (not self.patterns or name_matches)
            and (self.type is None or layer.type == self.type)
            and (self.position is None or position == self.position)
            and (self.kernel is None or height == self.kernel)
            and (self.grouped is None or (layer.groups > 1) == self.grouped)
            and (self.max_weights is None or weights <= self.max_weights)
        )


class LimitedTie(Strict):
    """``stages`` or ``residual`` among some of the layers; exactly one of the two is given.

    Attributes:
        stages: pattern of the layers' names, or several.
        residual: likewise.
    """

    stages: str | list[str] | None = None
    residual: str | list[str] | None = None

    @pydantic.model_validator(mode="after")
    def _one(self) -> LimitedTie:
        if (self.stages is None) == (self.residual is None):
            raise ValueError("give either `stages` or `residual`, with a pattern of layers")
        return self


def _tie(value: Any) -> Any:
    words = get_args(TieWord)
    if isinstance(value, str) and value not in words:
        raise InputError(
            "ties",
            f"got `{value}`",
            "a list of patterns, or one of the words `stages` and `residual`",
            nearest(value, words),
        )
    return value


TieWord = Literal["stages", "residual"]
Tie = Annotated[TieWord | list[str] | LimitedTie, pydantic.BeforeValidator(_tie)]
"""Which layers share a choice: patterns of names, or what the network's structure says."""


class SpaceConfig(Strict):
    """A search space: defaults, rules that refine them in order, and ties.

    Attributes:
        name: name of the space.
        description: what it is for.
        defaults: the choices of every layer.
        rules: overrides; a later rule wins.
        ties: each a list of patterns (all layers that match one share their choice), or the word
            ``stages`` or ``residual``; see :mod:`epim_nas.space.ties`.
        drop_dominated: drop choices that another choice of the layer beats at no cost.
    """

    schema_: Literal["epim-nas/space@1"] = pydantic.Field(alias="schema")
    name: str
    description: str = ""
    defaults: LayerChoices = LayerChoices()
    rules: list[Rule] = pydantic.Field(default_factory=list)
    ties: list[Tie] = pydantic.Field(default_factory=list)
    drop_dominated: bool = True


def load_space_config(name_or_path: str, field: str = "--space") -> SpaceConfig:
    """Read a search space by the name of a preset or by its path.

    Raises:
        InputError: no such file, or a wrong field in it.
    """
    path = presets.find("search_spaces", name_or_path, field)
    return validate(SpaceConfig, load_yaml(path), str(path))
