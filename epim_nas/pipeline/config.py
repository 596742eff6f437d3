"""The run file (``epim-nas/run@1``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from epim_nas import presets
from epim_nas.cluster.registry import ExecutorConfig
from epim_nas.data.config import DataConfig
from epim_nas.epitome.quantization.options import (
    ActivationRange,
    Granularity,
    Quantization,
    QuantizationRule,
    WeightRange,
)
from epim_nas.errors import InputError
from epim_nas.extensions import load_extension
from epim_nas.files import load_yaml
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import quantized_by_crossbar
from epim_nas.pipeline.config_paths import with_absolute_paths
from epim_nas.schema import STORED, Strict, apply_overrides, validate
from epim_nas.solver.metrics import METRICS, metric_of, parse_objective
from epim_nas.space.config import SpaceConfig
from epim_nas.stored import check_stored
from epim_nas.study.storage_url import check_url
from epim_nas.study.strategies import find_strategy
from epim_nas.supernet.sandwich import Around
from epim_nas.supernet.sensitivity import find_method
from epim_nas.supernet.train_config import TrainConfig

# The upper limits are far above what anyone has waited for: more is a slip of digits.
Positive = Annotated[int, pydantic.Field(ge=1, le=10**9)]
Few = Annotated[int, pydantic.Field(ge=1, le=10**4)]
Batch = Annotated[int, pydantic.Field(ge=1, le=10**6)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Rate = Annotated[float, pydantic.Field(ge=1e-9, lt=10)]


def _objective(text: str, info: pydantic.ValidationInfo) -> str:
    unknown = metric_of(text) not in METRICS
    return text if info.context == STORED and unknown else parse_objective(text)


def _extension(name: str, info: pydantic.ValidationInfo) -> str:
    return name if info.context == STORED else load_extension(name)


Objective = Annotated[str, pydantic.AfterValidator(_objective)]
"""A metric, with `min` or `max` before it where its direction is turned."""

Extension = Annotated[str, pydantic.AfterValidator(_extension)]
"""A module that registers parts when it is imported."""

PRETRAINED = "pretrained"
"""The value of ``model.weights`` that keeps the weights a model comes with."""


class ModelConfig(Strict):
    """The network.

    Attributes:
        name: a built-in name, ``torchvision:NAME``, ``timm:NAME`` or ``module:function``.
        args: further arguments of its constructor.
        weights: a shipped checkpoint's name or a path; ``pretrained`` keeps those that the model's
            constructor loads (torchvision, timm, your function); None trains the baseline first.
    """

    name: str
    args: dict[str, Any] = pydantic.Field(default_factory=dict)
    weights: str | None = None


class HardwareConfig(Strict):
    """The chip.

    Attributes:
        chip: name of a preset, or path of a chip YAML or an MNSIM ``SimConfig.ini``.
        set: chip key (dotted path) -> value.
    """

    chip: str
    set: dict[str, Any] = pydantic.Field(default_factory=dict)


Most = Annotated[float | None, pydantic.Field(ge=1e-9, le=1e30)]
"""A largest value, or none."""
Limit = Annotated[int, pydantic.Field(ge=1, le=2**53)]
"""A largest count; a float64 holds it exactly."""


class BudgetConfig(Strict):
    """What a design may cost at most; at least one limit, and all that are given hold.

    Attributes:
        crossbars: crossbars.
        compression: crossbars, as dense 32-bit crossbars divided by this.
        tiles: tiles.
        weight_bits: bits of all stored weights.
        area_um2: area of the tiles in use.
        latency_ns: pipelined latency of one inference.
        sequential_latency_ns: latency with one layer after the other.
        energy_nj: energy of one inference.
        edp_nj_ns: energy times pipelined latency.
    """

    crossbars: Limit | None = None
    compression: Most = None
    tiles: Limit | None = None
    weight_bits: Limit | None = None
    area_um2: Most = None
    latency_ns: Most = None
    sequential_latency_ns: Most = None
    energy_nj: Most = None
    edp_nj_ns: Most = None

    @pydantic.model_validator(mode="after")
    def _given(self) -> BudgetConfig:
        if self.crossbars is not None and self.compression is not None:
            raise ValueError("give either `crossbars` or `compression`")
        if not self.model_dump(exclude_none=True):
            raise ValueError("give either `crossbars` or `compression`, or another limit")
        return self


class TrainingConfig(Strict):
    """What all trainings share; the fields are those of :class:`TrainConfig`.

    Attributes:
        batch_size: images in a step; None takes the data's.
        accumulation: parts that a batch is split into, to need less memory.
        weight_decay: L2 penalty of weights.
        warmup: fraction of the steps with a rising rate.
        distillation: weight of the float network's prediction in the loss.
        temperature: softmax temperature of the distillation.
        label_smoothing: probability mass spread over all classes.
        clip_norm: largest L2 norm of the gradient, or None.
        ema: decay of an average of the weights, or None.
    """

    batch_size: Batch | None = None
    accumulation: Batch = TrainConfig.accumulation
    weight_decay: float = pydantic.Field(default=TrainConfig.weight_decay, ge=0, lt=1)
    warmup: Fraction = 0.05
    distillation: Fraction = TrainConfig.distillation
    temperature: float = pydantic.Field(default=TrainConfig.temperature, ge=0.01, le=1000)
    label_smoothing: float = pydantic.Field(default=TrainConfig.label_smoothing, ge=0, lt=1)
    clip_norm: float | None = pydantic.Field(default=TrainConfig.clip_norm, ge=1e-9, le=1e9)
    ema: float | None = pydantic.Field(default=TrainConfig.ema, ge=0, lt=1)

    def train_config(self, steps: int, batch_size: int, lr: float = TrainConfig.lr) -> TrainConfig:
        """The training loop's configuration.

        Args:
            steps: optimizer steps.
            batch_size: where this group has none.
            lr: peak learning rate, where it is known already.
        """
        shared = self.model_dump(include=set(TrainingConfig.model_fields))
        return TrainConfig(
            **{**shared, "steps": steps, "lr": lr, "batch_size": self.batch_size or batch_size}
        )


class BaselineConfig(TrainingConfig):
    """Training of the dense network.

    Attributes:
        steps: optimizer steps.
        lr: peak learning rate of a cosine schedule.
    """

    steps: Positive = 3000
    lr: Rate = 0.1

    @pydantic.field_validator("distillation")
    @classmethod
    def _no_teacher(cls, distillation: float) -> float:
        if distillation:
            raise InputError(
                "baseline.distillation",
                f"got {distillation}, but the dense network is the teacher of all others",
                "0",
                "The groups `supernet`, `finalists` and `finetune` have a `distillation` as well.",
            )
        return distillation


AutoRate = Literal["auto"] | Rate
"""A rate, or one that follows the damage (:func:`~epim_nas.supernet.damage.learning_rate_for`)."""


class QuantizationConfig(Strict):
    """How weights and inputs are quantized; the fields are those of :class:`Quantization`.

    ``crossbar`` takes the channels of a crossbar from the chip.
    """

    granularity: Granularity = Quantization.granularity
    weight_range: WeightRange = Quantization.weight_range
    overlap_weights: list[float] | None = pydantic.Field(default=None, min_length=2, max_length=2)
    by_repeats: bool = Quantization.by_repeats
    learned_weight_step: bool = Quantization.learned_weight_step
    activation_range: ActivationRange = Quantization.activation_range
    percentile: float = pydantic.Field(default=Quantization.percentile, ge=1, le=100)
    learned_activation_step: bool = Quantization.learned_activation_step

    @pydantic.model_validator(mode="after")
    def _possible(self) -> QuantizationConfig:
        self.options()
        return self

    def options(self) -> Quantization:
        """The options, without the channels of a crossbar."""
        weights = self.overlap_weights
        return Quantization(
            **self.model_dump(exclude={"overlap_weights"}),
            overlap_weights=None if weights is None else (weights[0], weights[1]),
        )

    def on(self, chip: Chip) -> Quantization | QuantizationRule:
        """The options; by crossbar, a rule that knows what lies on a crossbar of the chip."""
        options = self.options()
        return quantized_by_crossbar(options, chip) if self.granularity == "crossbar" else options


class ProjectionConfig(Strict):
    """How epitomes start from the trained weights.

    Attributes:
        align: put the channels of every layer in the order in which the epitome fits best.
        outputs: augmented training images from which the inputs of every layer are known, to
            project onto the layers' outputs with; 0 projects onto their weights.
    """

    align: bool = True
    outputs: Annotated[int, pydantic.Field(ge=0, le=10**9)] = 1000


class SensitivityConfig(Strict):
    """The sensitivity pass.

    Attributes:
        method: name of a method.
        images: training images it looks at.
        batch_size: images in one backward pass.
        draws: labels that the Fisher methods draw for every image.
    """

    method: str = "output_fisher"
    images: Positive = 256
    batch_size: Batch = 128
    draws: Few = 1

    @pydantic.field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        find_method(name)
        return name


class SupernetConfig(TrainingConfig):
    """Brief training of the supernet around the front (sandwich rule).

    Attributes:
        steps: optimizer steps; 0 for none.
        lr: peak learning rate of a cosine schedule.
        random: designs that each step draws and trains besides the most precise and the smallest.
        around: whether they are drawn near the exact front or uniformly from the space.
        bits_warmup: fraction of the steps in which they have more weight bits, fewer and fewer.
        workers: processes that train together on Ray, each on its part of every batch.
    """

    steps: Annotated[int, pydantic.Field(ge=0, le=10**9)] = 100
    lr: Rate = 0.01
    distillation: Fraction = 1.0
    random: Few = 2
    around: Around = "front"
    bits_warmup: Fraction = 0.0
    workers: Few = 1


class SearchConfig(Strict):
    """The search.

    Attributes:
        strategy: name of a strategy.
        trials: designs to score in all, seeds included.
        seeds: how many exact solutions are scored first.
        fitness: cost that the strategy ``evolution`` minimises.
        population: designs of a generation of ``evolution``, ``nsga2`` and ``nsga3``.
        repair: whether proposals of Optuna's own samplers are repaired into the budget.
        gradient_steps: steps of the strategy ``gradient``.
        gradient_lr: learning rate of its logits.
        batch_size: images in a batch of an evaluation.
        calibration_images: augmented training images to recalibrate batch norm with.
        validation_images: search-validation images to score with; None for all.
        storage: URL of a database for the trials; None for a file in the run folder.
    """

    strategy: str = "epitome"
    trials: Batch = 60
    seeds: Batch = 12
    fitness: Literal["latency_ns", "energy_nj", "edp_nj_ns"] = "latency_ns"
    population: Annotated[int, pydantic.Field(ge=2, le=10**5)] = 20
    repair: bool = True
    gradient_steps: Positive = 200
    gradient_lr: Rate = 0.05
    batch_size: Batch = 500
    calibration_images: Positive = 1000
    validation_images: Positive | None = None
    storage: Annotated[str, pydantic.AfterValidator(check_url)] | None = None

    @pydantic.field_validator("strategy")
    @classmethod
    def _known(cls, name: str, info: pydantic.ValidationInfo) -> str:
        if info.context != STORED:
            find_strategy(name)
        return name


class FinalistsConfig(TrainingConfig):
    """Stand-alone fine-tuning of the best designs.

    Attributes:
        count: how many designs.
        steps: optimizer steps.
        rungs: on Ray, measurements of each; after all but the last the worse half stops (ASHA).
        lr: peak learning rate; ``auto`` follows the damage.
    """

    count: Annotated[int, pydantic.Field(ge=0, le=10**4)] = 4
    steps: Positive = 150
    rungs: Few = 3
    lr: AutoRate = "auto"
    distillation: Fraction = 0.5


class FinetuneConfig(TrainingConfig):
    """Full training of one design (``epim-nas finetune``).

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate; ``auto`` follows the damage.
    """

    epochs: Positive = 30
    lr: AutoRate = "auto"
    distillation: Fraction = 0.5
    ema: float | None = pydantic.Field(default=0.999, ge=0, lt=1)


class RunConfig(Strict):
    """A run: a network, data, a chip, a search space and a budget, and how hard to try.

    Attributes:
        name: name of the run; results go to ``runs/NAME`` by default.
        extensions: modules that add objectives, costs, choices, executors or strategies.
        seed: seed of everything random.
        model: the network.
        data: the images.
        hardware: the chip.
        space: name or path of a search space, or the space itself.
        budget: what a design may cost at most.
        objectives: what the front is over.
        quantization: how weights and inputs are quantized.
        baseline: training of the network when no weights are given.
        projection: how epitomes start from the trained weights.
        sensitivity: the additive score.
        supernet: training of the shared weights.
        search: the search.
        finalists: stand-alone fine-tuning.
        finetune: full training of one design.
        executor: where designs are scored.
        reuse: folder of another run of the same network: what it has computed is taken over.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``, ``float32`` or ``bfloat16``.
    """

    schema_: Literal["epim-nas/run@1"] = pydantic.Field(alias="schema")
    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    # Before the fields that may name what they add.
    extensions: list[Extension] = pydantic.Field(default_factory=list)
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 0
    model: ModelConfig
    data: DataConfig
    hardware: HardwareConfig
    space: str | SpaceConfig
    budget: BudgetConfig
    objectives: list[Objective] = pydantic.Field(
        default=["accuracy", "latency_ns", "energy_nj"], min_length=1
    )
    baseline: BaselineConfig = BaselineConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    projection: ProjectionConfig = ProjectionConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    supernet: SupernetConfig = SupernetConfig()
    search: SearchConfig = SearchConfig()
    finalists: FinalistsConfig = FinalistsConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    executor: ExecutorConfig = ExecutorConfig()
    reuse: str | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @pydantic.model_validator(mode="after")
    def _whole_parts(self) -> RunConfig:
        for name in ("baseline", "supernet", "finalists", "finetune"):
            group: TrainingConfig = getattr(self, name)
            most = group.batch_size or self.data.batch_size
            if group.accumulation > most:
                raise InputError(
                    f"{name}.accumulation",
                    f"got {group.accumulation} parts of {most} images",
                    f"1 to {most}, the images of a batch",
                )
        return self

    @pydantic.field_validator("objectives")
    @classmethod
    def _different(cls, objectives: list[str]) -> list[str]:
        if len({metric_of(objective) for objective in objectives}) < len(objectives):
            raise ValueError("an objective is given twice")
        return objectives


CHANGED_RUN_FILE = (
    "Give changes by `--set key=value`, or change a copy of the file in another folder."
)
"""What to do where the run file of a run folder was changed."""


def load_run_config(
    name_or_path: str, overrides: list[str] | None = None
) -> tuple[RunConfig, Path]:
    """Read a run file by the name of a preset or by its path.

    Args:
        name_or_path: a preset's name or a path.
        overrides: ``key.path=value`` changes, as of ``--set``.

    Returns:
        The configuration and the file it came from. Paths are absolute in it, so that the stored
        run file works from anywhere: relative ones are taken from the file's folder where they
        exist there, else from the current one, and those of ``overrides`` from the current one.

    Raises:
        InputError: no such file, or a wrong field in it.
    """
    path = presets.find("runs", name_or_path, "RUN")
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise InputError(str(path), "is not a run file", "a mapping with `schema: epim-nas/run@1`")
    here = Path.cwd()
    # What is in the file is meant from there, what is typed from the current folder.
    data = with_absolute_paths(data, path.parent, here)
    data = with_absolute_paths(apply_overrides(data, overrides or [], "--set"), here)
    config = validate(RunConfig, data, str(path))
    check_stored(path, CHANGED_RUN_FILE)  # where it is that of a run folder
    return config, path
