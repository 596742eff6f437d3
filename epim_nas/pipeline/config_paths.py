"""Relative paths of a run file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epim_nas.files import user_path

_FOLDERS = ("data.root", "reuse")
"""Keys whose values are paths."""
_NAMES = ("model.weights", "hardware.chip", "space")
"""Keys whose values are paths where they have a suffix or a slash; names of presets otherwise."""


def with_absolute_paths(data: Mapping[str, Any], *bases: Path) -> dict[str, Any]:
    """A run file's content with absolute paths; names of presets stay as they are.

    Args:
        data: the content, not validated yet.
        bases: folders that relative paths may start from: the first where one exists is taken, or
            the last where none does. Data may be downloaded to there, and the same run file has
            to mean the same afterwards.

    Raises:
        InputError: a path that cannot be one.
    """
    result = dict(data)
    for key in (*_FOLDERS, *_NAMES):
        group, _, last = key.rpartition(".")
        if not group:
            holder = result
        elif isinstance(result.get(group), Mapping):
            holder = result[group] = dict(result[group])
        else:
            continue
        value = holder.get(last)
        if isinstance(value, str) and value and (key in _FOLDERS or _is_path(value)):
            holder[last] = _absolute(user_path(value, key), bases)
    return result


def _is_path(value: str) -> bool:
    return bool(Path(value).suffix) or "/" in value


def _absolute(path: Path, bases: tuple[Path, ...]) -> str:
    places = [os.path.join(base, path) for base in bases]
    return os.path.realpath(next(filter(os.path.exists, places), places[-1]))
