"""The size of an epitome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epim_nas.errors import InputError

WeightShape = tuple[int, int, int, int]
"""(O, I/groups, Kh, Kw) of a convolution's weight."""


@dataclass(frozen=True, order=True)
class EpitomeShape:
    """Size (Oe, Ie, He, We) of an epitome tensor.

    As a crossbar matrix it has ``in_channels * height * width`` rows and ``out_channels`` columns.
    """

    out_channels: int
    in_channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("out_channels", "in_channels", "height", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"epitome.{name}", f"got `{value!r}`", "a positive integer")

    @property
    def size(self) -> int:
        """Elements of the epitome."""
        return self.out_channels * self.rows

    @property
    def rows(self) -> int:
        """Word lines that the epitome occupies."""
        return self.in_channels * self.height * self.width

    @property
    def as_tuple(self) -> WeightShape:
        """(Oe, Ie, He, We)."""
        return (self.out_channels, self.in_channels, self.height, self.width)

    @property
    def channels(self) -> tuple[int, int]:
        """(Oe, Ie): the channels of a patch where a choice gives none."""
        return (self.out_channels, self.in_channels)

    @classmethod
    def dense(cls, weight_shape: Sequence[int]) -> EpitomeShape:
        """The shape whose epitome is the weight itself."""
        return cls(*weight_shape)

    def check_fits(self, weight_shape: WeightShape, layer: str = "epitome") -> None:
        """Check Oe <= O, Ie <= I, He >= Kh, We >= Kw, and that the epitome is not the larger.

        Raises:
            InputError: naming the dimension that does not fit.
        """
        out_channels, in_channels, kernel_h, kernel_w = weight_shape
        limits = (
            ("out_channels", self.out_channels <= out_channels, f"at most {out_channels}"),
            ("in_channels", self.in_channels <= in_channels, f"at most {in_channels}"),
            ("height", self.height >= kernel_h, f"at least the kernel's {kernel_h}"),
            ("width", self.width >= kernel_w, f"at least the kernel's {kernel_w}"),
        )
        for name, fits, allowed in limits:
            if not fits:
                got = getattr(self, name)
                raise InputError(
                    f"{layer}.{name}",
                    f"{got} does not fit the convolution's weight {weight_shape}",
                    allowed,
                )
        weights = out_channels * in_channels * kernel_h * kernel_w
        if self.size > weights:
            raise InputError(
                layer,
                f"the epitome {self.as_tuple} has {self.size} elements, more than the "
                f"convolution's weight {weight_shape} with {weights}",
                f"at most {weights} elements",
                "Use fewer channels or keep the layer dense.",
            )

    def __str__(self) -> str:
        return f"{self.out_channels}x{self.in_channels}x{self.height}x{self.width}"
