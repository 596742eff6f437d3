"""``search``: the main job, from a run file to a folder of results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from epim_nas import interrupts
from epim_nas.cluster.registry import find_executor
from epim_nas.errors import InterruptedRun
from epim_nas.files import dump_yaml
from epim_nas.network.yaml_io import network_to_dict
from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import make_scorer
from epim_nas.pipeline.preflight import check_cluster, check_trainings
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.results import load_result, open_store, versions, write_results
from epim_nas.pipeline.reuse import take_over
from epim_nas.pipeline.stages.baseline import prepare_baseline
from epim_nas.pipeline.stages.finalists import choose_finalists, finetune_finalists
from epim_nas.pipeline.stages.first_designs import exact_designs, first_designs
from epim_nas.pipeline.stages.sensitivity import measure_sensitivity
from epim_nas.pipeline.stages.supernet import prepare_supernet, train_supernet
from epim_nas.pipeline.stages.trials import describe_trials, run_trials
from epim_nas.records import RunResult, TrialRecord
from epim_nas.report.notes import chip_page, space_page
from epim_nas.report.tensorboard import DashboardWriter
from epim_nas.report.workers import WorkersWriter
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate, limits_of
from epim_nas.solver.metrics import own_sources
from epim_nas.solver.problem import SearchProblem
from epim_nas.solver.unreachable_budget import UnreachableBudget, check_reachable
from epim_nas.space.space import SearchSpace
from epim_nas.stored import store_json, store_text
from epim_nas.study.storage import open_url

log = logging.getLogger(__name__)


def search(
    run: RunConfig | str | Path,
    out: str | Path | None = None,
    *,
    overrides: list[str] | None = None,
    reporter: Reporter | None = None,
    on_trial: Callable[[TrialRecord], None] | None = None,
) -> RunResult:
    """Search the designs of a run file, or finish a search that was interrupted.

    Stages: baseline, sensitivity, exact seeds, supernet, trials, finalists, results. Each is kept
    in the folder, so calling it again with the same arguments goes on where it stopped.

    Args:
        run: a run file's name or path, or a configuration.
        out: the run folder; ``runs/NAME`` by default.
        overrides: ``key.path=value`` changes to a run file.
        reporter: shows the progress.
        on_trial: called with every design that is scored from now on, once it is stored.

    Returns:
        Everything that the run folder holds.

    Raises:
        InputError: something in the run file, the data or the folder is wrong.
        InterruptedRun: interrupted by the user; everything finished is saved.
    """
    if isinstance(run, RunConfig):
        config, path = run, _results_folder(run, out)
    else:
        config, path = resolve_run(str(run), out, overrides)
    folder = RunFolder(path)
    with folder.locked():
        folder.adopt(config)
        try:
            return _run(config, folder, reporter or Reporter(), on_trial)
        except KeyboardInterrupt:
            raise InterruptedRun(
                f"interrupted; everything finished is saved in {folder.path}. "
                "Type the same command to go on."
            ) from None


def resolve_run(
    run: str, out: str | Path | None = None, overrides: list[str] | None = None
) -> tuple[RunConfig, Path]:
    """A run file's configuration and the folder for its results."""
    config, _ = load_run_config(run, overrides)
    return config, _results_folder(config, out)


def _results_folder(config: RunConfig, out: str | Path | None) -> Path:
    return Path(out) if out is not None else Path("runs") / config.name


