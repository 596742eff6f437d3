"""Speed and accuracy of the cost model on ResNet-50, on one core.

Speeds are ratios to the pipelined recurrence in plain Python loops, timed in the same run (the
machine's speed cancels); designs per second are printed beside them. The pipelined latency that
`CostModel.expected` estimates is compared with its mean over sampled designs, and the surrogate of
`CostModel.relaxed` with exact costs.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import torch

from epim_nas import CostModel, Design, Network, SearchSpace, load_chip, trace
from epim_nas.hardware.dependencies import Dependencies
from epim_nas.hardware.differentiable.relaxed import RELAXED_METRICS
from epim_nas.hardware.differentiable.relaxed_design import RelaxedDesign
from epim_nas.hardware.mapping import map_plan
from epim_nas.models.registry import build_model
from epim_nas.space import load_space_config

DESIGNS = 1024
TABLE_DESIGNS = 500_000
SAMPLES = 2000


def seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU time of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def python_recurrence(needs: Dependencies, steps: np.ndarray) -> float:
    """The pipelined latency by loops over positions; ``steps`` are (4, layers)."""
    finished: list[list[list[float]]] = []
    for layer, sources in enumerate(needs.sources):
        rows, columns = needs.sizes[layer]
        first, first_column, first_row, other = (float(step) for step in steps[:, layer])
        times, end = [], 0.0
        for row in range(rows):
            line = []
            for column in range(columns):
                for source in sources:
                    ready = finished[source.layer][source.rows[row]][source.columns[column]]
                    end = max(end, ready)
                if row:
                    end += other if column else first_column
                else:
                    end += first_row if column else first
                line.append(end)
            times.append(line)
        finished.append(times)
    return max(finished[sink][-1][-1] for sink in needs.sinks)


def speeds(network: Network, model: CostModel, space: SearchSpace) -> None:
    """Time single designs, batches, and the table."""
    choices = space.layer_choices
    generator = np.random.default_rng(0)
    batch = model.batch(choices)
    rows = np.stack([generator.integers(len(choices[n]), size=DESIGNS) for n in batch.names], 1)
    designs = [
        Design(network.name, {n: choices[n][i] for n, i in zip(batch.names, row, strict=True)})
        for row in rows[:20]
    ]
    batch.totals(rows[:2])  # compile
    some = batch.evaluate(rows[:1])
    mapping, bits = batch.gather(rows[:1])
    layout = model.evaluation.layout(mapping, bits)
    steps = model.evaluation.times(mapping, bits, layout).steps
    loops = seconds(lambda: python_recurrence(model.evaluation.dependencies, steps[:, 0]), 1)
    assert np.isclose(
        python_recurrence(model.evaluation.dependencies, steps[:, 0]), some.totals["latency_ns"][0]
    )
    table = model.table(choices)
    many = np.stack(
        [generator.integers(len(choices[n]), size=TABLE_DESIGNS) for n in table.names], 1
    )
    table.totals(many[:2])

    def fresh_table() -> None:
        map_plan.cache_clear()
        CostModel(network, model.chip).table(choices)

    single = seconds(lambda: [model.evaluate(design) for design in designs], 5) / len(designs)
    layers = seconds(lambda: [model.evaluate(design).layers for design in designs], 5)
    rows_of = (
        ("positions by Python loops", loops, 1),
        ("one design, everything", single, 1),
        ("the same, with the layers as objects", layers / len(designs), 1),
        (f"{DESIGNS} designs, everything", seconds(lambda: batch.totals(rows), 2), DESIGNS),
        ("totals from the table", seconds(lambda: table.totals(many), 3), TABLE_DESIGNS),
    )
    print(f"{'what':38} {'ms a design':>12} {'designs/s':>12} {'x loops':>12}")
    for name, spent, count in rows_of:
        each = spent / count
        print(f"{name:38} {each * 1e3:12.5f} {1 / each:12.0f} {loops / each:12.1f}")
    entries = sum(map(len, choices.values()))
    print(f"table of {entries} choices: {seconds(fresh_table, 2):.2f} s")


def expectation(model: CostModel, space: SearchSpace) -> None:
    """Compare the estimate of the expected latency with a mean over samples."""
    choices = space.layer_choices
    expected = model.expected(choices)
    batch = model.batch(choices)
    generator = np.random.default_rng(1)
    columns = ("temperature", "expected steps", "64 samples", "mean")
    print("\n" + " ".join(f"{name:>16}" for name in columns) + "  expected latency, ms")
    for temperature in (0.0, 0.5, 1.0, 2.0, 4.0):
        chances, picks = {}, []
        for name in batch.names:
            logits = generator.normal(size=len(choices[name])) * temperature
            chance = np.exp(logits - logits.max())
            chances[name] = chance / chance.sum()
            picks.append(generator.choice(len(chance), size=SAMPLES, p=chances[name]))
        tensors = {name: torch.as_tensor(chance) for name, chance in chances.items()}
        mean = float(batch.totals(np.stack(picks, 1))["latency_ns"].mean()) / 1e6
        cells = [f"{temperature:16}"]
        for samples in (0, 64):
            seed = torch.Generator().manual_seed(0)
            cost = expected(tensors, samples=samples, generator=seed)
            estimate = float(cost["latency_ns"]) / 1e6
            cells.append(f"{f'{estimate:.1f} ({estimate / mean - 1:+.1%})':>16}")
        print(" ".join(cells), f"{mean:16.1f}")


def surrogate(model: CostModel, network: Network, count: int = 64) -> None:
    """Compare the surrogate with the exact costs of random whole designs."""
    relaxed = model.relaxed()
    generator = np.random.default_rng(2)
    shapes = np.array([layer.weight_shape for layer in network.weighted], dtype=float)
    size = (count, len(shapes))
    dense = RelaxedDesign.dense(network, 9)
    drawn = {f.name: getattr(dense, f.name).expand(size) for f in fields(dense)}
    for name, column in (("out_channels", 0), ("in_channels", 1)):
        part = generator.uniform(0.2, 1, size=size) * shapes[:, column]
        drawn[name] = torch.as_tensor(part).round().clamp(min=1)
    drawn["weight_bits"] = torch.as_tensor(generator.integers(2, 10, size=size)).double()
    drawn["wrap"] = torch.as_tensor(generator.random(size) < 0.5)
    design = replace(dense, **drawn)
    exact, smooth = relaxed(design), relaxed.surrogate(design)
    print(f"\n{'metric':>22} {'smallest':>9} {'median':>9} {'largest':>9}  exact / surrogate")
    for name in RELAXED_METRICS:
        ratio = (exact[name] / smooth[name]).numpy()
        print(f"{name:>22} {ratio.min():9.3f} {np.median(ratio):9.3f} {ratio.max():9.3f}")


def main() -> None:
    """Print the three tables."""
    torch.set_num_threads(1)
    network = trace(
        build_model("resnet50", in_channels=3, num_classes=1000), (3, 224, 224), "resnet50"
    )
    model = CostModel(network, load_chip("epim_256"))
    space = SearchSpace.build(load_space_config("wide"), network)
    speeds(network, model, space)
    expectation(model, space)
    with torch.no_grad():
        surrogate(model, network)


if __name__ == "__main__":
    main()
