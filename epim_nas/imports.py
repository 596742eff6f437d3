"""Importing modules of the user, which a run file names."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from epim_nas.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def here_importable() -> Iterator[None]:
    """While the block runs, modules of the current folder can be imported."""
    # A console script has its own folder on the path, not the one that the user is in.
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def import_module_here(name: str, field: str, allowed: str = "") -> ModuleType:
    """Import a module; the folder in which the command was started is importable.

    Args:
        name: the module's name.
        field: what names it, for messages.
        allowed: what else could stand there, for messages.

    Raises:
        InputError: there is no such module, or importing it fails.
    """
    try:
        with here_importable():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise InputError(
                field,
                f"there is no module `{missing}`",
                allowed,
                "Install it, or start from the folder that it lies in.",
            ) from None
        raise InputError(
            field, f"importing `{name}` needs `{missing}`, which is not installed"
        ) from None
    except InputError:
        raise
    except Exception as error:  # importing runs the user's code
        raise InputError(
            field, f"importing `{name}` fails: {type(error).__name__}: {error}"
        ) from error


def warn_of_import(name: str, source: object) -> None:
    """Say that a module will be imported because a stored file names it, unless it is already.

    Args:
        name: the module's name.
        source: the file; it may come from someone else.
    """
    top = name.partition(".")[0]
    if name in sys.modules or top == __name__.partition(".")[0]:
        return
    with here_importable():
        found = importlib.util.find_spec(top)  # of the top one: finding others imports it
    place = (found.origin or "a folder without __init__.py") if found else "not found"
    log.warning("%s names the module `%s` (%s): importing it runs its code", source, name, place)
