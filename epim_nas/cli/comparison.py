"""Candidates of ``epim-nas cost --compare``: one network, other chips or other designs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from epim_nas.epitome.design import DESIGN_SCHEMA, FLOAT_BITS, LEAST_BITS, Design, load_design
from epim_nas.errors import InputError
from epim_nas.files import load_yaml, user_path
from epim_nas.hardware import CostModel, compression, load_chip
from epim_nas.hardware.bits import check_bits
from epim_nas.hardware.chip import CHIP_SCHEMA

if TYPE_CHECKING:
    from epim_nas.hardware import Chip, Compression, NetworkCost
    from epim_nas.network.spec import Network

COMPARISON_SCHEMA = "epim-nas/cost-comparison@1"
_BITS = re.compile(r"w(\d{1,3})a(\d{1,3})")

Metric = Literal[
    "crossbars",
    "tiles",
    "utilization",
    "rounds",
    "latency_ns",
    "sequential_latency_ns",
    "energy_nj",
    "area_um2",
    "edp_nj_ns",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""The totals of ``cost --json``, and the product of energy and pipelined latency."""


@dataclass(frozen=True)
class Candidate:
    """What is costed: a design, or the dense network at some bits, on a chip.

    Attributes:
        chip: the chip.
        weight_bits: bits of dense weights, where there is no design.
        activation_bits: likewise of activations.
        design: the design; None keeps every layer dense.
        source: file of the design.
    """

    chip: Chip
    weight_bits: int
    activation_bits: int
    design: Design | None = None
    source: str = ""

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        dense = f"dense w{self.weight_bits}a{self.activation_bits}"
        return f"{dense if self.design is None else Path(self.source).name} on {self.chip.name}"

    def cost(self, network: Network) -> NetworkCost:
        """Its cost.

        Raises:
            InputError: the design does not fit the network, or the network not the chip.
        """
        if self.design is not None:
            self.design.check_fits(network, self.source)
        return CostModel(network, self.chip).evaluate(
            self.design, weight_bits=self.weight_bits, activation_bits=self.activation_bits
        )

    def compression(self, network: Network) -> Compression:
        """Crossbars of the dense 32-bit network on the same chip over its own.

        Raises:
            InputError: the network has no layer with weights.
        """
        dense = Design.uniform(network, self.weight_bits, self.activation_bits)
        return compression(network, self.chip, self.design or dense)


def parse_compare(text: str, first: Candidate, overrides: Sequence[str]) -> Candidate:
    """The candidate that ``--compare`` names: ``first`` with one thing replaced.

    Args:
        text: a design file, bits of the dense network such as ``w9a9``, or a chip.
        first: what it is compared with.
        overrides: ``--set`` changes to a chip.

    Raises:
        InputError: neither of the three, or a file with errors.
    """
    bits = _BITS.fullmatch(text)
    if bits:
        weight_bits, activation_bits = int(bits[1]), int(bits[2])
        check_bits(f"--compare {text}: weight bits", weight_bits, LEAST_BITS, FLOAT_BITS)
        check_bits(f"--compare {text}: activation bits", activation_bits, LEAST_BITS, FLOAT_BITS)
        return Candidate(first.chip, weight_bits, activation_bits)
    if _schema(text) == DESIGN_SCHEMA:
        return replace(first, design=load_design(text), source=text)
    try:
        return replace(first, chip=load_chip(text, overrides, field="--compare"))
    except InputError as error:
        if error.field != "--compare" or not error.allowed:
            raise
        # A name that no chip has: say what else may stand here.
        allowed = f"bits of the dense network, e.g. `w9a9`, {error.allowed}"
        raise InputError(error.field, error.problem, allowed, error.hint) from None


def _schema(text: str) -> str:
    """The schema of a YAML file; what has none is left to :func:`load_chip` to explain."""
    path = user_path(text, "--compare")
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return CHIP_SCHEMA
    data = load_yaml(path)
    schema = data.get("schema", CHIP_SCHEMA) if isinstance(data, dict) else CHIP_SCHEMA
    if schema not in (DESIGN_SCHEMA, CHIP_SCHEMA):
        raise InputError(
            f"--compare {text}: schema",
            f"got `{schema}`",
            f"`{DESIGN_SCHEMA}` (a design) or `{CHIP_SCHEMA}` (a chip)",
        )
    return str(schema)


@dataclass(frozen=True)
class Comparison:
    """Costs side by side, all of the same network.

    Attributes:
        names: what each candidate is.
        costs: cost of each candidate; the others are compared with the first.
        compressions: compression of each, against the dense 32-bit network on its own chip.
    """

    names: tuple[str, ...]
    costs: tuple[NetworkCost, ...]
    compressions: tuple[Compression, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], network: Network) -> Comparison:
        """Cost every candidate.

        Raises:
            InputError: a candidate and the network do not fit.
        """
        return cls(
            tuple(candidate.label for candidate in candidates),
            tuple(candidate.cost(network) for candidate in candidates),
            tuple(candidate.compression(network) for candidate in candidates),
        )

    def totals(self, metric: Metric) -> tuple[float, ...]:
        """A total of every candidate."""
        return tuple(_total(cost, metric) for cost in self.costs)

    def ratios(self, metric: Metric) -> tuple[float | None, ...]:
        """A total of every candidate over that of the first; None where that is 0."""
        first, *_ = totals = self.totals(metric)
        return tuple(value / first if first else None for value in totals)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``epim-nas cost --compare --json``."""
        return {
            "schema": COMPARISON_SCHEMA,
            "names": list(self.names),
            "costs": [cost.to_dict() for cost in self.costs],
            "compressions": [asdict(value) for value in self.compressions],
            "ratios": {metric: list(self.ratios(metric)) for metric in METRICS},
        }


def _total(cost: NetworkCost, metric: Metric) -> float:
    totals = cost.totals
    if metric == "edp_nj_ns":
        return totals.energy_nj * totals.latency_ns
    return float(getattr(totals, metric))
