"""The index tables of one layer, with the sizes that they belong to."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np

from epim_nas.datapath.tables import NOTHING, IndexTables
from epim_nas.epitome.design import Choice
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.index_table import TableEntry, address_bits, needs_table
from epim_nas.hardware.mapping import crossbar_grid, mapped_plan
from epim_nas.hardware.schedule import CrossbarGrid
from epim_nas.network.spec import LayerSpec

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class LayerTables:
    """Index tables and what they address.

    Attributes:
        layer: the layer's name.
        conv_shape: (O, I/groups, Kh, Kw) of the weight.
        groups: groups of the convolution.
        epitome: (Oe, Ie, He, We).
        patch: (Op, Ip).
        grid: the crossbars.
        crossbar_rows: X.
        entry: what a tile's table delivers for one slot; None for a dense layer, which is wired.
        tables: IFAT, IFRT and OFAT.
    """

    layer: str
    conv_shape: Shape
    groups: int
    epitome: Shape
    patch: tuple[int, int]
    grid: CrossbarGrid
    crossbar_rows: int
    entry: TableEntry | None
    tables: IndexTables

    @classmethod
    def build(
        cls, layer: str, plan: SamplingPlan, weight_bits: int | None, chip: Chip
    ) -> LayerTables:
        """The tables of a plan on a chip.

        Args:
            layer: the layer's name.
            plan: the sampling plan.
            weight_bits: bits of a weight, None for 32-bit floating point.
            chip: the chip.
        """
        return cls.on_grid(layer, plan, crossbar_grid(plan, weight_bits, chip), chip.crossbar.rows)

    @classmethod
    def on_grid(
        cls, layer: str, plan: SamplingPlan, grid: CrossbarGrid, crossbar_rows: int
    ) -> LayerTables:
        """The tables of a plan on the crossbars of a grid.

        Raises:
            InputError: the grid is not that of the plan's epitome.
        """
        tables = IndexTables.build(plan, grid, crossbar_rows)
        parallel = tables.slots < tables.rounds
        entry = TableEntry.of(plan, grid, crossbar_rows, parallel) if needs_table(plan) else None
        return cls(
            layer=layer,
            conv_shape=plan.conv_shape,
            groups=plan.groups,
            epitome=plan.shape.as_tuple,
            patch=plan.patch,
            grid=grid,
            crossbar_rows=crossbar_rows,
            entry=entry,
            tables=tables,
        )

    @classmethod
    def of(cls, layer: LayerSpec, choice: Choice, chip: Chip) -> LayerTables:
        """The tables of a layer's choice, with the channels in their own order.

        Raises:
            InputError: the epitome does not fit the layer, or a kernel does not fit a crossbar.
        """
        return cls.build(layer.name, mapped_plan(layer, choice, chip), choice.weight_bits, chip)

    @property
    def crossbars(self) -> int:
        """Crossbars (PEs) of the layer."""
        return self.grid.row_groups * self.grid.column_groups

    @property
    def tiles(self) -> int:
        """Tiles of the layer."""
        return -(-self.crossbars // self.grid.pes)

    def equals(self, other: LayerTables) -> bool:
        """Whether sizes and all entries are the same."""
        return self.tables.equals(other.tables) and not self._different_sizes(other)

    def check_plan(self, plan: SamplingPlan, source: str = "tables") -> None:
        """Check that these are the tables of ``plan``.

        Args:
            plan: the plan of the weights that are to be used.
            source: the file they came from, for the message.

        Raises:
            InputError: they are those of another layer, epitome, or order of channels.
        """
        field = f"{source}: layer {self.layer}"
        if self.epitome != plan.shape.as_tuple or self.conv_shape != plan.conv_shape:
            raise InputError(
                field,
                f"are tables of epitome {_text(self.epitome)} of weight {_text(self.conv_shape)}",
                f"epitome {_text(plan.shape.as_tuple)} of weight {_text(plan.conv_shape)}",
                "Export the tables of the design that the weights belong to.",
            )
        expected = LayerTables.on_grid(self.layer, plan, self.grid, self.crossbar_rows)
        different = self._different_sizes(expected) or [
            f"tables.{entry.name}"
            for entry in fields(IndexTables)
            if not np.array_equal(
                getattr(self.tables, entry.name), getattr(expected.tables, entry.name)
            )
        ]
        if different:
            raise InputError(
                f"{field}: {different[0]}",
                "differs from the plan of the weights",
                "the tables of the same patch, wrapping and order of channels",
                "Export the tables of the design that the weights belong to.",
            )

    def check_entries(self, source: str = "tables") -> None:
        """Check that every entry addresses something that exists, and every output is written.

        Raises:
            InputError: sizes that contradict each other, an array of another shape, an address out
                of range, or an output that is not opened once.
        """
        self._check_sizes(source)
        tables, (patch_out, patch_in) = self.tables, self.patch
        rounds, copies = len(tables.slot), tables.ofat.shape[1]
        slabs = tables.ifat.shape[1]
        limits = {
            "slot": ((rounds,), rounds),
            "opens": ((rounds,), 2),
            "closes": ((rounds,), 2),
            "ifat": ((rounds, slabs, patch_in), self.conv_shape[1] * self.groups),
            "ifrt": ((rounds, patch_in), self.grid.row_groups * self.crossbar_rows),
            "columns": ((rounds, patch_out), self.epitome[0]),
            "ofat": ((rounds, copies, patch_out), self.conv_shape[0]),
        }
        for name, (shape, limit) in limits.items():
            values = getattr(tables, name)
            field = f"{source}: tables.{name}"
            if values.shape != shape:
                raise InputError(field, f"has shape {values.shape}", f"{shape}")
            lowest = 0 if name == "slot" else NOTHING
            wrong = values[(values < lowest) | (values >= limit)] if name != "opens" else values[:0]
            if wrong.size:
                raise InputError(field, f"got {int(wrong[0])}", f"{lowest} to {limit - 1}")
        opened = tables.ofat[tables.opens]
        times = np.bincount(opened[opened != NOTHING], minlength=self.conv_shape[0])
        wrong = np.flatnonzero(times != 1)
        if wrong.size:
            raise InputError(
                f"{source}: tables.ofat",
                f"output channel {wrong[0]} is opened {times[wrong[0]]} times",
                "every output channel once, in a round that `opens`",
            )

    def _check_sizes(self, source: str) -> None:
        channels, grid = self.grid.channels_per_row_group, self.grid
        inputs = self.conv_shape[1] * self.groups
        if min(*self.conv_shape, *self.epitome, *self.patch, *astuple(grid), self.groups) < 1:
            raise InputError(source, "has a size of 0", "sizes of 1 or more")
        expected = {
            "crossbars.outputs": (grid.outputs, self.epitome[0]),
            "crossbars.row_groups": (grid.row_groups, -(-self.epitome[1] // channels)),
        }
        if self.entry is not None:
            expected |= {
                "entry.slabs": (self.entry.slabs, self.tables.ifat.shape[1]),
                "entry.input_bits": (self.entry.input_bits, address_bits(inputs)),
                "entry.line_bits": (self.entry.line_bits, address_bits(self.crossbar_rows)),
                "entry.output_bits": (self.entry.output_bits, address_bits(self.conv_shape[0])),
            }
        for name, (found, right) in expected.items():
            if found != right:
                raise InputError(f"{source}: {name}", f"got {found}", f"{right}, from the shapes")

    def _different_sizes(self, other: LayerTables) -> list[str]:
        names = ("conv_shape", "groups", "epitome", "patch", "grid", "crossbar_rows", "entry")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
