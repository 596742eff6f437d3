"""``datapath.json``: what a folder of the datapath holds, layer by layer and memory by memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import Memory
from epim_nas.datapath.tiles import TileMemories
from epim_nas.files import load_json
from epim_nas.schema import Strict, validate

INDEX_FILE = "datapath.json"
INDEX_SCHEMA = "epim-nas/datapath-index@1"

Count = pydantic.Field(ge=0)


class FieldInfo(Strict):
    """A field of a record: its name and width."""

    name: str
    bits: int = pydantic.Field(ge=1)


class MemoryInfo(Strict):
    """A memory: ``depth`` words of ``count`` records of ``fields``, ``width`` bits in all."""

    width: int = pydantic.Field(ge=1)
    depth: int = pydantic.Field(ge=1)
    count: int = pydantic.Field(ge=1)
    fields: list[FieldInfo]


class PeInfo(Strict):
    """A processing element: its crossbar's number and place, and its driver."""

    number: int = Count
    row_group: int = Count
    column_group: int = Count
    driver: int = Count


class TileInfo(Strict):
    """A tile: its number, its folder, and its processing elements."""

    tile: int = Count
    folder: str
    pes: list[PeInfo]


class CellInfo(Strict):
    """How weights lie in cells; the weight of slice k is 2^(k cell_bits)."""

    weight_bits: int = pydantic.Field(ge=2)
    cell_bits: int = pydantic.Field(ge=1)
    polarity: Literal[1, 2]
    groups: int = pydantic.Field(ge=1)
    slices: int = pydantic.Field(ge=1)
    offset: int = Count
    memory: MemoryInfo
    scale_shape: list[int]
    scales: list[float]


class TableBits(Strict):
    """Bits of a tile's tables: those charged, and what the images hold."""

    charged: int = Count
    addresses: int = Count
    control: int = Count
    replicas: int = Count


class LayerInfo(Strict):
    """One layer of the index."""

    name: str
    folder: str
    rounds: int = pydantic.Field(ge=1)
    slots: int = pydantic.Field(ge=1)
    words_per_slot: int = Count
    bits: TableBits
    memories: dict[str, MemoryInfo]
    replicas: MemoryInfo | None
    tiles: list[TileInfo]
    cells: CellInfo | None


class DatapathIndex(Strict):
    """The content of ``datapath.json``; ``weights_sha256`` is that of the weights in the cells."""

    schema_: Literal["epim-nas/datapath-index@1"] = pydantic.Field(alias="schema")
    network: str
    hardware: dict[str, str]
    design_sha256: str
    weights_sha256: str | None = None
    layers: list[LayerInfo]


def memory_info(memory: Memory) -> dict[str, Any]:
    """The description of a memory."""
    return {
        "width": memory.width,
        "depth": len(memory.words),
        "count": memory.count,
        "fields": [{"name": field.name, "bits": field.bits} for field in memory.fields],
    }


def table_bits(
    layer: LayerTables, tiles: Sequence[TileMemories], replicas: Memory | None
) -> dict[str, int]:
    """Sizes of the tables of a tile, in bits; all tiles of a layer are alike but for a last one.

    ``charged`` is the cost model's entry times the slots; ``addresses`` and ``control`` are what
    the first tile's memories hold; ``replicas`` is the layer's list of copies.
    """
    entry = 0 if layer.entry is None else layer.entry.bits
    return {
        "charged": entry * layer.tables.slots,
        "addresses": tiles[0].address_bits if tiles else 0,
        "control": tiles[0].control_bits if tiles else 0,
        "replicas": 0 if replicas is None else replicas.bits,
    }


def read_index(folder: str | Path) -> DatapathIndex:
    """The index of a folder.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(folder) / INDEX_FILE
    content = load_json(path)
    return validate(DatapathIndex, content, str(path))
