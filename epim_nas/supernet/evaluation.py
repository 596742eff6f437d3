"""Evaluation: accuracy and loss of a model, batch-norm recalibration, device and precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from epim_nas.data.base import Batch
from epim_nas.errors import InputError, nearest

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Score:
    """How well a model does on a set of images.

    Attributes:
        accuracy: top-1 accuracy, 0..1.
        loss: mean cross-entropy in nats; NaN where an output is not finite.
        images: number of images.
        own: metrics that the user registered -> value.
    """

    accuracy: float
    loss: float
    images: int
    own: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: str | torch.device = "cpu",
    precision: str = "auto",
) -> Score:
    """Top-1 accuracy and cross-entropy of ``model`` in evaluation mode.

    Args:
        model: maps images ``(N, C, H, W)`` to scores ``(N, classes)``; moved to ``device``. Its
            training mode is restored.
        batches: images and labels.
        device: see :func:`resolve_device`.
        precision: see :func:`autocast`.

    Raises:
        InputError: there are no images.
    """
    device = resolve_device(device)
    model.to(device)
    correct = loss = 0.0
    n_images = 0
    with evaluation_mode(model), torch.no_grad(), autocast(device, precision):
        for images, labels in batches:
            scores = model(to_device(images, device)).float()
            labels = labels.to(device, non_blocking=True)
            correct += (scores.argmax(1) == labels).sum().item()
            loss += functional.cross_entropy(scores, labels, reduction="sum").item()
            n_images += len(labels)
    if n_images == 0:
        raise InputError("evaluation", "there are no images to evaluate on", "at least one batch")
    return Score(correct / n_images, loss / n_images, n_images)


def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Batch],
    device: str | torch.device = "cpu",
    precision: str = "auto",
) -> None:
    """Collect the batch-norm statistics of ``model`` anew.

    Each running mean and variance becomes the average, over ``batches``, of what the batches show
    when every batch-norm layer normalises by its batch (as in training). Other layers are in
    evaluation mode. Nothing happens where no layer tracks statistics.

    Give it augmented training images (:meth:`Data.calibration_batches`), since that is what the
    rest of the network was trained on, in batches of equal size: each counts the same.

    Args:
        model: changed in place; its modes and momenta are restored.
        batches: images and labels (unused).
        device: see :func:`resolve_device`.
        precision: see :func:`autocast`.

    Raises:
        InputError: there are no batches.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    device = resolve_device(device)
    model.to(device)
    momenta = [norm.momentum for norm in norms]
    n_batches = 0
    try:
        with evaluation_mode(model), torch.no_grad(), autocast(device, precision):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # torch: cumulative instead of exponential average
            for images, _ in batches:
                model(to_device(images, device))
                n_batches += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if n_batches == 0:
        raise InputError("batch-norm recalibration", "there are no images", "at least one batch")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device of a name; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device, or it is not there.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    # Others that torch knows hold no numbers (`meta`), or have not been tried.
    if resolved is None or resolved.type not in ("cpu", "cuda", "mps"):
        known = ("auto", "cpu", "cuda", "mps")
        raise InputError(
            "device", f"got `{device}`", "auto, cpu, cuda, cuda:N or mps", nearest(device, known)
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise InputError(
            "device",
            f"got `{device}`, but torch sees {torch.cuda.device_count()} CUDA devices",
            "cpu, or auto to take what there is",
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device", "got `mps`, which is not available here", "cpu or auto")
    return resolved


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """The context in which a model computes at a precision.

    ``float32`` computes in float32, ``bfloat16`` lets torch use bfloat16 where it is safe.
    ``auto`` is bfloat16 on CUDA devices that have it and on CPUs with AVX512-BF16 or AMX
    instructions (there, ResNet-20 takes 80 instead of 185 ms a training step of 128), and float32
    elsewhere: CPUs without them emulate bfloat16, which is slower.

    Raises:
        InputError: an unknown precision.
    """
    if resolve_precision(device, precision) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def resolve_precision(device: torch.device, precision: str) -> str:
    """What :func:`autocast` takes ``auto`` for on a device; other precisions are themselves.

    Raises:
        InputError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise InputError(
            "precision", f"got `{precision}`", ", ".join(PRECISIONS), nearest(precision, PRECISIONS)
        )
    if precision == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    return precision


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


@lru_cache(maxsize=1)
def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """The instruction-set flags of the CPU as Linux names them; empty on other systems."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        flag
        for line in lines
        if line.startswith("flags")
        for flag in line.partition(":")[2].split()
    )


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Images on a device in channels-last layout, which convolutions are fastest in."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; each module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
