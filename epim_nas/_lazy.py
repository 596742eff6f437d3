"""Module attributes that are imported when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(module: str, name: str, sources: Mapping[str, str]) -> Any:
    """The attribute ``name`` of the module in ``sources`` that defines it.

    Call it from a module's ``__getattr__``.

    Args:
        module: the module that is asked, for the message.
        name: the attribute.
        sources: attribute -> module that defines it.
    """
    if name not in sources:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(import_module(sources[name]), name)
