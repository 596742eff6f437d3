"""Weights: checkpoints that are checked as a whole before anything is copied into a model."""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epim_nas.errors import InputError, nearest
from epim_nas.files import atomic_path, user_path
from epim_nas.stored import check_stored, store_path

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

_NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the state dict; the first of them is taken."""

_AVERAGED_COUNT = "n_averaged"
"""The one key that ``torch.optim.swa_utils.AveragedModel`` puts beside those of its model."""
_COMPILED = "_orig_mod"
"""What torch.compile puts before the names inside of a compiled module."""

_TEXTS = {
    b"<": "a web page (HTML or XML): the download was answered by a page, not by the file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it points to",
    b"{": "a JSON text: the download was answered by a message, not by the file",
}
_BINARIES = {b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file, such as Keras writes"}
"""How files that are often taken for checkpoints begin."""

_UNUSED_COUNTER = "num_batches_tracked"
_ORDERS = (".out_order", ".in_order")
"""Orders of an epitome's channels: a state has them where they differ from the network's own."""

_EPITOME = ".epitome"

_OTHER_DESIGN = (
    "Are they of another design? Take the weights that were exported or fine-tuned with this one."
)

_ALLOWED = "a safetensors file, or torch.save(model.state_dict(), ...)"
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
            A prefix of all names (of ``DataParallel``, ``AveragedModel``, a training framework) is
            removed, and what ``torch.compile`` adds.
        field: where the path was given, for messages.

    Raises:
        InputError: no such file, not a checkpoint, a checkpoint that would execute code, keys or
            shapes that differ from the model's, or numbers that the model cannot hold
            (:func:`load_state`).
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
        InputError: names or shapes that differ from the model's, numbers of another kind (integer,
            complex, quantized) or beyond the range of the model's, NaN, infinity, or negative
            variances.
    """
    expected = {key: value for key, value in model.state_dict().items() if hasattr(value, "shape")}
    state = _unwrapped(state, expected)
    _check_dense(state, where)
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
    _check_kind(start, file, field)
    check_stored(file)
    # A safetensors file is a length of 8 bytes and a JSON object.
    if start[8:9] == b"{" and not zipfile.is_zipfile(file):
        return _read_safetensors(file, field)
    return _state_of(_read_torch(file, field), file, field)


def _check_kind(start: bytes, file: Path, field: str) -> None:
    """Refuse what is often taken for a checkpoint, by its first bytes."""
    known = _BINARIES
    if b"\0" not in start:  # a safetensors file may begin like a text, but for the zeros
        start, known = start.removeprefix(b"\xef\xbb\xbf").lstrip(), _TEXTS
    for beginning, what in known.items():
        if start.startswith(beginning):
            raise InputError(field, f"`{file}` is {what}", _ALLOWED, "Get the file again.")


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
        if _is_pickle(file) and "unsupported" in str(error).lower():
            raise InputError(
                field,
                f"`{file}` holds Python objects besides tensors; loading it would execute code",
                _ALLOWED,
                "Load it where you trust it and save the state dict alone.",
            ) from None
        raise _not_a_checkpoint(file, field) from None
    except (
        RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError,
        ArithmeticError, AssertionError, ImportError, MemoryError, struct.error, SafetensorError,
    ):  # fmt: skip
        raise _not_a_checkpoint(file, field) from None


def _is_pickle(file: Path) -> bool:
    """Whether a file begins with a pickle, or is a zip file with one, as torch writes."""
    start = _member(file, "data.pkl")
    if start is None:
        with open(file, "rb") as stream:
            start = stream.read(1)
    return start[:1] == b"\x80"


def _member(file: Path, ending: str) -> bytes | None:
    """The first member of a zip file whose name ends so; None if there is none to be read."""
    # zipfile raises much more than BadZipFile on a damaged directory: of text, of compression,
    # of passwords, of versions.
    with suppress(Exception), zipfile.ZipFile(file) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith(ending))
    return None


