"""Parts of the user: the shipped example, and what is said where a part is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from epim_nas import CostModel, InputError, load_chip, load_network, search
from epim_nas.cluster.registry import EXECUTORS
from epim_nas.extensions import register_choices, register_executor, register_metric
from epim_nas.pipeline.config import load_run_config
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import load_result
from epim_nas.records import RunResult, TrialRecord
from epim_nas.solver.metrics import METRICS, parse_objective
from epim_nas.space.config import SpaceConfig
from epim_nas.space.generators import GENERATORS
from epim_nas.space.space import SearchSpace
from epim_nas.study.strategies import STRATEGIES
from tests.pipeline.command import ROOT, run
from tests.pipeline.tiny import write_run

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    tables: list[dict] = [METRICS, GENERATORS, EXECUTORS, STRATEGIES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of examples/own_parts.yaml, searched by the command in its folder."""
    work = tmp_path_factory.mktemp("own")
    for name in ("gratings.py", "own_parts.py", "own_parts.yaml"):
        shutil.copy(EXAMPLES / name, work)
    done = run("search", "own_parts.yaml", "--out", "run", cwd=work)
    assert done.returncode == 0, done.stderr
    return work / "run"


def test_the_example_uses_its_own_parts(example: Path) -> None:
    front = json.loads(run("pareto", "run", "--json", cwd=example.parent).stdout)
    network = load_network(example / "network.yaml")
    cost = CostModel(network, load_chip("xbar_64"))
    assert front["trials"] == 16
    assert front["designs"]
    dense = cost.evaluate(weight_bits=32).totals
    totals = front["baseline"]["totals"]
    assert totals["latency_ns"] == pytest.approx(dense.latency_ns + 20 * dense.tiles)
    assert 0 < totals["noisy_accuracy"] <= 1
    shapes = set()
    for design in front["designs"]:
        metrics = design["metrics"]
        assert 0 < metrics["noisy_accuracy"] <= 1
        expected = 64 * metrics["crossbars"] / metrics["tiles"] * 100e-6
        assert metrics["programming_ms"] == pytest.approx(expected)
        shapes |= {choice.split()[0] for choice in design["layers"].values()}
        assert all("wrap" in c or c.startswith("dense") for c in design["layers"].values())
    assert len(shapes) > 1  # the generator's epitomes were chosen, not dense layers alone
    header, dense_row, *_ = (example / "front.csv").read_text().splitlines()
    assert header.endswith(",noisy_accuracy,programming_ms")
    assert float(dense_row.split(",")[-1]) == pytest.approx(totals["programming_ms"])
    assert "programming_ms" in (example / "report.html").read_text()


def test_costs_replace_ours_in_every_design(example: Path, monkeypatch) -> None:
    monkeypatch.chdir(example.parent)
    result = load_result(RunFolder(example))
    cost = CostModel(load_network(example / "network.yaml"), load_chip("xbar_64"))
    for trial in result.trials:
        ours = cost.evaluate(trial.design).totals
        assert trial.metrics["latency_ns"] == pytest.approx(ours.latency_ns + 20 * ours.tiles)
        assert trial.metrics["edp_nj_ns"] == pytest.approx(
            trial.metrics["latency_ns"] * trial.metrics["energy_nj"]
        )


def test_trials_are_called_back_with_once_each(tmp_path: Path) -> None:
    file = write_run(tmp_path, search__trials=5, finalists__count=0)
    seen: list[TrialRecord] = []
    config, _ = load_run_config(str(file))
    result: RunResult = search(config, tmp_path / "run", on_trial=seen.append)
    assert [record.number for record in seen] == [trial.number for trial in result.trials]
    search(config, tmp_path / "run", on_trial=seen.append)
    assert len(seen) == 5


def test_a_limit_on_an_own_cost_is_kept(tmp_path: Path) -> None:
    register_metric("latency_ns", lambda design, network, totals: 7.0 * totals["crossbars"])
    file = write_run(
        tmp_path, search__trials=6, finalists__count=0, budget={"latency_ns": 7.0 * 100}
    )
    config, _ = load_run_config(str(file))
    result = search(config, tmp_path / "run")
    assert result.front
    for trial in result.trials:
        assert trial.feasible
        assert trial.metrics["crossbars"] <= 100
        assert trial.metrics["latency_ns"] == 7 * trial.metrics["crossbars"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda design, network, totals: 1 / 0, "ZeroDivisionError"),
        (lambda design, network, totals: float("nan"), "a finite number"),
        (lambda design, network: 1.0, "TypeError"),
    ],
    ids=["raises", "not a number", "other arguments"],
)
def test_a_failing_metric_is_named(tmp_path: Path, function, says: str) -> None:
    register_metric("mine", function)
    file = write_run(tmp_path, objectives=["accuracy", "mine"], search__trials=3)
    config, _ = load_run_config(str(file))
    with pytest.raises(InputError, match=says) as caught:
        search(config, tmp_path / "run")
    assert caught.value.field == "metric mine"