def _run(
    config: RunConfig,
    folder: RunFolder,
    reporter: Reporter,
    on_trial: Callable[[TrialRecord], None] | None,
) -> RunResult:
    if config.search.storage is not None:
        open_url(config.search.storage)  # a wrong one should not show after the baseline
    torch.manual_seed(config.seed)
    run = Run.load(config, folder, reporter)
    check_trainings(run)
    check_cluster(config, folder)
    space = run.build_space()
    log.info(
        "network %s: %d layers on crossbars; space %s: 10^%.1f designs (%d dominated choices "
        "dropped); dense: %d crossbars",
        run.network.name,
        len(run.network.weighted),
        space.name,
        space.log10_size,
        space.dropped,
        run.dense_crossbars,
    )
    budget = config.budget.model_dump(exclude_none=True)
    limits = limits_of(budget, run.dense_crossbars)
    costs = Costs.of(run.cost, space)
    problem = formulate(costs, limits, config.objectives, config.seed)
    try:
        check_reachable(FeasibleSolver(problem), "compression" in budget)
    except UnreachableBudget as error:
        raise _with_nearest(error, run) from None
    _describe(run, space)
    run.dense_totals()  # an objective that is wrong should not show after the baseline
    folder.note_versions(versions())

    take_over(config, folder)
    model, baseline = prepare_baseline(run)
    log.info(
        "baseline: top-1 %.2f %% validation, %.2f %% test",
        100 * baseline.validation_accuracy,
        100 * baseline.test_accuracy,
    )
    supernet = prepare_supernet(run, model, space)
    problem = problem.with_sensitivity(measure_sensitivity(run, supernet))
    solver = FeasibleSolver(problem)
    seeds = exact_designs(run, solver)
    settings = {"budget": limits, "seed": config.seed, "metrics": own_sources()}
    store = open_store(folder, config, space, settings)
    store_json(folder.budget, limits)
    with DashboardWriter(
        folder.tensorboard, config.name, config.objectives, limits, baseline
    ) as dashboard:
        dashboard.add_stored(store.records())
        curve = train_supernet(run, supernet, model, solver, seeds)
        store_json(folder.supernet, curve)
        for step, loss in curve:
            dashboard.add_supernet_loss(step, loss)
        scorer = make_scorer(run, supernet, model)
        with (
            WorkersWriter(folder.tensorboard) as workers,
            find_executor(config.executor.kind)(lambda: scorer, config.executor) as executor,
        ):

            def show(record: TrialRecord) -> None:
                dashboard.add_trial(record)
                if config.executor.kind != "local":
                    workers.add(executor.state, record.number + 1, record.seconds)
                if on_trial is not None:
                    on_trial(record)

            with folder.timed("search"):
                first = first_designs(run, supernet, model, solver, seeds)
                run_trials(run, solver, first, store, executor, show)
        log.info(describe_trials(store))
        records = store.records()
        if records and not any(record.feasible for record in records):
            log.warning(_nothing_feasible(problem, records))
        chosen = choose_finalists(records, config.objectives, config.finalists.count)
        # After the search's workers are gone: on Ray they hold what the trainings need.
        finetune_finalists(run, space, chosen, store, scorer, dashboard.add_finalist)
        interrupts.check()
        result = load_result(folder, store)
        write_results(result, folder, run.cost, run.network)
        knee = next((r for r in result.trials if r.number == result.selected.get("knee")), None)
        dashboard.finish(
            result,
            network=run.network,
            cost=run.cost.evaluate(knee.design) if knee else None,
            run_folder=str(folder.path),
            texts={"chip": chip_page(run.chip), "space": space_page(space)},
        )
    interrupts.check()
    return result


def _nothing_feasible(problem: SearchProblem, records: Sequence[TrialRecord]) -> str:
    """What to say where no scored design keeps the budget."""
    excess = {
        record.number: max(
            value / problem.limits[name]
            for name, value in problem.violations(problem.space.row(record.design)).items()
        )
        for record in records
    }
    nearest = min(excess, key=lambda number: excess[number])
    return (
        f"none of the {len(records)} scored designs keeps the budget, so the front is empty; trial "
        f"{nearest} comes nearest, {100 * excess[nearest]:.0f} % above a limit. Set "
        "search.repair=true, or take the strategy `epitome`, which score nothing beyond it"
    )


def _with_nearest(error: UnreachableBudget, run: Run) -> UnreachableBudget:
    """The error, with the design that comes nearest as a file in the folder."""
    assert error.design is not None
    path = run.folder.path / "nearest.yaml"
    totals = run.cost.evaluate(error.design).totals
    replace(error.design, totals=asdict(totals)).save(path)
    return UnreachableBudget(
        error.field, error.problem, error.allowed, f"{error.hint} The nearest design is in {path}."
    )


def _describe(run: Run, space: SearchSpace) -> None:
    """Store what turns indices into designs, so that results can be read offline."""
    store_text(run.folder.network, dump_yaml(network_to_dict(run.network)))
    store_json(run.folder.space, space.to_dict())
    store_text(run.folder.chip, dump_yaml(run.chip.to_dict()))
