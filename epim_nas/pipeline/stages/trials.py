"""The search proper: ask for designs, have them scored, store what came back."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from epim_nas.cluster.executor import Executor
from epim_nas.errors import EpimError
from epim_nas.pipeline.config import SearchConfig
from epim_nas.pipeline.context import Run
from epim_nas.records import Origin, TrialRecord
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.solver.ranking import expected_rank
from epim_nas.space.space import Row
from epim_nas.study.history import METRICS_ATTRIBUTE, distributions, params_of, row_of
from epim_nas.study.inflight import Pending
from epim_nas.study.samplers import HOW_ATTRIBUTE
from epim_nas.study.storage import collector_paused
from epim_nas.study.store import TrialStore, as_in_memory
from epim_nas.study.strategies import Options, find_strategy

log = logging.getLogger(__name__)

_MAX_REPEATS = 10
"""So many known designs in a row, with nothing in flight, mean that there is nothing new."""
_MAX_FAILURES = 5
"""So many failed evaluations in a row mean that something is wrong with all of them."""


def run_trials(
    run: Run,
    solver: FeasibleSolver,
    seeds: Sequence[Row],
    store: TrialStore,
    executor: Executor,
    on_trial: Callable[[TrialRecord], None] = lambda record: None,
) -> None:
    """Score designs until the run file's number of trials is stored.

    The study lives in memory (ask and tell); every finished trial is one durable write. A design
    that was scored is never scored again: a proposal of it costs nothing and is passed over.

    Args:
        run: the run.
        solver: the solver of the search problem.
        seeds: designs to score before the strategy proposes any.
        store: the trials on disk.
        executor: scores designs.
        on_trial: called with every stored trial.
    """
    config, problem = run.config, solver.problem
    strategy = find_strategy(config.search.strategy)
    target = config.search.trials
    study = optuna.create_study(
        directions=list(store.study.directions),
        sampler=strategy.make(solver, config.seed, _options(config.search)),
    )
    with collector_paused():
        _replay(study, store, problem, seeds)
    firsts = set(seeds)
    scored = {row_of(trial.params, problem) for trial in store.trials()}
    in_flight: dict[int, tuple[optuna.Trial, Pending]] = {}
    failures = repeats = 0
    done = len(store.trials())
    if not strategy.proposes:  # as many as are left of its designs, also where there are more now
        target = done + len(firsts - scored)
    with run.reporter.stage("Search", target, min(done, target)) as advance:
        while done < target:
            while len(in_flight) < executor.capacity and done + len(in_flight) < target:
                trial = study.ask(distributions(problem))
                state = _sampler_state(study, trial.number)
                row = row_of(trial.params, problem)
                if row in firsts:
                    state[HOW_ATTRIBUTE] = f"{strategy.first} design"
                exact = row in firsts and strategy.first == "exact"
                origin: Origin = "seed" if exact else "search"
                pending = Pending(trial.number, row, origin, state)
                if pending.row in scored:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    repeats += 1
                    if in_flight or repeats >= _MAX_REPEATS:
                        break
                    continue
                repeats = 0
                scored.add(pending.row)
                store.begin(pending)
                in_flight[trial.number] = (trial, pending)
                executor.submit(trial.number, "score", pending.row)
            if not in_flight:
                log.info("every design within reach was scored: the search ends early")
                break
            outcome = executor.wait()
            assert isinstance(outcome.key, int)
            trial, pending = in_flight.pop(outcome.key)
            metrics, error = None, outcome.error
            if not error and not math.isfinite(outcome.value.loss):
                error = "the network's output is not finite"
            if not error:
                error = _not_finite(outcome.value.own)
            if not error:
                metrics = problem.metrics(pending.row) | {
                    "accuracy": outcome.value.accuracy,
                    "loss": outcome.value.loss,
                    **outcome.value.own,
                }
                metrics["expected_rank"] = expected_rank(metrics)
            constraints = problem.violations(pending.row)
            stored = store.add(
                pending,
                metrics,
                constraints=constraints,
                finished_at=time.time(),
                seconds=outcome.seconds,
                error=error,
            )
            done += 1
            if metrics is None:
                failures += 1
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                log.warning("trial %d failed: %s", stored.number, error)
                if failures >= _MAX_FAILURES:
                    raise EpimError(
                        f"{failures} evaluations failed in a row, the last with "
                        f"{error}; what was finished is saved"
                    )
                continue
            failures = 0
            for name, excess in constraints.items():
                trial.set_constraint(name, excess)
            trial.set_user_attr(METRICS_ATTRIBUTE, metrics)
            study.tell(trial, list(stored.values))
            advance(done, f"top-1 {100 * metrics['accuracy']:.1f} %")
            on_trial(store.record(stored))


def describe_trials(store: TrialStore) -> str:
    """How the scored designs came about, and what became of them, in one line."""
    records = store.records()
    ways = Counter(_ways(store))
    kept = sum(record.feasible for record in records)
    failed = len(store.trials()) - len(records)
    return (
        f"{len(records)} designs were scored with shared weights, {kept} of them within the "
        f"budget ({', '.join(f'{count} {way}' for way, count in ways.most_common())})"
        + (f"; {failed} evaluations failed" if failed else "")
    )


def _ways(store: TrialStore) -> list[str]:
    complete = [t for t in store.trials() if t.state == optuna.trial.TrialState.COMPLETE]
    return [str(trial.system_attrs.get(HOW_ATTRIBUTE, "")).split(",")[0] for trial in complete]


def _options(search: SearchConfig) -> Options:
    return Options(search.fitness, search.population, search.repair)


def _replay(
    study: optuna.Study, store: TrialStore, problem: SearchProblem, seeds: Sequence[Row]
) -> None:
    """Fill a fresh study in memory with the stored trials, in the order in which they were asked.

    Proposals that were in flight take their old places, so that everything after them is proposed
    as it would have been.
    """
    waiting = {pending.asked: pending for pending in store.left_over()}
    stored = {int(trial.user_attrs["asked"]): trial for trial in store.trials()}
    for asked in range(max([*waiting, *stored], default=-1) + 1):
        if asked in stored:
            study.add_trial(as_in_memory(stored[asked]))
        elif asked in waiting:
            # As `enqueue_trial` does it, with what the sampler had noted.
            state = {"fixed_params": params_of(waiting[asked].row, problem)}
            state |= waiting[asked].sampler_state
            study.add_trial(
                optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs=state)
            )
        else:  # it proposed a known design: nothing was stored, but its number is taken
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    known = {row_of(trial.params, problem) for trial in stored.values()}
    known |= {pending.row for pending in waiting.values()}
    for row in seeds:
        if row not in known:
            study.enqueue_trial(params_of(row, problem))


def _sampler_state(study: optuna.Study, number: int) -> dict[str, Any]:
    """What the sampler noted in a trial of the study in memory."""
    attributes = study.get_trials(deepcopy=False)[number].system_attrs
    return {key: value for key, value in attributes.items() if key != "fixed_params"}


def _not_finite(own: Mapping[str, float]) -> str:
    """What is wrong with the values of the user's metrics: one design must not end a search."""
    for name, value in own.items():
        if not math.isfinite(value):
            return f"metric {name} gives {value}"
    return ""
