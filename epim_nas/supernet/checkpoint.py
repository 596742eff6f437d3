"""The file that an interrupted training goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from epim_nas.errors import InputError
from epim_nas.stored import check_stored, store_path

FORMAT = "epim-nas/training@1"
_ANEW = "Remove the file to train from the beginning."


@dataclass
class TrainState:
    """Where a training is.

    Attributes:
        step: optimizer steps done.
        curve: (step, mean loss of the steps since the point before).
        pending: losses since the last point of the curve.
        measured: (step, measurement).
    """

    step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    measured: list[tuple[int, float]] = field(default_factory=list)

    def record(self, loss: float, every: int, last_step: int) -> None:
        """Count one step and its loss; a point joins the curve ``every`` steps and at the end."""
        self.step += 1
        self.pending.append(loss)
        if self.step % every == 0 or self.step == last_step:
            self.curve.append((self.step, sum(self.pending) / len(self.pending)))
            self.pending.clear()


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    identity: str,
    average: nn.Module | None = None,
) -> None:
    """Replace ``path`` atomically by the state of a training.

    Args:
        path: the file; ``torch.load(path, weights_only=True)`` reads it.
        model: the model.
        optimizer: its optimizer.
        state: where the training is.
        identity: digest of everything that determines the training.
        average: the averaged model, where there is one.
    """
    content = {
        "format": FORMAT,
        "identity": identity,
        "step": state.step,
        "curve": list(state.curve),
        "pending": list(state.pending),
        "measured": list(state.measured),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
    }
    write_saved(path, content)


def write_saved(path: Path, content: Any) -> None:
    """Replace ``path`` atomically by what ``torch.save`` writes of tensors and plain data."""
    # Into a file of Python's: torch says nothing of a full disk that could be understood.
    with store_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    average: nn.Module | None = None,
) -> TrainState:
    """Put ``model``, ``optimizer`` and ``average`` into the state stored in ``path``.

    Raises:
        InputError: the file is damaged, no checkpoint, or belongs to another training.
    """
    content = read_checkpoint(path)
    if content["identity"] != identity:
        raise another_training(path)
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        if average is not None:
            average.load_state_dict(content["average"])
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            str(path), f"does not fit the model: {str(error).splitlines()[0]}", hint=_ANEW
        ) from None
    curve = [(int(step), float(loss)) for step, loss in content["curve"]]
    measured = [(int(step), float(value)) for step, value in content.get("measured", [])]
    pending = [float(loss) for loss in content["pending"]]
    return TrainState(int(content["step"]), curve, pending, measured)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU.

    Raises:
        InputError: the file is missing, damaged or no checkpoint of a training.
    """
    content = load_saved(path, _ANEW)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(str(path), "is not a checkpoint of a training", f"format `{FORMAT}`")
    return content


def load_saved(path: Path, hint: str) -> Any:
    """What ``torch.save`` wrote of tensors and plain data, tensors on the CPU.

    Args:
        path: the file.
        hint: what to do where it is damaged.

    Raises:
        InputError: the file is missing or damaged.
    """
    check_stored(path, hint)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, UnpicklingError) as error:
        # torch's own message has many lines about unsafe loading, which is never right here.
        reason = error.strerror if isinstance(error, OSError) else "damaged, or not of torch"
        raise InputError(str(path), f"cannot be read: {reason}", hint=hint) from None


def another_training(path: Path) -> InputError:
    """What is said of a checkpoint that belongs to another training."""
    return InputError(
        str(path),
        "belongs to another training (its settings, data, seed or model differ)",
        "the checkpoint of this training",
        _ANEW,
    )
