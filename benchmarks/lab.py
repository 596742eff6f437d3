"""What the accuracy studies share: a trained network in a search space, and one recipe."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from subjects import Source
from torch import nn

from epim_nas.files import digest, dump_yaml, write_text
from epim_nas.hardware import CostModel
from epim_nas.network.trace import trace
from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.context import Run, load_run_chip
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import score_settings
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.stages.sensitivity import measure_sensitivity
from epim_nas.pipeline.stages.supernet import prepare_supernet
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.moves import random_row
from epim_nas.space.space import Row
from epim_nas.supernet.evaluation import Score, evaluate, recalibrate_batch_norm
from epim_nas.supernet.sensitivity import METHODS
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.training import TrainConfig, train


@dataclass(frozen=True)
class Tuned:
    """A network before and after a training; what is better on the validation images is kept.

    Attributes:
        before: validation score before it, recalibrated.
        after: validation score after it.
        test: test score of the better one.
        network: the better one.
    """

    before: Score
    after: Score
    test: Score
    network: nn.Module

    @property
    def record(self) -> dict[str, float]:
        """The scores as plain numbers."""
        return {
            f"{name}_{metric}": getattr(score, metric)
            for name, score in (("before", self.before), ("after", self.after), ("test", self.test))
            for metric in ("accuracy", "loss")
        }


class Lab:
    """A network, its images, a chip and a search space.

    Args:
        source: where images and weights come from.
        name: the network.
        chip: the chip.
        space: the search space.
        recipe: how every network is fine-tuned.
        test_images: test images to report on; they are taken evenly.
        changes: groups of the run file that are not as they are by default.
    """

    def __init__(
        self, source: Source, name: str, chip: str, space: str | Mapping[str, Any],
        recipe: TrainConfig, test_images: int = 10_000,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        config = RunConfig.model_validate(
            {
                "schema": "epim-nas/run@1",
                "name": name,
                "model": {"name": name},
                "data": source.config,
                "hardware": {"chip": chip},
                "space": space,
                "budget": {"compression": 20},
                "objectives": ["accuracy"],
                "device": "cpu",
                **(changes or {}),
            }
        )
        data = source.data()
        model = source.network(name, data)
        network, hardware = trace(model, data.input_shape, name), load_run_chip(config)
        folder = RunFolder(source.cache / f"{name}-{chip}-{known_by(space, changes)}")
        cost = CostModel(network, hardware)
        self.setup = Run(config, folder, Reporter(), data, model, network, hardware, cost)
        self.space = self.setup.build_space()
        self.costs = self.setup.cost.table(self.space.layer_choices)
        self.recipe = recipe
        self.folder = folder
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        self.calibration = score_settings(self.setup).calibration_batches(data)
        self.validation = list(data.batches("validation", 500))
        everything = list(data.batches("test", 500))
        # Images may be in the order of their classes.
        every = max(1, data.sizes["test"] // test_images)
        self.test = [(x[::every], y[::every]) for x, y in everything]

        write_text(self.folder.config, dump_yaml(config.model_dump(mode="json", by_alias=True)))

    @cached_property
    def dense_accuracy(self) -> float:
        """Test accuracy of the network in floating point."""
        return evaluate(self.setup.model, self.test).accuracy

    @cached_property
    def supernet(self) -> Supernet:
        """The untrained supernet."""
        return prepare_supernet(self.setup, self.setup.model, self.space)

    @cached_property
    def sensitivity(self) -> list[np.ndarray]:
        """The additive score, per group."""
        table = measure_sensitivity(self.setup, self.supernet)
        return self.space.group_sums(table)

    def tables(self, methods: Sequence[str] = tuple(METHODS)) -> dict[str, list[np.ndarray]]:
        """The additive score by several methods, per group."""
        settings = self.setup.config.sensitivity
        found = {}
        for name in methods:
            chosen = settings.model_copy(update={"method": name})
            config = self.setup.config.model_copy(update={"sensitivity": chosen})
            setup = replace(self.setup, config=config)
            table = measure_sensitivity(setup, self.supernet)
            found[name] = self.space.group_sums(table)
        return found

    def problem(self, budget: int) -> SearchProblem:
        """The search problem under a budget of crossbars."""
        crossbars = self.space.group_sums(self.costs.by_layer("crossbars"))
        return SearchProblem(
            self.space,
            self.sensitivity,
            costs={"crossbars": crossbars},
            limits={"crossbars": budget},
            objectives=("accuracy",),
        )

    def random_row(self, budget: int, rng: np.random.Generator) -> Row:
        """A random design; random layers are made smaller until it keeps the budget."""
        problem = self.problem(budget)
        blind = replace(problem, sensitivity=[rng.random(len(c)) for c in problem.crossbars])
        return FeasibleSolver(blind).repair(random_row(problem.space, rng))

    def score(self, supernet: Supernet, row: Sequence[int]) -> Score:
        """Validation score of a design with shared weights, as a search measures it."""
        with supernet.frozen(row):
            return self.measure(supernet)

    def measure(self, model: nn.Module) -> Score:
        """Validation score after recalibration."""
        recalibrate_batch_norm(model, self.calibration)
        return evaluate(model, self.validation)

    def tune(self, model: nn.Module, seed: int, steps: int | None = None) -> Tuned:
        """Fine-tune a network by the recipe, distilling the float network; ``model`` changes."""
        before = self.measure(model)
        kept = copy.deepcopy(model)
        config = replace(self.recipe, steps=steps or self.recipe.steps)
        train(model, self.setup.data, config, seed=seed, device="cpu", teacher=self.setup.model)
        after = self.measure(model)
        best = model if after.accuracy >= before.accuracy else kept
        return Tuned(before, after, evaluate(best, self.test), best)


class Records:
    """Results as lines of JSON; what a file already holds is not measured again.

    Args:
        file: the file; a line that a kill has cut off is ignored.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: list[dict[str, Any]] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            content = file.read_text()
            if not content.endswith("\n"):  # a line that a kill has cut off; the next one is whole
                file.write_text(content + "\n")
            for line in content.splitlines():
                try:
                    self.rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue

    def find(self, **key: Any) -> list[dict[str, Any]]:
        """The rows that have these values."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in key.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Store a row."""
        self.rows.append(row)
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def known_by(
    space: str | Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]] | None
) -> str:
    """A name of a search space and of what a run file changes; no two have the same."""
    if isinstance(space, str) and not changes:
        return Path(space).stem
    named = Path(space).stem if isinstance(space, str) else space["name"]
    return f"{named}-{digest([space, changes or {}])[:8]}"


def results(lab: Lab, study: str) -> Records:
    """The results of a study; of other weights, another space, chip or recipe they are others."""
    weights = hashlib.sha256()
    for value in lab.setup.model.state_dict().values():
        weights.update(value.numpy().tobytes())
    settings = lab.space.digest, lab.setup.chip.digest, asdict(lab.recipe), weights.hexdigest()
    name = f"{study}-{lab.setup.network.name}-{digest(settings)[:12]}.jsonl"
    return Records(lab.folder.path.parent / name)


def mean_and_spread(values: Iterable[float]) -> str:
    """Per cent: mean and half the range; of one value, that it is one."""
    numbers = [100 * value for value in values]
    spread = f"± {np.ptp(numbers) / 2:.1f}" if len(numbers) > 1 else "(one seed)"
    return f"{np.mean(numbers):.1f} {spread}"