def test_one_design_without_a_number_is_a_failed_trial(tmp_path: Path) -> None:
    calls: list[int] = []

    def mine(model, data) -> float:
        calls.append(1)
        return float("nan") if len(calls) == 4 else float(len(calls))

    register_metric("mine", mine, measured=True)
    file = write_run(
        tmp_path, objectives=["accuracy", "mine"], search__trials=6, finalists__count=0
    )
    config, _ = load_run_config(str(file))
    result = search(config, tmp_path / "run")
    failed = [trial for trial in result.trials if "mine" not in trial.metrics]
    assert len(calls) > 4
    assert len(result.trials) - len(failed) >= 4
    journal = (tmp_path / "run" / "study.journal").read_text()
    assert "metric mine gives nan" in journal


@pytest.mark.parametrize("name", ["crossbars", "accuracy", "compression", "two words", "min"])
def test_names_that_cannot_be_registered(name: str) -> None:
    with pytest.raises(InputError, match="name"):
        register_metric(name, lambda design, network, totals: 1.0)


def test_a_registered_name_is_an_objective_and_may_be_registered_again() -> None:
    for maximise in (True, False):
        register_metric("mine", lambda *_: 1.0, maximise=maximise)
        assert parse_objective("mine") == "mine"
        assert METRICS["mine"].maximise == maximise
    register_metric("energy_nj", lambda *_: 1.0)
    register_metric("energy_nj", lambda *_: 2.0)
    assert METRICS["energy_nj"].additive  # still bounded and swept as the cost that it is
    assert METRICS["energy_nj"].computed(None, None, {}) == 2.0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"extensions": ["not_there_at_all"]}, "extensions"),
        ({"executor": {"kind": "rai"}}, "executor.kind"),
        ({"objectives": ["accuracy", "mine"]}, "objectives"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, changes: dict, field: str) -> None:
    with pytest.raises(InputError, match=field):
        load_run_config(str(write_run(tmp_path, **changes)))


def test_wrong_choices_are_named(example: Path) -> None:
    network = load_network(example / "network.yaml")
    config = SpaceConfig.model_validate(
        {"schema": "epim-nas/space@1", "name": "mine", "defaults": {"generator": "mine"}}
    )
    with pytest.raises(InputError, match="`mine` is not a generator"):
        SearchSpace.build(config, network)
    register_choices("mine", lambda layer, chip: ["dense"])  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="objects of type `Choice`"):
        SearchSpace.build(config, network)
    register_choices("mine", lambda layer, chip: [1 / 0])  # type: ignore[list-item]
    with pytest.raises(InputError, match="ZeroDivisionError"):
        SearchSpace.build(config, network)


@pytest.mark.parametrize("name", ["edp_nj_ns", "trial", "test_top1"])
def test_names_that_would_be_ignored(name: str) -> None:
    with pytest.raises(InputError, match="name"):
        register_metric(name, lambda *_: 1.0)
    register_metric("latency_ns", lambda *_: 1.0)
    with pytest.raises(InputError, match="metric of the package"):  # its kind stays as it is
        register_metric("latency_ns", lambda *_: 1.0, measured=True)
    with pytest.raises(InputError, match="a function"):
        register_metric("mine", 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="register_executor"):
        register_executor("two words", lambda *_: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("measured", [False, True])
def test_a_metric_that_is_nothing_for_the_dense_network_can_be_mended(
    tmp_path: Path, measured: bool
) -> None:
    file = write_run(
        tmp_path, objectives=["accuracy", "mine"], search__trials=3, finalists__count=0
    )
    for value in (0.0, 2.0):
        register_metric("mine", lambda *_, value=value: value, measured=measured)
        config, _ = load_run_config(str(file))
        if value == 0:
            with pytest.raises(InputError, match=r"metric mine: gives 0\.0 for the dense network"):
                search(config, tmp_path / "run")
            assert not (tmp_path / "run/baseline.json").exists()
        else:
            assert search(config, tmp_path / "run").baseline.totals["mine"] == 2.0


def test_a_search_is_not_continued_with_other_costs(tmp_path: Path) -> None:
    file = write_run(tmp_path, search__trials=3, finalists__count=0)
    config, _ = load_run_config(str(file))
    search(config, tmp_path / "run")
    register_metric("energy_nj", lambda design, network, totals: 2 * totals["energy_nj"])
    with pytest.raises(InputError, match="another metrics"):
        search(config, tmp_path / "run")


def test_reports_say_whose_a_number_is(example: Path) -> None:
    page = (example / "report.html").read_text()
    best = (example / "best.yaml").read_text()
    for text in ("latency_ns by own_parts.with_links", "time to program the chip (ms)",
                 "top-1 on noisy images"):  # fmt: skip
        assert text in page
        assert text in best
    done = run("report", "run", "--to", "latex", cwd=example.parent)
    assert "latency\\_ns by own\\_parts.with\\_links" in done.stdout
    versions = json.loads((example / "versions.json").read_text())
    assert versions["epim_nas"] in page
