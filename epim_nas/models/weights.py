"""Weights: checkpoints that are checked as a whole before anything is copied into a model."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epim_nas.errors import InputError, nearest
from epim_nas.files import atomic_path, user_path
from epim_nas.stored import check_stored, store_path

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

_NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the state dict."""
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys under which they put averaged weights; taken where there are no others."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, AveragedModel, torch.compile and training frameworks put before every key."""
_AVERAGED_COUNT = "n_averaged"
"""The one key that ``torch.optim.swa_utils.AveragedModel`` puts beside those of its model."""
_KINDS = {
    b"<": "a web page (HTML or XML): the download was answered by a page, not by the file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it points to",
}
"""How files that are often taken for checkpoints begin."""

_UNUSED_COUNTER = "num_batches_tracked"
_ORDERS = (".out_order", ".in_order")
"""Orders of an epitome's channels: a state has them where they differ from the network's own."""

_EPITOME = ".epitome"

_OTHER_DESIGN = (
    "Are they of another design? Take the weights that were exported or fine-tuned with this one."
)

_SHOWN = 5
_FOLDER = Path(__file__).parent / "weights"


def weight_names() -> list[str]:
    """Names of the checkpoints that this package ships."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def find_weights(name_or_path: str | Path, *, field: str = "model.weights") -> Path:
    """The file of a shipped checkpoint's name, or of a path.

    Args:
        name_or_path: a name (:func:`weight_names`), or a path (with a suffix or a separator).
        field: where it was given, for the message.

    Raises:
        InputError: neither a shipped checkpoint nor a file.
    """
    path = user_path(name_or_path, field)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        problem = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(field, f"`{name_or_path}`: {problem}", hint="Check the path.")
    shipped = _FOLDER / f"{path}.safetensors"
    if shipped.is_file():
        return shipped
    known = weight_names()
    raise InputError(
        field,
        f"`{name_or_path}` is not a known checkpoint",
        ", ".join(["the path of a .safetensors or .pt file", *(f"`{name}`" for name in known)]),
        nearest(str(name_or_path), known),
    )


def load_weights(model: nn.Module, path: str | Path, *, field: str = "model.weights") -> None:
    """Copy a checkpoint into a model, completely or not at all.

    Args:
        model: the model; keeps its device and number types.
        path: a safetensors file, or a torch checkpoint without Python objects: a state dict, or a
            dict with one under ``state_dict``, ``model_state_dict``, ``model`` or ``net``.
            Prefixes of ``DataParallel`` and ``torch.compile`` are removed.
        field: where the path was given, for messages.

    Raises:
        InputError: no such file, not a checkpoint, a checkpoint that would execute code, keys or
            shapes that differ from the model's, or NaN or infinity in a tensor.
    """
    where = f"{field} ({Path(path).name})"
    load_state(model, read_state(path, field=field), where)


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy tensors into a model, completely or not at all.

    Args:
        model: the model.
        state: name -> tensor.
        where: what they are, for messages.

    Raises:
        InputError: names or shapes that differ from the model's, or NaN or infinity in a tensor.
    """
    expected = {key: value for key, value in model.state_dict().items() if hasattr(value, "shape")}
    state = _strip_prefixes(dict(state), expected)
    _check_keys(state, expected, where)
    state = {
        key: _as_stored(key, value, expected[key], where) if key in expected else value
        for key, value in state.items()
    }
    # A counter that only matters for cumulative averages; older checkpoints do not have it.
    counters = {key: value for key, value in expected.items() if key.endswith(_UNUSED_COUNTER)}
    try:
        model.load_state_dict({**counters, **state}, strict=False)
    except (InputError, TypeError) as error:  # an epitome's orders of channels, which it checks
        raise InputError(
            where, f"the order of a layer's channels does not fit ({error})", hint=_OTHER_DESIGN
        ) from None


