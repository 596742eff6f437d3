"""Plans, crossbars and weights for the tests of the datapath, and the convolution that they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from epim_nas.datapath.cells import SliceRule
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.hardware.schedule import CrossbarGrid
from tests.epitome.test_plan import plans, reordered_plans
from tests.hardware.test_schedule import grids


@dataclass(frozen=True)
class Case:
    """A layer with one output position.

    Attributes:
        plan: the plan.
        grid: its crossbars.
        rows: rows of a crossbar.
        rule: the slices of its weights.
        epitome: (Oe, Ie, He, We) integers.
        inputs: (groups I, Kh, Kw) integers.
    """

    plan: SamplingPlan
    grid: CrossbarGrid
    rows: int
    rule: SliceRule
    epitome: np.ndarray
    inputs: np.ndarray

    @property
    def convolved(self) -> np.ndarray:
        """(O,) the integer convolution with the expanded weight."""
        weight = self.epitome.reshape(-1)[self.plan.weight_index]
        outputs, inputs = self.plan.conv_shape[:2]
        size = outputs // self.plan.groups
        return np.array(
            [(weight[o] * self.inputs[o // size * inputs :][:inputs]).sum() for o in range(outputs)]
        )


def sharing_input_slabs(plan: SamplingPlan) -> SamplingPlan:
    """The plan with wrapped input slabs; they have one order."""
    shared = SamplingPlan.build(
        plan.conv_shape, plan.shape, plan.wrap, patch=plan.patch, groups=plan.groups, wrap_in=True
    )
    order = plan.in_order and plan.in_order[:1]
    return shared.reordered(plan.out_order, order)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    plan = draw(st.one_of(plans(), reordered_plans()))
    if draw(st.booleans()):
        plan = sharing_input_slabs(plan)
    grid = draw(grids(plan))
    cells = plan.shape.height * plan.shape.width
    rows = grid.channels_per_row_group * cells + draw(st.integers(0, cells - 1))
    groups, polarity, cell_bits = (draw(st.integers(1, 2)) for _ in range(3))
    # Any number of slices that takes this grid's columns.
    most = grid.columns_per_output * grid.layers * groups
    slices = draw(st.integers(max(1, most - groups + 1), most))
    bits = max(2, slices * cell_bits + (1 if polarity == 2 else 0))
    rule = SliceRule(bits, cell_bits, polarity, groups, slices)
    if -(-(bits - (polarity == 2)) // cell_bits) > slices:  # 2 bits in a cell of 1
        rule = SliceRule(2, 2, polarity, groups, slices)
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    epitome = random.integers(-rule.largest, rule.largest + 1, plan.shape.as_tuple)
    inputs = random.integers(0, 16, (plan.groups * plan.conv_shape[1], *plan.conv_shape[2:]))
    return Case(plan, grid, rows, rule, epitome, inputs)
