"""Lower bounds against every design of small spaces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from epim_nas import Choice, CostModel, EpitomeShape, SearchSpace
from epim_nas.hardware import BatchCostModel, load_chip
from epim_nas.hardware.lower_bounds.floors import Floors
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.solver import exact
from epim_nas.solver.exact import Certificate, Exact, Limit, Unreachable, minimise, total
from epim_nas.solver.exact_front import _followed, _solutions, exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import _standins
from epim_nas.solver.knapsack import Infeasible
from epim_nas.solver.lower_bounds import Bounds
from epim_nas.solver.near_optimum_costs import ENERGY, find_standins
from epim_nas.solver.problem import PIPELINED, SearchProblem, StandIn
from epim_nas.space import Group
from tests.hardware.nets import chain, conv, residual


def sums() -> Network:
    """Two sums in a row, read by a convolution; the second one's readers come after pooling."""
    layers = (
        conv("a", "input", 3, 32, 8),
        conv("b", "a", 32, 64, 8),
        conv("c", "a", 32, 64, 8, kernel=1),
        LayerSpec("s", "element_sum", ("b", "c"), 64, 64, (8, 8), (8, 8)),
        conv("d", "s", 64, 64, 8),
        LayerSpec("t", "element_sum", ("s", "d"), 64, 64, (8, 8), (8, 8)),
        LayerSpec("p", "pooling", ("t",), 64, 64, (8, 8), (1, 1), (8, 8), (8, 8), (0, 0)),
        LayerSpec("f", "fc", ("p",), 64, 10),
    )
    return Network("sums", layers, (3, 8, 8))


