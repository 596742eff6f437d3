"""From the lists of a search-space file to what each layer may become."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from epim_nas.epitome.design import Choice
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.space.config import Crossbars, EpitomeChoices, LayerChoices, Matrix, SpaceConfig
from epim_nas.space.generators import Given, generated
from epim_nas.space.patterns import check_patterns, matches_any

if TYPE_CHECKING:
    from epim_nas.hardware.chip import Chip

Channels = int | Fraction | Crossbars


@dataclass(frozen=True)
class Option:
    """A choice before it meets a layer: relative sizes instead of channels.

    Attributes:
        size: (Oe, Ie), each as a number, a part or crossbars to fill, or the epitome's matrix.
        out_patch: output channels of a patch as a part of the epitome's.
        growth: rows and columns that the epitome has more than the kernel.
        wrap: whether output slabs share the patches of the first.
        wrap_in: whether input slabs share the patch of the first.
        dense: a dense layer instead of an epitome.
        weight_bits: bits of a weight.
        activation_bits: bits of the layer's input.
    """

    size: tuple[Channels, Channels] | Matrix = (Fraction(1), Fraction(1))
    out_patch: Fraction = Fraction(1)
    growth: int = 0
    wrap: bool = False
    wrap_in: bool = False
    dense: bool = False
    weight_bits: int = 9
    activation_bits: int = 9

    def __str__(self) -> str:
        bits = f"w{self.weight_bits}a{self.activation_bits}"
        if self.dense:
            return f"dense {bits}"
        size = self.size if isinstance(self.size, Matrix) else "{} of O, {} of I".format(*self.size)
        flags = [f"growth {self.growth}"] if self.growth else []
        flags += [f"out_patch {self.out_patch}"] if self.out_patch < 1 else []
        flags += [name for name in ("wrap", "wrap_in") if getattr(self, name)]
        return ", ".join([f"epitome {size}", *flags, bits])

    def choice(self, layer: LayerSpec, chip: Chip | None) -> Choice | None:
        """The choice on ``layer``; None where it makes no sense there.

        That is an epitome that is no smaller than the dense weight, has more channels than the
        layer or none, or wraps where there is nothing to wrap. The whole weight of a grouped
        convolution makes sense, whichever sizes come to its shape: as an epitome it is stored
        without the zeros between its groups.
        """
        bits: dict[str, Any] = {
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }
        if self.dense:
            return Choice(**bits)
        shape = self._shape(layer, chip)
        out_channels, in_channels, *_ = layer.weight_shape
        if shape is None:
            return None
        if shape.as_tuple == layer.weight_shape and layer.groups > 1:
            # One patch: smaller ones would take the same weights in more rounds.
            return Choice(shape, **bits) if self.out_patch == 1 and not self._wraps else None
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
            channels = max(1, math.ceil(self.out_patch * shape.out_channels))
            if self.wrap or channels == shape.out_channels:
                return None
            patch = (channels, shape.in_channels)
        return Choice(shape, self.wrap, patch=patch, wrap_in=self.wrap_in, **bits)

    @property
    def _wraps(self) -> bool:
        return self.wrap or self.wrap_in

    def _shape(self, layer: LayerSpec, chip: Chip | None) -> EpitomeShape | None:
        out_channels, in_channels, height, width = layer.weight_shape
        height, width = height + self.growth, width + self.growth
        if isinstance(self.size, Matrix):
            outputs, inputs = self.size.columns, self.size.rows // (height * width)
        else:
            out_size, in_size = self.size
            outputs = (
                _outputs_filling(out_size, self.weight_bits, layer, chip)
                if isinstance(out_size, Crossbars)
                else _channels(out_size, out_channels)
            )
            inputs = (
                _inputs_filling(in_size, height, width, layer, chip)
                if isinstance(in_size, Crossbars)
                else _channels(in_size, in_channels)
            )
        return EpitomeShape(outputs, inputs, height, width) if outputs and inputs else None


AnyOption = Option | Given
"""An option of a search-space file's lists, or a choice that a function gave."""


def _channels(size: int | Fraction, channels: int) -> int:
    return max(1, math.ceil(size * channels)) if isinstance(size, Fraction) else size


