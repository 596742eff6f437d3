"""The entry of a tile's index tables: what it delivers for one slot, and in how many bits.

One definition for the cost model, which charges these bits, and for the datapath's memory images,
which hold them. ``docs/cost_model.md``, section 5, has the argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.hardware.schedule import CrossbarGrid


@dataclass(frozen=True)
class TableEntry:
    """What one entry addresses, with the width of every address in bits.

    Attributes:
        drivers: row groups of a tile; PEs of a tile where rounds share slots, since then they
            fetch other features each.
        channels: channels that a driver drives at most.
        slabs: inputs that are summed to drive a channel: 1, or the input slabs that share a patch.
        input_bits: of the address of an input channel (IFAT).
        line_bits: of the number of a word line (IFRT).
        outputs: output channels that are addressed (OFAT).
        output_bits: of the address of an output channel.
    """

    drivers: int
    channels: int
    slabs: int
    input_bits: int
    line_bits: int
    outputs: int
    output_bits: int

    @classmethod
    def of(
        cls, plan: SamplingPlan, grid: CrossbarGrid, crossbar_rows: int, parallel: bool
    ) -> TableEntry:
        """The entry of a plan's tables.

        Args:
            plan: the sampling plan.
            grid: its crossbars.
            crossbar_rows: X.
            parallel: whether a slot has several rounds
                (:attr:`~epim_nas.hardware.schedule.Schedule.parallel`).
        """
        pes = min(grid.row_groups * grid.column_groups, grid.pes)
        return cls(
            drivers=pes if parallel else min(pes, grid.row_groups),
            channels=min(grid.channels_per_row_group, plan.patch[1]),
            slabs=plan.summed_slabs,
            input_bits=address_bits(plan.conv_shape[1] * plan.groups),
            line_bits=address_bits(crossbar_rows),
            outputs=min(plan.patch[0], grid.columns),
            output_bits=address_bits(plan.conv_shape[0]),
        )

    @property
    def bits(self) -> int:
        """Address bits of the entry."""
        driven = self.slabs * self.input_bits + self.line_bits
        return self.drivers * self.channels * driven + self.outputs * self.output_bits


def needs_table(plan: SamplingPlan) -> bool:
    """Whether a layer has index tables: a dense one is wired."""
    return not plan.is_identity or plan.groups > 1


def address_bits(count: int) -> int:
    """Bits of the address of one of ``count`` things, at least 1."""
    return max(1, ceil(log2(count)))
