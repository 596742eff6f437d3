"""Presets: YAML files that are found by name, from any folder, also after ``pip install``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from epim_nas.errors import InputError, nearest
from epim_nas.files import user_path

Kind = Literal["search_spaces", "cost_models", "runs"]

_WORDS: dict[Kind, str] = {
    "search_spaces": "search space",
    "cost_models": "chip",
    "runs": "run file",
}


def names(kind: Kind) -> list[str]:
    """Names of the presets of a kind."""
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def find(kind: Kind, name_or_path: str, field: str) -> Path:
    """The file of a preset's name or of a path to a YAML file.

    Args:
        kind: which presets.
        name_or_path: a preset's name, or a path (it has a suffix or a separator).
        field: where the name was given, for the message.

    Raises:
        InputError: neither a preset nor a file.
    """
    path = user_path(name_or_path, field)
    if path.suffix or len(path.parts) > 1:
        if path.exists() and not path.is_dir():  # whoever reads it says what else it may be
            return path
        problem = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(field, f"`{name_or_path}`: {problem}", hint="Check the path.")
    preset = _folder(kind) / f"{name_or_path}.yaml"
    if preset.is_file():
        return preset
    known = names(kind)
    raise InputError(
        field,
        f"`{name_or_path}` is not a known {_WORDS[kind]}",
        "the path of a YAML file, or one of " + ", ".join(f"`{name}`" for name in known),
        nearest(name_or_path, known),
    )


def _folder(kind: Kind) -> Path:
    return Path(str(resources.files(f"epim_nas.{kind}").joinpath("__init__.py"))).parent
