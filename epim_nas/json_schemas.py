"""JSON Schemas of the files that the package reads and writes, from the models that check them."""

from __future__ import annotations

from typing import Any

import pydantic

from epim_nas.errors import find_named


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a kind of file.

    Args:
        kind: a key of :func:`models`.

    Raises:
        InputError: unknown kind.
    """
    model = find_named(models(), kind, "KIND", "a kind of file")
    schema = model.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def models() -> dict[str, type[pydantic.BaseModel]]:
    """Kind of file -> the model that checks it."""
    from epim_nas.datapath.index import DatapathIndex
    from epim_nas.epitome.design import DesignFile
    from epim_nas.export.manifest import Manifest
    from epim_nas.hardware.chip import Chip
    from epim_nas.pipeline.config import RunConfig
    from epim_nas.space.config import SpaceConfig

    return {
        "design": DesignFile,
        "run": RunConfig,
        "space": SpaceConfig,
        "chip": Chip,
        "manifest": Manifest,
        "datapath": DatapathIndex,
    }
