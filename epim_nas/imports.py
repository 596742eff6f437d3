"""Importing modules of the user, which a run file names."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from epim_nas.errors import InputError


def import_module_here(name: str, field: str) -> ModuleType:
    """Import a module; the folder in which the command was started is importable.

    Args:
        name: the module's name.
        field: what names it, for messages.

    Raises:
        InputError: there is no such module, or importing it fails.
    """
    folder = os.getcwd()
    # A console script has its own folder on the path, not the one that the user is in.
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            field,
            f"there is no module `{error.name}`",
            hint="Install it, or start from the folder that it lies in.",
        ) from None
    except InputError:
        raise
    except Exception as error:  # importing runs the user's code
        raise InputError(
            field, f"importing `{name}` fails: {type(error).__name__}: {error}"
        ) from error
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
