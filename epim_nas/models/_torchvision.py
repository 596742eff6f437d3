"""Import of torchvision, also where its compiled operators do not fit the installed torch."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from epim_nas.errors import InputError, missing_extra

# The schemas must outlive this module's functions: torch forgets them with their library.
_LIBRARIES: list[Any] = []

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision(purpose: str = "this model") -> ModuleType:
    """The module ``torchvision``.

    A torchvision built for CUDA beside a CPU build of torch (and some other mixed pairs) cannot
    load its compiled operators; its import then fails on the missing ``nms``, although models,
    transforms and data sets need none of them. The operators' schemas are declared then, without
    an implementation, and the import succeeds.

    Args:
        purpose: what it is needed for, for the message.

    Raises:
        InputError: torchvision is not installed or cannot be imported.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise missing_extra("torchvision", "vision", purpose) from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _declare_schemas()
    # What the failed import left behind was made without the schemas.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise InputError(
            "torchvision",
            f"cannot be imported: {error}",
            "a torchvision that was built for the installed torch",
            "Install matching versions of torch and torchvision.",
        ) from error


def _declare_schemas() -> None:
    import torch

    if _LIBRARIES:
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _LIBRARIES.append(library)
