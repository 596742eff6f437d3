"""What a model has to be for a search, checked and put right before anything is computed."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from epim_nas.errors import InputError, shortened
from epim_nas.network.modules import clone

log = logging.getLogger(__name__)

_IMAGES = 2
"""Images of the batch that a model is tried with; with one, batch norm may have a single value."""


def initialise(model: nn.Module, name: str, input_shape: tuple[int, int, int]) -> None:
    """Bring a model into float32, and let its lazy modules take their shapes from one run.

    Args:
        model: the model; changed in place.
        name: its name in the run file, for messages.
        input_shape: (channels, height, width) of one image.

    Raises:
        InputError: it has no values, or cannot compute these images.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("model", f"`{name}` has parameters without values (device `meta`)")
    kinds = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
    if kinds:
        listed = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        log.info("model %s: converted from %s to float32", name, listed)
        model.float()
    if any(map(nn.parameter.is_lazy, tensors)):
        training = model.training
        _run(model.eval(), name, _images(input_shape), "evaluation")
        model.train(training)


def check_outputs(
    model: nn.Module, name: str, input_shape: tuple[int, int, int], classes: int
) -> None:
    """Check that a model returns one tensor of (images, classes or more), also in training.

    Args:
        model: the model; stays as it is.
        name: its name in the run file, for messages.
        input_shape: (channels, height, width) of one image.
        classes: of the data.

    Raises:
        InputError: it does not, or cannot compute these images.
    """
    trial = clone(model)  # some layers keep statistics of their inputs
    for mode in ("evaluation", "training"):
        trial.train(mode == "training")
        _check_output(_run(trial, name, _images(input_shape), mode), name, mode, classes)


def trains_on_one_image(model: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Whether a model can be trained on batches of one image.

    A batch norm of one value a channel cannot be (``nn.BatchNorm1d``, or behind global pooling).
    """
    trial = clone(model).train()
    try:
        with torch.no_grad():
            trial(_images(input_shape)[:1])
    except ValueError:
        return False
    return True


def _images(shape: tuple[int, int, int]) -> Tensor:
    return torch.zeros(_IMAGES, *shape)


def _run(model: nn.Module, name: str, images: Tensor, mode: str) -> object:
    try:
        with torch.no_grad():
            return model(images)
    except InputError:
        raise
    except Exception as error:  # the user's code
        raise InputError(
            "model",
            f"`{name}` fails in {mode} mode on a batch of shape {tuple(images.shape)}: "
            f"{shortened(f'{type(error).__name__}: {error}', 300)}",
            "a model that computes the images of the data",
            "Check the size and the channels of the images.",
        ) from None


def _check_output(output: object, name: str, mode: str, classes: int) -> None:
    allowed = f"one tensor of the shape (images, {classes}), in evaluation and in training"
    if not isinstance(output, Tensor):
        hint = "Wrap it in a module that returns the main output."
        if mode == "training":
            hint = (
                "It has heads for training alone: build it without (model.args, such as "
                "`aux_logits: false` of torchvision's networks), or wrap it."
            )
        raise InputError(
            "model", f"`{name}` returns a {type(output).__name__} in {mode} mode", allowed, hint
        )
    fits = output.dim() == 2 and len(output) == _IMAGES and output.shape[1] >= classes
    if not fits or not output.is_floating_point():
        raise InputError(
            "model",
            f"`{name}` returns a tensor of the shape {tuple(output.shape)} and type "
            f"{str(output.dtype).removeprefix('torch.')} for {_IMAGES} images",
            allowed,
            "Pool and flatten before the last linear layer.",
        )
