"""IFAT, IFRT and OFAT: a layer's sampling plan as the integer tables that address its crossbars.

IFAT says which input channels a round fetches, IFRT which word line each of them drives, OFAT where
the results are written. The names are those of EPIM (Wang et al., DAC 2024); ``docs/datapath.md``
has the layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.plan import Round, SamplingPlan
from epim_nas.errors import InputError
from epim_nas.hardware.schedule import CrossbarGrid, schedule

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NOTHING = -1
"""The entry of a table where nothing is fetched, driven, converted or written."""


@dataclass(frozen=True, eq=False)
class IndexTables:
    """IFAT, IFRT and OFAT of one layer: integer arrays with one row per activation round.

    R rounds; patches of Op output and Ip input channels; T input slabs that are summed before they
    are driven (1 where none are); K replicas at most; X rows of a crossbar. Unused entries are -1.

    Attributes:
        slot: (R,) time slot of the round.
        opens: (R,) whether it is the first round of its outputs; the others accumulate.
        closes: (R,) whether it is the last round of its outputs.
        ifat: (R, T, Ip) input channel that is fetched, of all groups' channels.
        ifrt: (R, Ip) first word line that it drives: row group * X + line in the crossbar. Kernel
            cell (i, j) is ``i * We + j`` lines further.
        columns: (R, Op) output channel of the epitome that is converted.
        ofat: (R, 1 + K, Op) output channel where the result is written or accumulated
            (``[:, 0]``), and where its copies are written (``[:, 1:]``; output-channel wrapping).
    """

    slot: IntArray
    opens: BoolArray
    closes: BoolArray
    ifat: IntArray
    ifrt: IntArray
    columns: IntArray
    ofat: IntArray

    @classmethod
    def build(cls, plan: SamplingPlan, grid: CrossbarGrid, crossbar_rows: int) -> IndexTables:
        """The tables of a plan on the crossbars of a grid.

        The plan's channel orders are absorbed: input orders in the IFAT, output orders in the OFAT.

        Args:
            plan: the sampling plan.
            grid: how the epitome is cut (:func:`~epim_nas.hardware.mapping.crossbar_grid`).
            crossbar_rows: X.

        Raises:
            InputError: the grid is not that of the plan's epitome, or too few rows.
        """
        _check_grid(plan, grid, crossbar_rows)
        turns = plan.round_sequence
        patch_out, patch_in = plan.patch
        count, copies = len(turns), max(turn.replicas for turn in turns)
        slabs = max(turn.input_slabs for turn in turns)
        ifat = np.full((count, slabs, patch_in), NOTHING)
        ifrt = np.full((count, patch_in), NOTHING)
        columns = np.full((count, patch_out), NOTHING)
        ofat = np.full((count, 1 + copies, patch_out), NOTHING)
        for row, turn in enumerate(turns):
            inputs = np.arange(turn.patch.in_channels)
            channels = turn.patch.source_in + (inputs + turn.patch.rotation) % patch_in
            ifat[row, :, : inputs.size] = _input_channels(plan, turn)
            ifrt[row, : inputs.size] = _word_lines(plan, grid, crossbar_rows, turn, channels)
            outputs = (turn.first + np.arange(turn.out_channels)) % patch_out
            columns[row, : outputs.size] = turn.patch.source_out + outputs
            targets = _output_channels(plan, turn)
            ofat[row, : len(targets), : outputs.size] = targets
        return cls(
            slot=np.array(schedule(plan, grid).slot_of_round),
            opens=np.array([turn.opens for turn in turns]),
            closes=np.array([turn.closes for turn in turns]),
            ifat=ifat,
            ifrt=ifrt,
            columns=columns,
            ofat=ofat,
        )

    @property
    def rounds(self) -> int:
        """R, the activation rounds of one output position."""
        return len(self.slot)

    @property
    def slots(self) -> int:
        """Time slots of one output position."""
        return int(self.slot.max()) + 1

    def equals(self, other: IndexTables) -> bool:
        """Whether all entries are the same."""
        return all(
            np.array_equal(getattr(self, entry.name), getattr(other, entry.name))
            for entry in fields(self)
        )


def _check_grid(plan: SamplingPlan, grid: CrossbarGrid, crossbar_rows: int) -> None:
    cells = plan.shape.height * plan.shape.width
    row_groups = -(-plan.shape.in_channels // grid.channels_per_row_group)
    if grid.outputs != plan.shape.out_channels or grid.row_groups != row_groups:
        raise InputError(
            "grid",
            f"got {grid.outputs} outputs in {grid.row_groups} row groups",
            f"the {plan.shape.out_channels} outputs in {row_groups} row groups of epitome "
            f"{plan.shape}",
            "Make it with `crossbar_grid(plan, weight_bits, chip)`.",
        )
    if grid.channels_per_row_group * cells > crossbar_rows:
        raise InputError(
            "crossbar_rows",
            f"got {crossbar_rows}",
            f"at least {grid.channels_per_row_group * cells}, the rows of "
            f"{grid.channels_per_row_group} channels",
        )


def _input_channels(plan: SamplingPlan, turn: Round) -> IntArray:
    """(summed slabs, I of the patch) the layer's input channels; -1 past the end of the last."""
    inputs, patch_in = plan.conv_shape[1], plan.patch[1]
    steps = np.arange(turn.input_slabs)[:, None] * patch_in
    positions = turn.patch.target_in + steps + np.arange(turn.patch.in_channels)
    inside = positions < inputs
    positions = np.where(inside, positions, 0)
    if plan.in_order is not None:
        positions = np.array(plan.in_order[turn.patch.target_out // plan.patch[0]])[positions]
    return np.where(inside, turn.group * inputs + positions, NOTHING)


def _word_lines(
    plan: SamplingPlan, grid: CrossbarGrid, crossbar_rows: int, turn: Round, channels: IntArray
) -> IntArray:
    """The first word line of every epitome channel in ``channels``."""
    row_group, local = np.divmod(channels, grid.channels_per_row_group)
    offset = turn.patch.top * plan.shape.width + turn.patch.left
    cells = plan.shape.height * plan.shape.width
    return row_group * crossbar_rows + local * cells + offset


def _output_channels(plan: SamplingPlan, turn: Round) -> IntArray:
    """(1 + replicas, outputs) where every result goes; -1 past the end of the group."""
    group_channels, period = plan.conv_shape[0] // plan.groups, plan.patch[0]
    end = (turn.group + 1) * group_channels
    # A wrapped round computes the first outputs of its group, whatever the patch's own target.
    start = turn.group * group_channels if plan.wrap else turn.patch.target_out + turn.first
    steps = np.arange(1 + turn.replicas)[:, None] * period
    positions = start + steps + np.arange(turn.out_channels)
    inside = positions < end
    channels = np.where(inside, positions, 0)
    if plan.out_order is not None:
        channels = np.array(plan.out_order)[channels]
    return np.where(inside, channels, NOTHING)
