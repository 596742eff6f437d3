"""How a layer's weights and inputs are quantized, apart from the number of bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

from epim_nas.errors import InputError, nearest

if TYPE_CHECKING:
    from epim_nas.epitome.plan import SamplingPlan

Granularity = Literal["tensor", "channel", "crossbar"]
WeightRange = Literal["auto", "max", "gaussian", "least_squares"]
ActivationRange = Literal["least_squares", "percentile"]


@dataclass(frozen=True)
class CrossbarBlock:
    """The channels of an epitome that lie on one crossbar.

    Input channel ``i`` lies in row group ``i // in_channels``, output channel ``o`` in column
    group ``o * columns_per_output // columns``: an output whose slices lie on two crossbars
    belongs to the first.

    Attributes:
        in_channels: epitome input channels that a crossbar holds.
        columns: columns of a crossbar.
        columns_per_output: neighbouring columns that an output channel takes.
    """

    in_channels: int
    columns: int
    columns_per_output: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "columns", "columns_per_output"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"quantization.block.{name}", f"got `{value!r}`", "a positive integer"
                )


@dataclass(frozen=True)
class Quantization:
    """Which elements share a quantization step, and where the step comes from.

    Attributes:
        granularity: what shares a step: the whole epitome (``tensor``), an output channel
            (``channel``; its scale folds into the normalisation), or what lies on one crossbar
            (``crossbar``; its scale is in the crossbar's peripheral circuit).
        block: the channels of a crossbar, for the granularity ``crossbar``.
        weight_range: the rule of the step. ``max``: the largest magnitude is the largest integer.
            ``gaussian``: the step with the least squared error if the elements were normal, from
            their root mean square. ``auto``: gaussian up to 5 bits, max above. ``least_squares``:
            the step with the least squared error on the elements that there are.
        overlap_weights: (overlapped, rest): the range is this combination of the range of the
            elements that the weight repeats more often than the mean and that of all others
            (EPIM, arXiv 2311.07620). None: one range for all.
        by_repeats: count an element as often as the weight repeats it, in the root mean square
            and in the squared error, which is then that of the expanded weight.
        learned_weight_step: train the step, starting from the rule (LSQ; Esser et al., ICLR 2020).
        activation_range: the rule of the inputs' step: the least squared error, or a percentile.
        percentile: percentile of the inputs' magnitudes that is the largest integer.
        learned_activation_step: train the inputs' step, starting from the rule (LSQ).

    Raises:
        InputError: an unknown name, a number out of range, or options that exclude each other.
    """

    granularity: Granularity = "channel"
    block: CrossbarBlock | None = None
    weight_range: WeightRange = "auto"
    overlap_weights: tuple[float, float] | None = None
    by_repeats: bool = False
    learned_weight_step: bool = False
    activation_range: ActivationRange = "least_squares"
    percentile: float = 99.9
    learned_activation_step: bool = True

    def __post_init__(self) -> None:
        _check_name("granularity", self.granularity, get_args(Granularity))
        _check_name("weight_range", self.weight_range, get_args(WeightRange))
        _check_name("activation_range", self.activation_range, get_args(ActivationRange))
        if not 0 < self.percentile <= 100:
            raise InputError("quantization.percentile", f"got {self.percentile}", "above 0, to 100")
        if self.block is not None and self.granularity != "crossbar":
            raise InputError(
                "quantization.block", f"is given for granularity `{self.granularity}`", "crossbar"
            )
        if self.overlap_weights is not None:
            self._check_overlap_weights(self.overlap_weights)

    def _check_overlap_weights(self, weights: tuple[float, float]) -> None:
        field = "quantization.overlap_weights"
        if len(weights) != 2 or not all(isfinite(w) and w >= 0 for w in weights):
            raise InputError(field, f"got {weights}", "two numbers from 0 (overlapped, rest)")
        if sum(weights) == 0:
            raise InputError(field, "both are 0", "a positive sum")
        if self.by_repeats or self.weight_range == "least_squares":
            raise InputError(
                field,
                "`overlap_weights` goes neither with `by_repeats` nor with the range "
                "`least_squares`",
                "one way to count repeated elements",
            )


QuantizationRule = Callable[["SamplingPlan", "int | None"], Quantization]
"""(plan, weight bits) of a layer -> its options: what lies on a crossbar differs by layer."""


def quantization_for(
    quantization: Quantization | QuantizationRule, plan: SamplingPlan, weight_bits: int | None
) -> Quantization:
    """The options of a layer, from options for all layers or from a rule."""
    if isinstance(quantization, Quantization):
        return quantization
    return quantization(plan, weight_bits)


def _check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(
            f"quantization.{field}",
            f"got `{value}`",
            ", ".join(known),
            nearest(str(value), known),
        )