def _not_a_checkpoint(file: Path, field: str) -> InputError:
    if _member(file, "constants.pkl") is not None:
        return InputError(
            field,
            f"`{file}` is a TorchScript program",
            _ALLOWED,
            "Load it where you trust it (torch.jit.load) and save its state dict.",
        )
    if _member(file, ".npy") is not None:
        return InputError(field, f"`{file}` is a NumPy archive", _ALLOWED)
    return InputError(field, f"`{file}` is not a checkpoint, or it is damaged", _ALLOWED)


def _state_of(data: Any, file: Path, field: str) -> dict[str, torch.Tensor]:
    """The state dict in what a checkpoint holds."""
    if _is_state(data):
        return dict(data)
    entries = dict(data) if isinstance(data, Mapping) else {}
    usual = [key for key in _NESTED if key in entries]
    states = {
        key: state
        for key in (*usual, *(key for key in entries if key not in usual))
        if (state := _inner_state(entries[key])) is not None
    }
    found = list(states)
    if found and (found[0] in _NESTED or len(found) == 1):
        first, others = found[0], ", ".join(f"`{key}`" for key in found[1:])
        if others or first not in _NESTED:
            logger.info(
                "%s: the weights under `%s` are taken%s",
                file.name, first, f", not those under {others}" * bool(others),
            )  # fmt: skip
        return states[first]
    keys = found or list(entries)
    raise InputError(
        field,
        f"`{file}` holds {'several state dicts' if found else 'no state dict but '}"
        + (" under " if found else "the keys " if entries else f"a {type(data).__name__}")
        + ", ".join(f"`{key}`" for key in keys[:_SHOWN]),
        "parameter names with their tensors and nothing else, at the top or under "
        + ", ".join(f"`{key}`" for key in _NESTED),
        "Save the weights to be used alone." if found else "",
    )


def _inner_state(data: Any, levels: int = 3) -> dict[str, torch.Tensor] | None:
    """A state dict, or the first one under the usual keys of so many levels."""
    if _is_state(data):
        return dict(data)
    if not isinstance(data, Mapping) or levels == 0:
        return None
    inner = (_inner_state(data.get(key), levels - 1) for key in _NESTED)
    return next((state for state in inner if state is not None), None)


def _is_state(data: Any) -> bool:
    import torch

    return (
        isinstance(data, Mapping)
        and bool(data)
        and all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in data.items()
        )
    )


def _unwrapped(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state without what wrappers of a model add to its names, and without their own keys."""
    if not any(_COMPILED in key.split(".") for key in expected):
        plain = {
            ".".join(part for part in key.split(".") if part != _COMPILED): value
            for key, value in state.items()
        }
        if len(plain) == len(state):
            state = plain
    prefix = _prefix(state, expected)
    inner = {key.removeprefix(prefix): value for key, value in state.items() if
             key.startswith(prefix)}  # fmt: skip
    others = {key.rpartition(".")[2] for key in state if not key.startswith(prefix)}
    return inner if others <= {_AVERAGED_COUNT} else dict(state)


def _prefix(state: Iterable[str], expected: Container[str]) -> str:
    """What most names of the model have before them in the state; usually nothing."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                counts[key[: len(".".join(parts[:start])) + (start > 0)]] += 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _check_dense(state: Mapping[str, torch.Tensor], where: str) -> None:
    import torch

    for key, value in state.items():
        if value.is_meta:
            raise InputError(where, f"`{key}` has a shape but no numbers (device `meta`)")
        if value.is_nested or value.layout != torch.strided:
            layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise InputError(where, f"`{key}` is a tensor of the layout {layout}", "dense tensors")


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
        prefix = _prefix(state, expected)
        own = {prefix + key for key in expected}
        others = [key for key in state if key not in own]
        tops = {prefix + key.partition(".")[0] + "." for key in expected}
        whole = all(prefix + key in state or _is_optional(key, expected) for key in expected)
        if whole and not any(key.startswith(tuple(tops)) for key in others):
            return (
                "All tensors of the model are there"
                + (f"; their names begin with `{prefix}`" if prefix else "")
                + f": save them alone, without the {len(others)} others (`{others[0]}`, ...)."
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
