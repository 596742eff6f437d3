"""What each ingredient is worth: the search of :mod:`accuracy` with one thing changed at a time.

Of EPIM: layer-wise design, wrapping, a scale for each crossbar, ranges weighted by overlap. Of this
package: aligned channels, projection onto outputs, patches of a part, 2-bit weights, exact seeds,
measured scores, scores refitted to them. Every variant searches again, at equal crossbars, and is
fine-tuned by the same recipe. Latency and energy are those of its design over those of the first.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py [--images FOLDER --weights FILE] [--cache DIR]

Results are kept in the cache folder, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lab import Lab, Records, mean_and_spread, results
from methods import Study, selected
from subjects import NETWORKS, Source

from epim_nas.files import load_yaml
from epim_nas.presets import find
from epim_nas.supernet.training import TrainConfig


@dataclass(frozen=True)
class Variant:
    """A search with something changed.

    Attributes:
        method: a method of :class:`methods.Study`.
        run: groups of the run file that differ.
        epitome: fields of the space's epitomes that differ.
        space: fields of the space's defaults that differ.
    """

    method: str = "searched"
    run: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    epitome: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)


def quantized(**options: Any) -> Variant:
    """Another quantization."""
    return Variant(run={"quantization": options})


COSTS = ("latency_ns", "energy_nj")
BY_CROSSBAR = {"granularity": "crossbar", "weight_range": "max"}
VARIANTS = {
    "searched": Variant(),
    "one design for all layers": Variant("uniform"),
    "no wrapping": Variant(epitome={"wrap": [False]}),
    "a scale for each crossbar": quantized(granularity="crossbar"),
    "... from the maximum": quantized(**BY_CROSSBAR),
    "... weighted by overlap": quantized(**BY_CROSSBAR, overlap_weights=[0.7, 0.3]),
    "channels not aligned": Variant(run={"projection": {"align": False}}),
    "not projected onto outputs": Variant(run={"projection": {"outputs": 0}}),
    "neither": Variant(run={"projection": {"align": False, "outputs": 0}}),
    "whole patches only": Variant(epitome={"out_patch": [1]}),
    "3 bits at least": Variant(space={"weight_bits": [3, 4, 5]}),
    "weight Fisher": Variant(run={"sensitivity": {"method": "weight_fisher"}}),
    "random designs in place of exact seeds": Variant("unseeded"),
    "the exact optimum, nothing scored": Variant("exact"),
    "scores refitted": Variant("refitted"),
}


def space_of(preset: str, variant: Variant) -> str | dict[str, Any]:
    """The preset, or its content with the variant's changes."""
    if not (variant.epitome or variant.space):
        return preset
    content: dict[str, Any] = load_yaml(find("search_spaces", preset, "--space"))
    defaults = content["defaults"]
    changed = {**defaults, **variant.space, "epitome": {**defaults["epitome"], **variant.epitome}}
    return {**content, "defaults": changed}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="What each ingredient is worth.")
    Source.add_arguments(parser, cache="runs/accuracy")
    parser.add_argument("--network", default="resnet20", choices=list(NETWORKS))
    parser.add_argument("--space", default="narrow")
    parser.add_argument("--chip", default="xbar_64")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--compression", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.03)
    arguments = parser.parse_args()
    source = Source.of(arguments)
    recipe = TrainConfig(arguments.steps, 128, lr=arguments.lr, warmup=0.05, distillation=0.5)
    base = Lab(source, arguments.network, arguments.chip, arguments.space, recipe)
    records = results(base, "ablation")
    for name in arguments.variants:
        key = {"variant": name, "compression": arguments.compression}
        missing = [s for s in range(arguments.seeds) if not records.find(**key, seed=s)]
        if not missing:
            continue
        variant = VARIANTS[name]
        space = space_of(arguments.space, variant)
        lab = Lab(source, arguments.network, arguments.chip, space, recipe, changes=variant.run)
        budget = int(lab.setup.dense_crossbars / arguments.compression)
        chosen = selected(lab, Study(lab).propose(variant.method, budget, 0), 0)
        assert chosen.design is not None
        metrics = lab.setup.metrics(chosen.design)
        shape = {
            "crossbars": chosen.crossbars,
            "epitomes": sum(c.shape is not None for c in chosen.design.choices.values()),
            "wrapped": sum(c.wrap for c in chosen.design.choices.values()),
            **{cost: metrics[cost] for cost in COSTS},
        }
        for seed in missing:
            records.add({**key, "seed": seed, **shape, **lab.tune(chosen.network(), seed).record})
    print(table(records, arguments.compression))


def table(records: Records, compression: float) -> str:
    """The variants as Markdown; latency and energy over those of the first."""
    first = records.find(variant=next(iter(VARIANTS)), compression=compression)
    headings = ("variant", "before training (validation)", "test top-1", "crossbars", "epitomes",
                "wrapped", "latency", "energy")  # fmt: skip
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for name in VARIANTS:
        rows = records.find(variant=name, compression=compression)
        if not rows:
            continue
        cells = [
            name,
            f"{100 * np.mean([row['before_accuracy'] for row in rows]):.1f}",
            mean_and_spread(row["test_accuracy"] for row in rows),
            *(str(rows[0][key]) for key in ("crossbars", "epitomes", "wrapped")),
            *(f"{rows[0][key] / first[0][key]:.2f}" for key in COSTS if first),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
