"""Index tables as JSON (``epim-nas/datapath@1``), written and read with every field checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from epim_nas.datapath.layer import LayerTables, Shape
from epim_nas.datapath.tables import IndexTables
from epim_nas.errors import InputError
from epim_nas.files import load_json, write_text
from epim_nas.hardware.index_table import TableEntry
from epim_nas.hardware.schedule import CrossbarGrid
from epim_nas.schema import Strict, validate

DATAPATH_SCHEMA = "epim-nas/datapath@1"

Positive = pydantic.Field(ge=1)


class _Crossbars(Strict):
    rows: int = Positive
    columns: int = Positive
    row_groups: int = Positive
    channels_per_row_group: int = Positive
    columns_per_output: int = Positive
    layers: int = Positive
    outputs: int = Positive
    pes: int = Positive


class _Entry(Strict):
    drivers: int = Positive
    channels: int = Positive
    slabs: int = Positive
    input_bits: int = Positive
    line_bits: int = Positive
    outputs: int = Positive
    output_bits: int = Positive


class _Tables(Strict):
    slot: list[int] = pydantic.Field(min_length=1)
    opens: list[bool]
    closes: list[bool]
    ifat: list[list[list[int]]]
    ifrt: list[list[int]]
    columns: list[list[int]]
    ofat: list[list[list[int]]]


class _TablesFile(Strict):
    schema_: Literal["epim-nas/datapath@1"] = pydantic.Field(alias="schema")
    layer: str
    weight_shape: list[int] = pydantic.Field(min_length=4, max_length=4)
    groups: int = Positive
    epitome: list[int] = pydantic.Field(min_length=4, max_length=4)
    patch: list[int] = pydantic.Field(min_length=2, max_length=2)
    crossbars: _Crossbars
    entry: _Entry | None
    tables: _Tables


def write_json_tables(path: str | Path, layer: LayerTables) -> None:
    """Replace ``path`` by the tables of a layer, an array a line."""
    grid = asdict(layer.grid)
    head = {
        "schema": DATAPATH_SCHEMA,
        "layer": layer.layer,
        "weight_shape": list(layer.conv_shape),
        "groups": layer.groups,
        "epitome": list(layer.epitome),
        "patch": list(layer.patch),
        "crossbars": {"rows": layer.crossbar_rows, "columns": grid.pop("columns"), **grid},
        "entry": None if layer.entry is None else asdict(layer.entry),
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    arrays = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(getattr(layer.tables, name).tolist())}"
        for name in _Tables.model_fields
    )
    write_text(path, "\n".join(["{", *lines, '  "tables": {', arrays, "  }", "}"]) + "\n")


def read_json_tables(path: str | Path) -> LayerTables:
    """The tables of a JSON file.

    Raises:
        InputError: the file is missing or damaged, a field is wrong, or an entry addresses
            something that does not exist.
    """
    content = load_json(path)
    file = validate(_TablesFile, content, str(path))
    tables = IndexTables(
        **{
            name: _array(getattr(file.tables, name), f"{path}: tables.{name}")
            for name in _Tables.model_fields
        }
    )
    grid = file.crossbars.model_dump()
    rows = grid.pop("rows")
    layer = LayerTables(
        layer=file.layer,
        conv_shape=_shape(file.weight_shape),
        groups=file.groups,
        epitome=_shape(file.epitome),
        patch=(file.patch[0], file.patch[1]),
        grid=CrossbarGrid(**grid),
        crossbar_rows=rows,
        entry=None if file.entry is None else TableEntry(**file.entry.model_dump()),
        tables=tables,
    )
    layer.check_entries(str(path))
    return layer


def _array(values: Any, field: str) -> Any:
    try:
        return np.array(values)
    except ValueError:
        raise InputError(field, "has rows of different lengths", "rows of one length") from None


def _shape(values: list[int]) -> Shape:
    return (values[0], values[1], values[2], values[3])
