"""Whose the folder of a fine-tuning is, and what its files hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from epim_nas.errors import InputError
from epim_nas.export.weights import weights_digest
from epim_nas.files import digest, file_digest
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.finetune.job import Job
from epim_nas.schema import load_json_as
from epim_nas.stored import check_stored, store_json
from epim_nas.supernet.evaluation import resolve_device, resolve_precision

DAMAGED = "Remove the folder, or give another --out."
_IDENTITY = ("seed", "data", "quantization", "projection", "finetune")
"""Keys of the run file that a training depends on as a whole."""
_DIGESTS = ("design", "weights", "dense_weights", "chip")
"""Settings that are stored as their SHA-256."""
_DIGITS = 12
"""Digits of a digest that a message shows."""


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        before: validation top-1, batch norm recalibrated.
        damage: nats between the float network and this one.
        learning_rate: peak learning rate.
    """

    before: float
    damage: float
    learning_rate: float


class Result(TypedDict):
    """The content of ``result.json``; accuracies are top-1, 0..1, of the weights that were kept.

    Attributes:
        schema: ``epim-nas/finetuning@1``.
        network: name of the network.
        epochs: that were asked for.
        steps: that the kept weights were trained; 0 where those before were better.
        learning_rate: peak learning rate.
        damage: nats between the float network and the design before training.
        before: validation accuracy before training.
        validation_accuracy: after it.
        test_accuracy: likewise, of the test images.
        validation_curve: (step, accuracy) after every epoch.
        weights: file name of the weights.
    """

    schema: str
    network: str
    epochs: int
    steps: int
    learning_rate: float
    damage: float
    before: float
    validation_accuracy: float
    test_accuracy: float
    validation_curve: list[tuple[int, float]]
    weights: str


def settings_of(job: Job, run: Run, weights: Path | None, workers: int) -> dict[str, Any]:
    """Everything that the trained weights depend on: the identity of a fine-tuning."""
    config = job.config
    device = resolve_device(config.device)
    by_crossbar = config.quantization.granularity == "crossbar"
    dense = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    return {
        "design": digest(job.design.to_dict()["layers"]),
        "weights": None if weights is None else file_digest(weights),
        # Where a training starts, and what it is distilled from. Not the digest of a file: the
        # weights of a library's network come from none.
        "dense_weights": weights_digest(dense),
        # Elsewhere no weight knows the crossbar that it will lie on.
        "chip": run.chip.digest if by_crossbar else None,
        "workers": workers,
        # `auto` differs from device to device.
        "precision": resolve_precision(device, config.precision),
        # Its weights may lie anywhere: `dense_weights` knows them.
        "model": config.model.model_dump(mode="json", exclude={"weights"}),
        **config.model_dump(mode="json", include=set(_IDENTITY)),
        # What activations and batch norm are calibrated with.
        "search": config.search.model_dump(include={"batch_size", "calibration_images"}),
    }


def adopt(job: Job, settings: dict[str, Any]) -> Result | None:
    """Make the folder this job's, or find its finished result there.

    Args:
        job: the job.
        settings: its identity (:func:`settings_of`).

    Raises:
        InputError: the folder is another job's, or of an earlier version, whose settings do not
            say whether it is.
    """
    file, result = job.folder / "settings.json", job.folder / "result.json"
    # A folder in which nothing was computed yet, because of a mistake, belongs to nobody.
    if result.exists() or job.start_record.exists():
        stored = load_json_as(file, dict[str, Any], DAMAGED)
        _check_same(job.folder, _by_path(stored), _by_path(settings))
    store_json(file, settings)
    if not result.exists():
        return None
    finished = load_json_as(result, Result, DAMAGED)
    weights = job.folder / finished["weights"]
    if not weights.is_file():
        raise InputError(
            str(weights), "is missing, though the fine-tuning is finished", hint=DAMAGED
        )
    check_stored(weights, DAMAGED, job.folder)
    return finished


def _check_same(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse a folder whose stored settings are not those that are asked for."""
    allowed = "the folder of this fine-tuning, or a new one"
    different = [key for key in asked if key in stored and stored[key] != asked[key]]
    if different:
        told = "; ".join(
            f"`{key}`: stored {_shown(key, stored[key])}, asked {_shown(key, asked[key])}"
            for key in different
        )
        raise InputError(
            "--out",
            f"{folder} holds a fine-tuning with other settings ({told})",
            allowed,
            "Give another --out, or remove the folder to train anew.",
        )
    missing = [key for key in asked if key not in stored]
    if missing:
        raise InputError(
            "--out",
            f"{folder} holds a fine-tuning of an earlier version, which did not store "
            f"{', '.join(f'`{key}`' for key in missing)}: nobody can tell whether it is this one",
            allowed,
            "Give another --out, or remove the folder to train anew. The weights of a finished "
            "one can still be used, by the --weights of evaluate, export and finetune.",
        )


def _by_path(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the keys of groups as ``group.key``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": part for inner, part in value.items()}
        else:
            found[key] = value
    return found


def _shown(key: str, value: Any) -> str:
    """A setting in a message."""
    if key in _DIGESTS and isinstance(value, str):
        return f"sha256 {value[:_DIGITS]}..."
    return json.dumps(value)
