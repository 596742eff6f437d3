"""The training loop: SGD with a cosine schedule, distillation, averaged weights, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from epim_nas.data.base import Data, seed_of
from epim_nas.epitome.quantization import ActivationQuantizer, WeightQuantizer
from epim_nas.errors import EpimError, InputError
from epim_nas.files import digest
from epim_nas.supernet.averaging import moving_average
from epim_nas.supernet.checkpoint import TrainState, load_checkpoint, save_checkpoint
from epim_nas.supernet.evaluation import autocast, evaluation_mode, resolve_device, to_device
from epim_nas.supernet.parallel import ALONE, Parallel
from epim_nas.supernet.train_config import TrainConfig

# A loss is recorded about so often in a training: enough for a curve, small in a checkpoint.
CURVE_POINTS = 200
# Steps between the copies of the weights that a failed training falls back to
_SNAPSHOT_EVERY = 50


class NonFiniteLoss(EpimError):
    """The loss became NaN or infinite.

    Attributes:
        step: the step at which it did.
        restored_step: the step whose weights the model has now.
    """

    exit_code = 2  # the learning rate, the precision or the images are wrong

    def __init__(self, step: int, loss: float, restored_step: int, learning_rate: float) -> None:
        self.step = step
        self.loss = loss
        self.restored_step = restored_step
        self.learning_rate = learning_rate
        super().__init__(
            f"The training loss became {loss} at step {step} (learning rate {learning_rate:.3g}). "
            f"The weights of step {restored_step} are restored. Use a smaller learning rate, "
            "gradient clipping or precision float32, and check the images for NaN."
        )

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[int, float, int, float]]:
        return type(self), (self.step, self.loss, self.restored_step, self.learning_rate)


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        curve: (step, mean loss of the steps since the point before) samples.
        steps: optimizer steps that the weights have had in all, resumed ones included.
        seconds: seconds that this call took.
        finished: False where ``stop`` ended it early.
        measured: (step, what ``measure`` returned).
    """

    curve: tuple[tuple[int, float], ...]
    steps: int
    seconds: float
    finished: bool
    measured: tuple[tuple[int, float], ...] = ()


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    progress: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
    variants: Callable[[int], Iterable[Callable[[], None]]] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    measure_every: int = 0,
    parallel: Parallel = ALONE,
) -> TrainResult:
    """Train ``model`` in place.

    The same arguments give the same weights; on a CPU with the same number of threads bit for bit,
    also where the training was interrupted and resumed from its checkpoint.

    Args:
        model: maps images to scores; moved to ``device``. Its training mode is restored.
        data: the images.
        config: how to train.
        seed: seed of the batches and of random layers such as dropout.
        device: see :func:`~epim_nas.supernet.evaluation.resolve_device`.
        precision: see :func:`~epim_nas.supernet.evaluation.autocast`.
        teacher: the network to distil from, used in evaluation mode; moved to ``device``.
        checkpoint: file that holds the state of the training; it is resumed where there is one.
        checkpoint_every: steps between checkpoints.
        progress: called after each step with the number of steps done and the step's loss.
        stop: asked after each step whether to stop here; the checkpoint is written then.
        variants: for a weight-sharing network: step -> functions, each of which switches ``model``
            to one of its variants. The gradient of a step is the mean over its variants.
        measure: measures the network as it would be if it ended here (the averaged one, where
            weights are averaged); it may recalibrate batch norm.
        measure_every: steps between measurements; 0 for none.
        parallel: the processes that train the same network, each on its part of every batch. The
            first one measures and writes checkpoints, which all of them have to be able to read.

    Raises:
        InputError: distillation without a teacher, images or labels that do not fit the model, or
            a checkpoint of another training.
        NonFiniteLoss: the loss became NaN or infinite; the model has its last good weights.
    """
    started = time.monotonic()
    if config.distillation > 0 and teacher is None:
        raise InputError(
            "training.distillation", f"got {config.distillation} without a teacher", "0"
        )
    device = resolve_device(device)
    model.to(device)
    if teacher is not None:
        teacher.to(device)
    optimizer = _optimizer(model, config)
    average = None if config.ema is None else moving_average(model, config.ema)
    identity = _identity(model, data, config, seed, teacher)
    state = TrainState()
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizer, identity, average)
    parallel.broadcast(model)
    good = (state.step, _snapshot(model))
    record_every = max(1, config.steps // CURVE_POINTS)
    finished = state.step >= config.steps
    batches = data.train_batches(
        config.batch_size, seed, state.step, (parallel.rank, parallel.size)
    )
    cuda = [device] if device.type == "cuda" else []
    with _training_mode(model), torch.random.fork_rng(cuda):
        while not finished:
            images, labels = next(batches)
            # Random layers depend on the step alone, so that a resumed training draws the same.
            torch.manual_seed(seed_of("layers", seed, state.step, parallel.rank))
            rate = config.lr_at(state.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            images, labels = to_device(images, device), labels.to(device, non_blocking=True)
            target = None
            if teacher is not None and config.distillation > 0:
                with evaluation_mode(teacher), torch.no_grad(), autocast(device, precision):
                    target = teacher(images)
            switches = list(variants(state.step)) if variants is not None else [_keep]
            value = 0.0
            for switch in switches:
                switch()
                for part in _parts(len(images), config.accumulation):
                    share = (part.stop - part.start) / (len(images) * len(switches))
                    soft = None if target is None else target[part]
                    with autocast(device, precision):
                        loss = share * _loss(model, images[part], labels[part], soft, data, config)
                    value += loss.item()
                    if math.isfinite(value):
                        loss.backward()
            value = parallel.mean(value)
            if not math.isfinite(value):
                model.load_state_dict(good[1])
                raise NonFiniteLoss(state.step, value, good[0], rate)
            if state.step % _SNAPSHOT_EVERY == 0:
                # A finite loss has just shown that these weights are sound.
                good = (state.step, _snapshot(model))
            parallel.average_gradients(model)
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            state.record(value, record_every, config.steps)
            finished = state.step >= config.steps
            if progress is not None:
                progress(state.step, value)
            due = measure_every > 0 and (finished or state.step % measure_every == 0)
            if due and measure is not None and parallel.first:
                network = model if average is None else average.module
                with evaluation_mode(model), evaluation_mode(network):
                    state.measured.append((state.step, measure(network)))
            halt = not finished and stop is not None and stop()
            save = finished or halt or state.step % checkpoint_every == 0
            if save and not _is_finite(model):
                # No later loss has looked at these weights, and a checkpoint must not keep them.
                model.load_state_dict(good[1])
                raise NonFiniteLoss(state.step, math.nan, good[0], rate)
            if save and checkpoint is not None and parallel.first:
                save_checkpoint(checkpoint, model, optimizer, state, identity, average)
            if halt:
                break
    if average is not None:  # where it was stopped as well: the raw weights go on in the checkpoint
        model.load_state_dict(average.module.state_dict())
    return TrainResult(
        tuple(state.curve),
        state.step,
        time.monotonic() - started,
        finished,
        tuple(state.measured),
    )


def _keep() -> None:
    """The only variant of a network that shares nothing."""


def _parts(images: int, count: int) -> list[slice]:
    """``count`` slices of nearly equal size over so many images; fewer where there are fewer."""
    edges = [round(images * k / count) for k in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if a < b]


def distillation_loss(scores: Tensor, teacher_scores: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, in nats.

    The factor T^2 keeps the gradient's size independent of the temperature (Hinton, Vinyals and
    Dean, arXiv 1503.02531, section 2).

    Args:
        scores: ``(N, classes)`` of the student.
        teacher_scores: ``(N, classes)`` of the teacher.
        temperature: T.
    """
    divergence = functional.kl_div(
        functional.log_softmax(scores.float() / temperature, 1),
        functional.log_softmax(teacher_scores.float() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def _loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: Tensor | None,
    data: Data,
    config: TrainConfig,
) -> Tensor:
    scores = model(images).float()
    if scores.shape != (len(images), data.num_classes):
        raise InputError(
            "model",
            f"its output for {len(images)} images has the shape {tuple(scores.shape)}",
            f"{(len(images), data.num_classes)}: data `{data.name}` has {data.num_classes} classes",
        )
    loss = scores.new_zeros(())
    if config.distillation < 1:
        hard = functional.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        loss = loss + (1 - config.distillation) * hard
    if target is not None:
        loss = loss + config.distillation * distillation_loss(scores, target, config.temperature)
    return loss


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("model", "has no parameters to train", "at least one")
    steps = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (ActivationQuantizer, WeightQuantizer))
        for parameter in module.parameters()
    }
    # Decaying a bias, a batch-norm scale or a quantization step only shrinks it: it does not
    # regularise.
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in steps]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in steps]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def _identity(
    model: nn.Module, data: Data, config: TrainConfig, seed: int, teacher: nn.Module | None
) -> str:
    return digest(
        {
            "config": asdict(config),
            "seed": seed,
            "data": [data.name, dict(data.sizes), list(data.input_shape), data.num_classes],
            "model": {name: list(value.shape) for name, value in model.state_dict().items()},
            "teacher": type(teacher).__name__,
        }
    )


def _snapshot(model: nn.Module) -> dict[str, Any]:
    return deepcopy(model.state_dict())


def _is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in training mode; each module's own mode is restored afterwards."""
    with evaluation_mode(model):
        model.train()
        yield