def save_weights(
    model_or_state: nn.Module | Mapping[str, torch.Tensor],
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    stored: bool = False,
) -> None:
    """Write a safetensors file, replacing it atomically.

    Args:
        model_or_state: a model or its state dict.
        path: the file.
        metadata: what to say about it; values are stored as text.
        stored: whether a run reads it back, so that its digest is noted (:mod:`epim_nas.stored`).
    """
    from safetensors.torch import save_file
    from torch import nn

    state = model_or_state
    if isinstance(state, nn.Module):
        state = state.state_dict()
    # Tensors that share memory would be refused; each is written out on its own.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    notes = {str(key): str(value) for key, value in (metadata or {}).items()}
    with (store_path if stored else atomic_path)(path) as temporary:
        save_file(tensors, temporary, metadata=notes or None)


def read_state(path: str | Path, *, field: str = "model.weights") -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint, on the CPU, as it is stored.

    Raises:
        InputError: no such file, not a checkpoint, a checkpoint that would execute code, or one
            that a run has stored and that has changed.
    """
    file = find_weights(path, field=field)
    try:
        with open(file, "rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputError(field, f"`{path}` cannot be read: {error.strerror}") from None
    for beginning, what in _KINDS.items():
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            allowed = "a safetensors file, or a state dict saved with torch.save"
            raise InputError(field, f"`{file}` is {what}", allowed, "Download the file again.")
    check_stored(file)
    # A safetensors file is a length of 8 bytes and a JSON object.
    if start[8:9] == b"{" and not zipfile.is_zipfile(file):
        return _read_safetensors(file, field)
    return _state_of(_read_torch(file, field), file, field)


def _read_safetensors(file: Path, field: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(
            field, f"`{file}` is a damaged safetensors file ({error})", hint="Copy it again."
        ) from None


def _read_torch(file: Path, field: str) -> Any:
    import torch
    from safetensors import SafetensorError

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Anything that is not a pickle at all begins otherwise.
        with open(file, "rb") as stream:
            pickled = stream.read(1) == b"\x80" or zipfile.is_zipfile(file)
        if pickled and "unsupported" in str(error).lower():
            raise InputError(
                field,
                f"`{file}` holds Python objects besides tensors; loading it would execute code",
                "a safetensors file, or torch.save(model.state_dict(), ...)",
                "Load it where you trust it and save the state dict alone.",
            ) from None
        raise _not_a_checkpoint(file, field) from None
    except (
        RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError,
        SafetensorError,
    ):  # fmt: skip
        raise _not_a_checkpoint(file, field) from None


def _not_a_checkpoint(file: Path, field: str) -> InputError:
    return InputError(
        field,
        f"`{file}` is not a checkpoint, or it is damaged",
        "a safetensors file, or a state dict saved with torch.save",
    )


def _state_of(data: Any, file: Path, field: str) -> dict[str, torch.Tensor]:
    """The state dict in what a checkpoint holds."""
    import torch

    if isinstance(data, Mapping):
        nested = [key for key in (*_NESTED, *_AVERAGED) if isinstance(data.get(key), Mapping)]
        if nested:
            if len(nested) > 1:
                log.info(
                    "%s: the weights under `%s` are taken, not those under %s",
                    file.name, nested[0], ", ".join(f"`{key}`" for key in nested[1:]),
                )  # fmt: skip
            return _state_of(data[nested[0]], file, field)
        if data and all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in data.items()
        ):
            return dict(data)
    found = (
        "the keys " + ", ".join(f"`{key}`" for key in list(data)[:_SHOWN])
        if isinstance(data, Mapping)
        else f"a {type(data).__name__}"
    )
    raise InputError(
        field,
        f"`{file}` holds no state dict but {found}",
        "parameter names with their tensors, at the top or under "
        + ", ".join(f"`{key}`" for key in _NESTED),
    )


def _strip_prefixes(
    state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            # A model may really have a part of that name.
            own = any(key.startswith(prefix) for key in expected)
            found = [key for key in state if key.startswith(prefix)]
            if found and not own and {*state} - {*found} <= {_AVERAGED_COUNT}:
                state = {key.removeprefix(prefix): state[key] for key in found}
                stripped = True
    return state


def _check_keys(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str
) -> None:
    """Refuse names and shapes that differ, and list the first of each kind."""
    missing = [k for k in expected if k not in state and not _is_optional(k, expected)]
    unexpected = [k for k in state if k not in expected and not _is_optional(k, expected)]
    shapes = [
        f"{key}: {tuple(value.shape)} and not {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    parts = [
        f"{len(found)} {what} ({', '.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''})"
        for found, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (shapes, "of another shape"),
        )
        if found
    ]
    if parts:
        raise InputError(
            where,
            "the tensors are not the model's: " + ", ".join(parts),
            hint=_advice(state, expected, bool(missing or unexpected)),
        )


def _advice(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], other_names: bool
) -> str:
    """What is most likely wrong."""
    different = [
        key for key in state if key in expected and state[key].shape != expected[key].shape
    ]
    if any(key.endswith(_EPITOME) for key in {*different, *(set(state) ^ set(expected))}):
        return _OTHER_DESIGN
    if other_names:
        for prefix in _PREFIXES:
            inner = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
            others = [key for key in state if not key.startswith(prefix)]
            if others and inner & {*expected} and not inner - {*expected}:
                return (
                    f"The model's tensors are those whose names begin with `{prefix}`: save them "
                    f"alone, without the {len(others)} others (`{others[0]}`, ...)."
                )
        return "Is it a checkpoint of this model, with the same depth and arguments?"
    first = next((key for key in expected if expected[key].ndim == 4), "")
    theirs, mine = (tuple(tensors[first].shape) if first else () for tensors in (state, expected))
    in_channels = len(theirs) == 4 and theirs == (mine[0], theirs[1], *mine[2:])
    if different == [first] and in_channels:
        names = {1: "grey images", 3: "colour images"}
        return (
            f"It is for {names.get(theirs[1], 'images')} ({theirs[1]} channels), and the data has "
            f"{names.get(mine[1], 'images')} ({mine[1]}). `data.args.mode` (L or RGB) converts the "
            "images of a folder."
        )
    last = list(expected)[-1].rpartition(".")[0]
    if all(
        key.rpartition(".")[0] == last and state[key].shape[1:] == expected[key].shape[1:]
        for key in different
    ):
        return "The shapes differ in the number of classes alone: is the data that of the model?"
    return "Check the model's width and arguments, the number of classes and of input channels."


def _is_optional(key: str, expected: Mapping[str, torch.Tensor]) -> bool:
    if key.endswith(_UNUSED_COUNTER):
        return True
    return key.endswith(_ORDERS) and key.rpartition(".")[0] + _EPITOME in expected


def _as_stored(key: str, value: torch.Tensor, target: torch.Tensor, where: str) -> torch.Tensor:
    """A tensor of a checkpoint in the number type of the model, in which it is checked.

    Raises:
        InputError: numbers of another kind, outside of the type's range, or a negative variance.
    """
    import torch

    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if target.is_floating_point() != (value.dtype in plain) or value.is_complex():
        raise InputError(
            where,
            f"`{key}` holds numbers of the type {str(value.dtype).removeprefix('torch.')}",
            "float16, bfloat16, float32 or float64"
            if target.is_floating_point()
            else "whole numbers",
            "Is it a quantized checkpoint? Save the weights as floating-point numbers.",
        )
    stored = value.to(target.dtype)
    if stored.is_floating_point() and not torch.isfinite(stored).all():
        beyond = bool(torch.isfinite(value).all())
        kind = str(target.dtype).removeprefix("torch.")
        raise InputError(
            where,
            f"`{key}` contains "
            + (f"numbers beyond the range of {kind}" if beyond else "NaN or infinity"),
            "finite numbers",
            "The training that wrote it diverged; use an earlier checkpoint.",
        )
    if key.endswith("running_var") and bool((stored < 0).any()):
        raise InputError(
            where,
            f"`{key}` contains a negative variance ({float(stored.min()):g})",
            "numbers from 0",
            "The file is damaged, or not a checkpoint of this model.",
        )
    return stored