def choices_of(network: Network, activation_bits: tuple[int, ...]) -> dict[str, tuple[Choice, ...]]:
    found = {}
    for layer in network.weighted:
        outputs, inputs, height, width = layer.weight_shape
        bits = activation_bits[0]
        choices = [Choice(weight_bits=5, activation_bits=bits)]
        if layer.type == "conv" and inputs > 3:
            small = EpitomeShape(outputs // 4, max(1, inputs // 4), height, width)
            half = EpitomeShape(outputs // 2, inputs, height, width)
            choices += [Choice(small, False, 5, bits), Choice(small, True, 5, bits)]
            choices += [Choice(half, True, 5, other) for other in activation_bits]
        elif layer.type == "conv":
            choices += [Choice(weight_bits=9, activation_bits=activation_bits[-1])]
        found[layer.name] = tuple(choices)
    return found


BOTH = (ENERGY, PIPELINED)


class Case:
    """A network's space, and the real costs of all of its designs."""

    def __init__(
        self, network: Network, chip: str, bits: tuple[int, ...], tied: tuple[str, ...] = ()
    ) -> None:
        choices = choices_of(network, bits)
        groups = [tied] * bool(tied) + [(name,) for name in choices if name not in tied]
        order = list(choices)
        groups.sort(key=lambda group: order.index(group[0]))
        self.space = SearchSpace(
            "test",
            network.name,
            tuple(
                Group(group[0], group, tuple(zip(*(choices[name] for name in group), strict=True)))
                for group in groups
            ),
        )
        cost = CostModel(network, load_chip(chip))
        self.model: BatchCostModel = cost.batch(self.space.layer_choices)
        self.crossbars = self.space.group_sums(
            cost.table(self.space.layer_choices).by_layer("crossbars")
        )
        self.rows = np.array(
            list(itertools.product(*(range(len(group)) for group in self.space.groups)))
        )
        owner = {name: i for i, group in enumerate(groups) for name in group}
        self.by_layer = self.rows[:, [owner[name] for name in self.model.names]]
        self.totals = self.model.totals(self.by_layer)

    def bounds(self, budget: int) -> Bounds:
        return Bounds(self.space, Floors(self.model), self.crossbars, budget)


CASES: dict[str, Callable[[], Case]] = {
    "chain": lambda: Case(chain(), "xbar_64", (9,)),
    "residual": lambda: Case(residual(), "xbar_64", (9,)),
    "residual, several bits": lambda: Case(residual(), "xbar_64", (9, 4)),
    "residual, other mesh": lambda: Case(residual(), "mnsim_default", (9,)),
    "sums": lambda: Case(sums(), "xbar_64", (9,)),
    "sums, 256": lambda: Case(sums(), "epim_256", (9,)),
    "sums, tied": lambda: Case(sums(), "xbar_64", (9, 6), tied=("b", "c")),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def test_no_design_is_below_the_bounds(case: Case) -> None:
    crossbars = case.totals["crossbars"]
    energy, latency = case.totals["energy_nj"], case.totals["latency_ns"]
    for budget in np.quantile(crossbars, [0.0, 0.05, 0.3, 1.0]).astype(int):
        kept = crossbars <= budget
        bounds = case.bounds(int(budget))
        close = 1 + 1e-9
        assert 0 < bounds.energy_nj.certificate.bound <= energy[kept].min() * close
        assert 0 < bounds.latency_ns <= latency[kept].min() * close
        assert 0 < bounds.product <= (energy * latency)[kept].min() * close
        # They are worth something. A budget in between is where shares of choices gain most.
        between = crossbars.min() < budget < crossbars.max()
        equal_bits = Floors(case.model).exact
        assert bounds.energy_nj.certificate.bound >= (1 - 1e-9 if equal_bits else 0.95) * (
            energy[kept].min()
        )
        tightness = 0.7 if between else 0.97 if equal_bits else 0.9
        assert bounds.latency_ns >= tightness * latency[kept].min()
        assert bounds.product >= (0.9 if equal_bits else 0.65) * (energy * latency)[kept].min()
        assert bounds.product >= bounds.latency_ns * bounds.energy_nj.loss * (1 - 1e-9)


def test_energy_is_exact_with_equal_bits(case: Case) -> None:
    bounds = case.bounds(int(case.totals["crossbars"].max()))
    if not Floors(case.model).exact:
        pytest.skip("activation bits differ")
    assert bounds.energy_nj.loss == pytest.approx(case.totals["energy_nj"].min(), rel=1e-12)
    assert bounds.energy_nj.certificate == Certificate(
        bounds.energy_nj.loss, bounds.energy_nj.loss, "dynamic programming"
    )
    index = int(np.flatnonzero((case.rows == bounds.energy_nj.row).all(1))[0])
    assert case.totals["energy_nj"][index] == pytest.approx(bounds.energy_nj.loss, rel=1e-12)


def test_every_design_is_above_the_floors_of_its_layers(case: Case) -> None:
    floors = Floors(case.model)
    steps = floors.steps(int(case.totals["tiles"].max()))
    sample = case.by_layer[np.random.default_rng(0).permutation(len(case.by_layer))[:300]]
    mapping, bits = case.model.gather(sample)
    equations = case.model.equations
    real = equations.times(mapping, bits, equations.layout(mapping, bits)).steps
    for number, name in enumerate(case.model.names):
        index = floors.network.index[name]
        assert (real[:, :, index] >= steps.choices[name][:, sample[:, number]] * (1 - 1e-12)).all()
    assert (real.min(1) >= steps.fixed * (1 - 1e-12)).all()
    assert (case.totals["tiles"] >= floors.other_tiles).all()


def test_a_critical_path_is_the_latency_and_no_longer_than_any_other(case: Case) -> None:
    sample = case.by_layer[:: max(1, len(case.by_layer) // 20)]
    mapping, bits = case.model.gather(sample)
    equations = case.model.equations
    steps = equations.times(mapping, bits, equations.layout(mapping, bits)).steps
    _, latency = equations.pipeline.run(steps)
    for design in range(len(sample)):
        counts = equations.pipeline.critical_path(steps[:, design])
        lengths = (counts[:, None] * steps).sum((0, 2))
        assert lengths[design] == pytest.approx(latency[design], rel=1e-12)
        assert (lengths <= latency * (1 + 1e-12)).all()


def test_standins_are_scores_of_every_choice(case: Case) -> None:
    bounds = case.bounds(int(np.median(case.totals["crossbars"])))
    standins = find_standins(bounds, BOTH, 2)
    assert 1 <= len(standins) <= 2
    for standin in standins:
        assert set(standin.costs) == {"energy_nj", "latency_ns"}
        for scores in standin.costs.values():
            assert [len(s) for s in scores] == [len(group) for group in case.space.groups]
            assert all(np.isfinite(s).any() for s in scores)
    # At least as good as the floors: no mix of paths is longer than a design's latency.
    mixed = sum(scores[case.rows[:, g]] for g, scores in enumerate(standins[0].costs["latency_ns"]))
    assert (mixed <= case.totals["latency_ns"] * (1 + 1e-6)).all()


def test_a_standin_that_follows_a_row_knows_more_of_its_latency(case: Case) -> None:
    standin = find_standins(case.bounds(int(np.median(case.totals["crossbars"]))), BOTH, 1)[0]
    for index in (0, len(case.rows) // 2, len(case.rows) - 1):
        row = tuple(case.rows[index].tolist())
        assert standin.followed is not None
        later = standin.followed(row)
        before, after = (
            sum(scores[case.rows[:, g]] for g, scores in enumerate(s.costs["latency_ns"]))
            for s in (standin, later)
        )
        assert after[index] >= before[index] * (1 - 1e-9)
        assert (after <= case.totals["latency_ns"] * (1 + 1e-6)).all()
        assert later.costs["energy_nj"] is standin.costs["energy_nj"]


def test_the_seeds_have_the_design_of_least_energy() -> None:
    """Also where the fitted costs are wrong: the stand-ins know it."""
    case = CASES["sums"]()
    budget = int(np.median(case.totals["crossbars"]))
    wrong = [np.random.default_rng(0).random(len(group)) for group in case.space.groups]
    problem = SearchProblem(
        space=case.space,
        sensitivity=[np.zeros(len(group)) for group in case.space.groups],
        costs={"crossbars": case.crossbars, "energy_nj": wrong},
        limits={"crossbars": budget},
        objectives=("energy_nj",),
        model=case.model.totals,
        find_standins=lambda: find_standins(case.bounds(budget), BOTH, 2),
    )
    least = case.totals["energy_nj"][case.totals["crossbars"] <= budget].min()
    rows = np.array([seed.row for seed in exact_seeds(FeasibleSolver(problem), 4)])
    assert case.model.totals(rows)["energy_nj"].min() == pytest.approx(least, rel=1e-12)
    without = np.array(
        [s.row for s in exact_seeds(FeasibleSolver(replace(problem, find_standins=None)), 4)]
    )
    assert case.model.totals(without)["energy_nj"].min() > least


def test_a_budget_that_no_design_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["chain"]()
    least = int(case.totals["crossbars"].min())
    for cells in (exact._MOST_CELLS, 0):
        monkeypatch.setattr(exact, "_MOST_CELLS", cells)
        with pytest.raises(Infeasible) as caught:
            case.bounds(least - 1)
        assert caught.value.least == least
        assert case.bounds(least).latency_ns > 0


def test_bounds_of_budgets_that_are_too_large_for_a_table(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also tight ones: with the smallest buffers a layer may then have no choice."""
    crossbars = case.totals["crossbars"]
    for budget in np.unique(np.quantile(crossbars, [0.0, 0.1, 1.0]).astype(int)):
        bounds = case.bounds(int(budget))
        with monkeypatch.context() as patch:
            patch.setattr(exact, "_MOST_CELLS", 0)
            others = case.bounds(int(budget))
            assert others.energy_nj.loss == pytest.approx(bounds.energy_nj.loss, rel=1e-5)
            assert others.latency_ns == pytest.approx(bounds.latency_ns, rel=1e-5)
            assert len(find_standins(others, BOTH, 2)) == len(find_standins(bounds, BOTH, 2))


def test_a_run_goes_on_where_there_are_no_standins(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["chain"]()
    budget = int(np.median(case.totals["crossbars"]))
    costs = SimpleNamespace(model=case.model)
    assert _standins(case.space, costs, case.crossbars, budget, BOTH)  # type: ignore[arg-type]
    assert not _standins(case.space, costs, case.crossbars, 1, BOTH)  # type: ignore[arg-type]
    for error in (Unreachable("no time"), Infeasible(2, 1)):
        monkeypatch.setattr(Bounds, "cases", property(Mock(side_effect=error)))
        assert not _standins(case.space, costs, case.crossbars, budget, BOTH)  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setattr(exact, "_MOST_CELLS", 0)
    assert not _standins(case.space, costs, case.crossbars, budget, BOTH)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [Unreachable("no time"), None])
def test_bounds_hold_where_the_integer_program_runs_out_of_time(
    monkeypatch: pytest.MonkeyPatch, found: Unreachable | None
) -> None:
    """It may have found nothing by then, or a design that is not the best."""
    case = CASES["sums"]()
    budget = int(np.median(case.totals["crossbars"]))

    def stopped(losses: list[np.ndarray], limits: list[Limit]) -> Exact:
        if found is not None:
            raise found
        heavy = [np.asarray(scores) for scores in limits[0].scores]
        row = tuple(int(np.argmin(scores)) for scores in heavy)
        best, loss = minimise(losses, limits).loss, total(losses, row)
        return Exact(row, loss, Certificate(loss, best - 0.25, "integer program"))

    monkeypatch.setattr("epim_nas.solver.lower_bounds.minimise", stopped)
    kept = case.totals["crossbars"] <= budget
    energy, latency = case.totals["energy_nj"][kept], case.totals["latency_ns"][kept]
    bounds = case.bounds(budget)
    assert bounds.energy_nj.certificate.bound <= energy.min()
    assert bounds.energy_nj.certificate.loss == bounds.energy_nj.loss
    assert bounds.latency_ns <= latency.min() * (1 + 1e-9)
    assert bounds.product <= (energy * latency).min() * (1 + 1e-9)


@pytest.mark.parametrize("solved", [0, 1, 3])
def test_bounds_hold_where_the_linear_program_fails(
    monkeypatch: pytest.MonkeyPatch, solved: int
) -> None:
    """After some programs, the solver gives up; what it returns then is worth nothing."""
    case = CASES["residual"]()
    budget = int(np.median(case.totals["crossbars"]))
    kept = case.totals["crossbars"] <= budget
    bounds, calls = case.bounds(budget), itertools.count()
    program = bounds._program

    def failing(costs: Any, *others: Any) -> Any:
        if next(calls) < solved:
            return program(costs, *others)
        return SimpleNamespace(status=4, message="numbers", fun=1e12, x=np.ones(len(costs)))

    monkeypatch.setattr(bounds, "_program", failing)
    energy, latency = case.totals["energy_nj"][kept], case.totals["latency_ns"][kept]
    assert 0 < bounds.latency_ns <= latency.min()
    assert 0 < bounds.product <= (energy * latency).min()
    mixed = find_standins(bounds, BOTH, 1)[0].costs["latency_ns"]
    assert any(np.ptp(scores) > 0 for scores in mixed)


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["sums"]()
    bounds = case.bounds(int(np.median(case.totals["crossbars"])))
    refused = property(Mock(side_effect=AssertionError("not needed")))
    with monkeypatch.context() as patch:
        patch.setattr(Bounds, "path_mix", refused)
        (standin, *_) = find_standins(bounds, (ENERGY,), 2)
        assert set(standin.costs) == {ENERGY}
        assert standin.followed is None
    with monkeypatch.context() as patch:
        patch.setattr(Bounds, "cases", refused)
        (standin,) = find_standins(bounds, (PIPELINED,), 2)
        assert set(standin.costs) == {PIPELINED}
        assert standin.followed is not None
        assert set(standin.followed((0,) * len(case.space.groups)).costs) == {PIPELINED}
    assert find_standins(bounds, (), 2) == []


def problem_of(case: Case, objectives: tuple[str, ...], budget: int) -> SearchProblem:
    """Costs that are wrong, and stand-ins that are right."""
    rng = np.random.default_rng(0)
    wrong = {
        name: [rng.random(len(group)) for group in case.space.groups]
        for name in (ENERGY, PIPELINED)
    }

    def model(rows: np.ndarray) -> dict[str, np.ndarray]:
        totals = case.model.totals(rows)
        return totals | {"edp_nj_ns": totals[ENERGY] * totals[PIPELINED]}

    return SearchProblem(
        space=case.space,
        sensitivity=[np.zeros(len(group)) for group in case.space.groups],
        costs={"crossbars": case.crossbars, **wrong},
        limits={"crossbars": budget},
        objectives=objectives,
        model=model,
        find_standins=lambda: find_standins(case.bounds(budget), BOTH, 2),
    )


@pytest.mark.parametrize("objectives", [("max edp_nj_ns",), ("max energy_nj", "max latency_ns")])
def test_standins_are_for_what_is_to_fall(objectives: tuple[str, ...]) -> None:
    case = CASES["sums"]()
    problem = problem_of(case, objectives, int(np.median(case.totals["crossbars"])))
    assert problem.falling == frozenset()
    without = [s.row for s in exact_seeds(FeasibleSolver(replace(problem, find_standins=None)), 6)]
    assert [seed.row for seed in exact_seeds(FeasibleSolver(problem), 6)] == without


def test_seeds_say_whether_stand_ins_made_them() -> None:
    case = CASES["sums"]()
    problem = problem_of(case, ("edp_nj_ns",), int(np.median(case.totals["crossbars"])))
    seeds = _solutions(FeasibleSolver(problem), 6)
    assert {seed.stands_in for seed in seeds} == {True, False}
    for seed in seeds:
        if not seed.stands_in:  # what is proven is about the problem's own costs
            losses = problem.scalarised(seed.weights)
            assert problem.total(losses, seed.row) == pytest.approx(seed.certificate.loss)
            assert FeasibleSolver(problem).solve(losses).loss == pytest.approx(
                seed.certificate.loss
            )


def test_a_standin_is_followed_as_long_as_it_finds_other_rows() -> None:
    case = CASES["chain"]()
    problem = problem_of(case, ("latency_ns",), int(np.median(case.totals["crossbars"])))
    asked: list[tuple[int, ...]] = []

    def always_the_same(costs: StandIn) -> StandIn:
        def followed(row: tuple[int, ...]) -> StandIn:
            asked.append(row)
            return always_the_same(costs)

        return StandIn(costs.costs, followed)

    standin = always_the_same(find_standins(case.bounds(10**6), (PIPELINED,), 1)[0])
    list(_followed(FeasibleSolver(problem), {PIPELINED: 1.0}, standin))
    assert len(asked) == 1
    asked.clear()
    list(_followed(FeasibleSolver(problem), {"sensitivity": 1.0}, standin))
    assert not asked
