"""Scoring designs on the supernet, and training one of them on its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from epim_nas.data.base import Batch, Data
from epim_nas.errors import InputError
from epim_nas.files import digest, load_json
from epim_nas.models.weights import save_weights
from epim_nas.network.modules import clone
from epim_nas.stored import check_stored, store_json
from epim_nas.supernet.checkpoint import another_training
from epim_nas.supernet.damage import measure_damage, peak_rate
from epim_nas.supernet.evaluation import (
    Score,
    evaluate,
    evaluation_mode,
    recalibrate_batch_norm,
)
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.training import TrainConfig, train

log = logging.getLogger(__name__)

Measure = Callable[[nn.Module, Data], float]
"""A metric that the user registered, of a network."""

_CHECKPOINT_EVERY = 50
"""Steps of a fine-tuning that a kill may cost."""


@dataclass(frozen=True)
class ScoreSettings:
    """How a design is measured.

    Attributes:
        batch_size: images in a batch.
        calibration_images: augmented training images for batch-norm recalibration.
        validation_images: search-validation images, None for all.
        device: torch device.
        precision: see :func:`~epim_nas.supernet.evaluation.autocast`.
        seed: seed of the calibration images.
        own: metrics that the user registered, by name.
    """

    batch_size: int
    calibration_images: int
    validation_images: int | None
    device: str
    precision: str
    seed: int
    own: Mapping[str, Measure] = field(default_factory=dict)

    def calibration_batches(self, data: Data) -> list[Batch]:
        """The images that every design is recalibrated with, so that all are measured alike."""
        return data.calibration_batches(self.calibration_images, self.batch_size, self.seed)


@dataclass(frozen=True)
class FinetuneResult:
    """A design that was trained on its own.

    Attributes:
        steps: steps that the kept weights were trained; 0 where those before were better.
        before: search-validation top-1 before training (recalibrated).
        validation_accuracy: search-validation top-1 of the kept weights.
        test_accuracy: test top-1 of the kept weights.
        learning_rate: peak learning rate.
        damage: nats between the float network and the design before training.
        curve: (step, loss) samples.
        validation_images: number of search-validation images.
    """

    steps: int
    before: float
    validation_accuracy: float
    test_accuracy: float
    learning_rate: float
    damage: float
    curve: tuple[tuple[int, float], ...]
    validation_images: int


def measure_own(metrics: Mapping[str, Measure], model: nn.Module, data: Data) -> dict[str, float]:
    """The values of metrics that the user registered, of a network as it is; finite or not.

    Raises:
        InputError: a function fails.
    """
    if not metrics:
        return {}
    with evaluation_mode(model), torch.no_grad():
        return {name: measure(model, data) for name, measure in metrics.items()}


def start_file(checkpoint: Path) -> Path:
    """The file beside a training's checkpoint with what was measured before the training."""
    return checkpoint.with_suffix(".start.json")


def _read_start(file: Path) -> dict[str, Any] | None:
    """What was measured before a training; None where it has to be measured again."""
    if not file.exists():
        return None
    try:
        stored = load_json(file)
        check_stored(file)
        return {name: stored[name] for name in ("training", "validation_accuracy", "damage")}
    except (InputError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): measured again", file, error)
        return None


