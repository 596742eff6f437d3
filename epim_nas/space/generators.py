"""Choices of layers from functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epim_nas.epitome.design import Choice
from epim_nas.errors import InputError, find_named
from epim_nas.network.spec import LayerSpec

if TYPE_CHECKING:
    from epim_nas.hardware.chip import Chip

Generator = Callable[[LayerSpec, "Chip | None"], Iterable[Choice]]
"""The choices of a layer on a chip."""

GENERATORS: dict[str, Generator] = {}
"""Name in a search space -> generator (:func:`epim_nas.extensions.register_choices`)."""


@dataclass(frozen=True)
class Given:
    """An option that is a choice already.

    Attributes:
        given: the choice.
    """

    given: Choice

    @property
    def weight_bits(self) -> int:
        """Bits of a weight; 0 for floating point."""
        return self.given.weight_bits or 0

    @property
    def activation_bits(self) -> int:
        """Bits of the layer's input; 0 for floating point."""
        return self.given.activation_bits or 0

    def __str__(self) -> str:
        return str(self.given)

    def choice(self, layer: LayerSpec, chip: Chip | None) -> Choice:
        """The choice."""
        return self.given


def generated(name: str, layer: LayerSpec, chip: Chip | None, field: str) -> list[Given]:
    """The options that a generator gives a layer.

    Raises:
        InputError: there is no such generator, it fails, or what it gives does not fit the layer.
    """
    generator = find_named(GENERATORS, name, field, "a generator of choices")
    field = f"{field}: {name}"
    try:
        found = list(generator(layer, chip))
    except InputError:
        raise
    except Exception as error:  # the user's code
        raise InputError(
            field, f"fails on layer {layer.name}: {type(error).__name__}: {error}"
        ) from error
    for choice in found:
        if not isinstance(choice, Choice):
            raise InputError(
                field, f"gives `{choice!r}` for layer {layer.name}", "objects of type `Choice`"
            )
        try:
            choice.plan(layer)
        except InputError as error:
            raise InputError(
                field, f"gives `{choice}`, which does not fit: {error.problem}", error.allowed
            ) from None
    return [Given(choice) for choice in found]
