"""Patterns of layer names: ``*`` and ``?`` stand for anything."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from epim_nas.errors import InputError, nearest
from epim_nas.network.spec import Network


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches the name of a layer."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Sequence[str], network: Network, field: str) -> None:
    """Refuse patterns that match no layer: they are usually a slip of the pen.

    Raises:
        InputError: a pattern matches no layer with a weight.
    """
    names = [layer.name for layer in network.weighted]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(f"`{name}`" for name in names[:12])
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            raise InputError(
                field,
                f"`{pattern}` matches no layer of {network.name}",
                f"a pattern of its layers: {shown}{more}",
                nearest(pattern.strip("*?"), names),
            )