class Scorer:
    """Measures designs with a trained supernet. Picklable: executors send it to their workers.

    Args:
        supernet: the supernet.
        teacher: the float network, to distil from in fine-tuning.
        data: the images.
        settings: how to measure.
    """

    def __init__(
        self, supernet: Supernet, teacher: nn.Module, data: Data, settings: ScoreSettings
    ) -> None:
        self._supernet = supernet
        self._teacher = teacher
        self._data = data
        self._settings = settings
        self.progress: Callable[[int, float], None] | None = None
        """Called with (step, loss) while a design is trained; stays in this process."""
        self._calibration = settings.calibration_batches(data)

    def __getstate__(self) -> dict[str, Any]:
        # A worker may have another device than the driver, or none: networks travel on the CPU.
        state = dict(self.__dict__)
        for name in ("_supernet", "_teacher"):
            state[name] = clone(state[name]).cpu()
        state["progress"] = None
        return state

    def score(self, row: Sequence[int]) -> Score:
        """Search-validation accuracy of a design: switch, recalibrate, measure."""
        with self._supernet.frozen(row):
            score = self._measure(self._supernet, "validation")
            if not math.isfinite(score.loss):
                return score  # a failed trial; the user's functions need not cope with it
            return replace(score, own=measure_own(self._settings.own, self._supernet, self._data))

    def finetune(
        self,
        row: Sequence[int],
        config: TrainConfig,
        seed: int,
        checkpoint: str,
        weights: str,
        lr: float | Literal["auto"] = "auto",
        until: int | None = None,
    ) -> FinetuneResult:
        """Train a design on its own, from the supernet's weights, distilling the float network.

        The better of before and after on the search-validation images is kept: a brief training
        at too high a rate can cost a good design some points. The test images choose nothing. They
        are measured at the end of every call, also where more steps may follow: whether they do
        is decided elsewhere, and the result of the last call is the design's.

        Args:
            row: the design.
            config: how to train.
            seed: seed of the training.
            checkpoint: file of the training's state; it is resumed where there is one. It stays:
                only who has stored the result can delete it without losing the training.
            weights: file for the resulting epitomes (safetensors).
            lr: peak learning rate, or ``auto`` for the one that follows the damage; it takes the
                place of that of ``config``.
            until: steps after which to stop for now; the next call with more goes on there.

        Raises:
            InputError: the checkpoint is damaged, or of another training.
        """
        model = self._supernet.extract(row)
        training = digest([list(map(int, row)), asdict(config), seed, lr])
        before, damage = self._start(model, Path(checkpoint), training)
        config = replace(config, lr=peak_rate(lr, damage))
        start = {name: value.clone() for name, value in model.state_dict().items()}
        step = 0

        def note(done: int, loss: float) -> None:
            nonlocal step
            step = done
            if self.progress is not None:
                self.progress(done, loss)

        result = train(
            model,
            self._data,
            config,
            seed=seed,
            device=self._settings.device,
            precision=self._settings.precision,
            teacher=self._teacher,
            checkpoint=Path(checkpoint),
            checkpoint_every=_CHECKPOINT_EVERY,
            progress=note,
            stop=lambda: until is not None and step >= until,
        )
        validation = self._measure(model, "validation")
        after = validation.accuracy
        if after < before:
            model.load_state_dict(start)
        test = self._evaluate(model, "test")
        reached = {"validation_accuracy": f"{max(after, before):.4f}"}
        save_weights(model, weights, metadata=reached, stored=True)
        steps = result.steps if after >= before else 0
        return FinetuneResult(
            steps=steps,
            before=before,
            validation_accuracy=max(after, before),
            test_accuracy=test.accuracy,
            learning_rate=config.lr,
            damage=damage,
            curve=result.curve,
            validation_images=validation.images,
        )

    def _start(self, model: nn.Module, checkpoint: Path, training: str) -> tuple[float, float]:
        """Accuracy and damage before a training, kept beside its checkpoint.

        Another device measures others, if only by rounding, and the rate follows the damage: a
        training that goes on there would be taken for another one.

        Raises:
            InputError: the checkpoint is of another training.
        """
        file = start_file(checkpoint)
        stored = _read_start(file) if checkpoint.exists() else None
        if stored is not None:
            if stored["training"] != training:
                raise another_training(checkpoint)
            self._recalibrate(model)
            return float(stored["validation_accuracy"]), float(stored["damage"])
        before = self._measure(model, "validation").accuracy
        damage = measure_damage(
            model, self._teacher, self._calibration, self._settings.device, self._settings.precision
        )
        start = {"training": training, "validation_accuracy": before, "damage": damage}
        store_json(file, start)
        return before, damage

    def _recalibrate(self, model: nn.Module) -> None:
        settings = self._settings
        recalibrate_batch_norm(model, self._calibration, settings.device, settings.precision)

    def _measure(self, model: nn.Module, split: str) -> Score:
        self._recalibrate(model)
        return self._evaluate(model, split)

    def _evaluate(self, model: nn.Module, split: str) -> Score:
        settings = self._settings
        limit = settings.validation_images if split == "validation" else None
        batches = self._data.batches(split, settings.batch_size, limit)  # type: ignore[arg-type]
        with torch.no_grad():
            return evaluate(model, batches, settings.device, settings.precision)
