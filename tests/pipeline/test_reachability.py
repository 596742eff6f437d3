"""What a refused budget promises is accepted when it is typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from epim_nas.pipeline.config import BudgetConfig, RunConfig
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate, limits_of
from epim_nas.solver.unreachable_budget import UnreachableBudget, check_reachable
from epim_nas.units import at_least, ratio_at_most
from tests.pipeline.tiny import tiny_run

LIMITS = [name for name in BudgetConfig.model_fields if name != "compression"]
Case = tuple[int, Costs]


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of(32)


def case_of(width: int) -> Case:
    run = tiny_run(model={"name": "tests.pipeline.tiny:tiny_net", "args": {"width": width}})
    loaded = Run.load(RunConfig.model_validate(run), RunFolder(Path("none")))
    return loaded.dense_crossbars, Costs.of(loaded.cost, loaded.build_space())


def check(case: Case, **typed: float | str) -> None:
    """As a search does, with limits as they are typed."""
    dense, costs = case
    budget = BudgetConfig.model_validate(yaml.safe_load(str(typed).replace("'", "")))
    limits = limits_of(budget.model_dump(exclude_none=True), dense)
    problem = formulate(costs, limits, ["accuracy", "latency_ns", "energy_nj"])
    check_reachable(FeasibleSolver(problem), "compression" in typed)


@pytest.mark.parametrize("name", LIMITS)
def test_the_least_limit_is_accepted(case: Case, name: str) -> None:
    with pytest.raises(UnreachableBudget) as refused:
        check(case, **{name: 1})
    advice = refused.value.allowed
    promised = re.match(r"at least ([\d.]+) ", advice)
    assert promised, advice
    check(case, **{name: promised[1]})


@pytest.mark.parametrize("width", [20, 28, 36])
def test_the_largest_compression_is_accepted(width: int) -> None:
    case = case_of(width)
    with pytest.raises(UnreachableBudget) as refused:
        check(case, compression=5000)
    ratio = re.search(r"a compression of at most ([\d.]+)$", refused.value.allowed)
    assert ratio, refused.value.allowed
    check(case, compression=ratio[1])
    with pytest.raises(UnreachableBudget):  # and it is no smaller than need be
        check(case, compression=float(ratio[1]) + 0.01)


def test_the_least_limits_of_several_are_accepted_alone(case: Case) -> None:
    with pytest.raises(UnreachableBudget) as refused:
        check(case, **dict.fromkeys(LIMITS, 1))
    words = {"bits of weights": "weight_bits"}
    parts = re.findall(r"([\d.]+) ([a-z_0-9]+(?: of weights)?)", refused.value.allowed)
    found = {words.get(name, name): limit for limit, name in parts}
    assert set(found) == set(LIMITS)
    for name in ("tiles", "latency_ns"):
        check(case, **{name: found[name]})


@given(st.floats(1e-12, 1e18))
def test_what_is_rounded_up_is_near_and_not_below(value: float) -> None:
    text = at_least(value)
    assert re.fullmatch(r"\d+(\.\d+)?", text)
    assert value <= float(text) <= value * (1 + 2e-5)
    assert len(text.replace(".", "").strip("0")) <= 6 or value.is_integer()


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_promised_ratio_leaves_the_crossbars(dense: int, least: int) -> None:
    ratio = float(ratio_at_most(dense, least))
    assert dense / least - 0.0100001 < ratio
    assert ratio * least <= dense * (1 + 1e-15)
