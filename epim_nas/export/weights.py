"""Export of weights: a model's epitomes and other tensors as safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from epim_nas.errors import EpimError, InputError
from epim_nas.export.manifest import WEIGHTS_KEY
from epim_nas.files import atomic_path, digest

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "epitomes.safetensors"
"""File of the epitomes in an export folder."""


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors: of their names, types, shapes and bytes.

    Neither the order of the names counts, nor the device, nor how the tensors lie in memory.

    Args:
        state: name -> tensor.
    """
    import torch

    described = {}
    for name, tensor in state.items():
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        sha256 = hashlib.sha256(content.data).hexdigest()
        described[name] = [str(tensor.dtype), list(tensor.shape), sha256]
    return digest(described)


def export_weights(
    model_state: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Replace ``path`` by the tensors of a model's ``state_dict``, then read them back and compare.

    Args:
        model_state: name -> tensor, on any device; shared storage is written once per name.
        path: where to write.
        metadata: texts to keep beside the tensors and their digest (:func:`weights_digest`).

    Returns:
        The path.

    Raises:
        InputError: nothing to export, or a tensor with NaN or infinity.
        EpimError: what was read back differs from what was written (a failing disk).
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not model_state:
        raise InputError("weights", "the model has no tensors to export")
    state: dict[str, Tensor] = {}
    for name, tensor in model_state.items():
        # Safetensors refuses views and shared storage: a clone is neither.
        state[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if tensor.is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise InputError(
                f"weights.{name}",
                "contains NaN or infinity",
                "finite numbers",
                "The training diverged: lower the learning rate and train again.",
            )
    texts = {str(key): str(value) for key, value in (metadata or {}).items()}
    texts |= {"format": "pt", WEIGHTS_KEY: weights_digest(state)}
    path = Path(path)
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=texts)
        _compare(state, load_file(temporary), path)
    return path


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of an exported file.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(str(path), "no such file", hint="Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise InputError(str(path), f"not a safetensors file ({error})") from None


def _compare(written: Mapping[str, Tensor], read: Mapping[str, Tensor], path: Path) -> None:
    import torch

    different = sorted(set(written) ^ set(read))
    for name in set(written) & set(read):
        same = written[name].dtype == read[name].dtype and torch.equal(written[name], read[name])
        if not same:
            different.append(name)
    if different:
        raise EpimError(
            f"{path}: what was read back differs from what was written, in "
            + ", ".join(different[:3])
        )
