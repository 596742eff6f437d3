"""Relative paths of a run file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDERS = ("data.root", "reuse")
"""Keys whose values are paths."""
_NAMES = ("model.weights", "hardware.chip", "space")
"""Keys whose values are paths where they have a suffix or a slash; names of presets otherwise."""


def with_absolute_paths(data: Mapping[str, Any], *bases: Path) -> dict[str, Any]:
    """A run file's content, every path that exists made absolute; the rest is as it was.

    Args:
        data: the content, not validated yet.
        bases: folders that relative paths may start from; the first where one exists is taken.
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
        if isinstance(value, str) and (key in _FOLDERS or Path(value).suffix or "/" in value):
            holder[last] = _absolute(value, bases)
    return result


def _absolute(path: str, bases: tuple[Path, ...]) -> str:
    for base in bases if path else ():
        # By `os`: where `Path` raises (an unknown user, a name too long), these find nothing.
        found = os.path.join(base, os.path.expanduser(path))
        if os.path.exists(found):
            return os.path.realpath(found)
    return path