# The mapping is imported where crossbars are counted: reading a run file should not wait for it.
def _outputs_filling(size: Crossbars, bits: int, layer: LayerSpec, chip: Chip | None) -> int:
    from epim_nas.hardware.mapping import outputs_filling_columns

    return outputs_filling_columns(size.count, bits, _required(chip, size, layer))


def _inputs_filling(
    size: Crossbars, height: int, width: int, layer: LayerSpec, chip: Chip | None
) -> int:
    from epim_nas.hardware.mapping import channels_filling_rows

    return channels_filling_rows(size.count, height, width, _required(chip, size, layer))


def _required(chip: Chip | None, size: Crossbars, layer: LayerSpec) -> Chip:
    if chip is None:
        raise InputError(
            f"search space: {layer.name}",
            f"the size `{size}` depends on the chip, and there is none",
            "fractions, numbers of channels or matrices where there is no chip",
            "Give the chip: `SearchSpace.build(config, network, chip)`.",
        )
    return chip


def options_of_layers(
    config: SpaceConfig, network: Network, chip: Chip | None
) -> dict[str, dict[AnyOption, Choice]]:
    """Layer -> its options that make sense there, and the choice that each of them is.

    Raises:
        InputError: a pattern that matches no layer, a layer that may be neither dense nor an
            epitome or has no choice left, or a size in crossbars and no chip.
    """
    options = {}
    for layer in network.weighted:
        choices = _choices_of(layer, config, network)
        given: list[AnyOption] = [*_options(choices)]
        if choices.generator is not None:
            field = f"search space {config.name}: generator"
            given += generated(choices.generator, layer, chip, field)
        possible = {option: option.choice(layer, chip) for option in given}
        options[layer.name] = {o: choice for o, choice in possible.items() if choice is not None}
        if not options[layer.name]:
            out_channels, in_channels, *_ = layer.weight_shape
            raise InputError(
                f"search space {config.name}: {layer.name}",
                "no choice is left: "
                + (f"`{choices.generator}` gives none, and " if choices.generator else "")
                + "every epitome is at least as large as the layer "
                f"({out_channels} output and {in_channels} input channels), or has not one channel",
                hint="Add `dense: true` or smaller epitomes.",
            )
    return options


def _choices_of(layer: LayerSpec, config: SpaceConfig, network: Network) -> LayerChoices:
    choices, layers = config.defaults, network.weighted
    for number, rule in enumerate(config.rules):
        check_patterns(rule.patterns, network, f"search space {config.name}: rules.{number}.layers")
        position = {layers[0].name: "first", layers[-1].name: "last"}.get(layer.name)
        if rule.matches(layer, matches_any(layer.name, rule.patterns), position):
            choices = rule.applied(choices)
    if not choices.dense and choices.epitome is None and choices.generator is None:
        raise InputError(
            f"search space {config.name}: {layer.name}",
            "the layer may be neither dense nor an epitome",
            hint="Set `dense: true`, or give `epitome` sizes or a `generator`.",
        )
    return choices


def _options(choices: LayerChoices) -> list[Option]:
    options = []
    for weight_bits in choices.weight_bits:
        for activation_bits in choices.activation_bits:
            bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
            if choices.dense:
                options.append(Option(dense=True, **bits))
            if choices.epitome is not None:
                options += [
                    Option(size, out_patch, growth, wrap, wrap_in, **bits)
                    for size in _sizes(choices.epitome)
                    for out_patch in choices.epitome.out_patch
                    for growth in choices.epitome.growth
                    for wrap in choices.epitome.wrap
                    for wrap_in in choices.epitome.wrap_in
                ]
    return list(dict.fromkeys(options))


def _sizes(epitome: EpitomeChoices) -> Iterator[tuple[Channels, Channels] | Matrix]:
    for out_size in epitome.out_channels:
        for in_size in epitome.in_channels:
            yield out_size, in_size
    yield from epitome.matrices


def shown(options: Sequence[AnyOption]) -> str:
    """A few options in words, for messages."""
    named = ", ".join(f"`{option}`" for option in options[:3])
    return f"{named} and {len(options) - 3} more" if len(options) > 3 else named
