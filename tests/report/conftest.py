"""A synthetic run: forty designs of a six-layer network with numbers counted from the designs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from epim_nas.epitome.design import Choice, Design
from epim_nas.network.spec import Network
from epim_nas.records import Baseline, Finalist, RunResult, TrialRecord
from epim_nas.solver.pareto import SELECTIONS, front_numbers, select
from tests.report.helpers import (
    OBJECTIVES,
    build_network,
    random_choice,
    score,
    totals_of,
)

MakeResult = Callable[..., RunResult]


@pytest.fixture(scope="session")
def network() -> Network:
    return build_network()


@pytest.fixture(scope="session")
def make_result(network: Network) -> MakeResult:
    def make(
        count: int = 40, seed: int = 0, name: str = "demo", budget: int = 28, finalists: int = 3
    ) -> RunResult:
        rng = random.Random(seed)
        dense = Design.uniform(network, None, None)
        baseline_totals = totals_of(network, dense)
        trials = []
        for number in range(count):
            design = Design(
                network.name,
                {layer.name: random_choice(layer, rng) for layer in network.weighted},
                hardware={"name": "test chip", "digest": "0" * 64},
            )
            totals = totals_of(network, design)
            same_bits = {
                key: Choice(choice.shape, choice.wrap, None, None, choice.patch)
                for key, choice in design.choices.items()
            }
            shape = (
                baseline_totals["crossbars"]
                / totals_of(network, Design(network.name, same_bits))["crossbars"]
            )
            compression = baseline_totals["crossbars"] / totals["crossbars"]
            trials.append(
                TrialRecord(
                    number=number,
                    design=design,
                    metrics={
                        **totals,
                        "accuracy": score(network, design, rng),
                        "compression": compression,
                        "shape_compression": shape,
                        "bits_compression": compression / shape,
                    },
                    feasible=totals["crossbars"] <= budget,
                    origin="seed" if number < count // 5 else "search",
                    finished_at=1.7e9 + 3.0 * number,
                    seconds=2.5,
                )
            )
        front = front_numbers(trials, OBJECTIVES)
        chosen = [trials[number] for number in front]
        tuned = [
            Finalist(
                number=trial.number,
                design=trial.design,
                metrics=trial.metrics,
                steps=100,
                validation_accuracy=min(0.93, trial.metrics["accuracy"] + 0.03),
                test_accuracy=min(0.92, trial.metrics["accuracy"] + 0.02),
                curve=tuple((step, 2.0 / (1 + step / 20)) for step in range(0, 100, 10)),
            )
            for trial in chosen[:finalists]
        ]
        return RunResult(
            name=name,
            config={"seed": 7, "search": {"trials": count, "sampler_seed": 11}, "network": "tiny6"},
            objectives=OBJECTIVES,
            budget={"crossbars": budget},
            baseline=Baseline(0.925, 0.915, baseline_totals, "trained for 10 epochs"),
            trials=tuple(trials),
            front=front,
            finalists=tuple(tuned),
            selected={which: select(chosen, which).number for which in SELECTIONS if chosen},
            supernet_curve=tuple((step, 1.5 / (1 + step / 50)) for step in range(0, 200, 10)),
            versions={"epim_nas": "0.1.0", "torch": "2.6.0"},
            seconds={"supernet": 60.0, "search": 100.0},
        )

    return make


@pytest.fixture(scope="session")
def result(make_result: MakeResult) -> RunResult:
    return make_result()
