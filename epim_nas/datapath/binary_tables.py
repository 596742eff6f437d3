"""Index tables in a binary layout that firmware and test benches read without a parser.

Everything is little endian; ``docs/datapath.md`` has the layout.
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np

from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.tables import IndexTables, IntArray
from epim_nas.errors import InputError
from epim_nas.files import atomic_path, read_bytes
from epim_nas.hardware.index_table import TableEntry
from epim_nas.hardware.schedule import CrossbarGrid

MAGIC = b"EPIMIDX\0"
VERSION = 1
_HEADER = struct.Struct("<8s32I")
_GRID = ("row_groups", "channels_per_row_group", "columns", "columns_per_output", "layers", "pes")
_ENTRY = ("drivers", "channels", "slabs", "input_bits", "line_bits", "outputs", "output_bits")
_OPENS, _CLOSES = 1, 2


def write_binary_tables(path: str | Path, layer: LayerTables) -> None:
    """Replace ``path`` by the tables of a layer."""
    content = _encode(layer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content + struct.pack("<I", zlib.crc32(content)))


def read_binary_tables(path: str | Path) -> LayerTables:
    """The tables of a binary file.

    Raises:
        InputError: the file is missing, not of this layout or version, or damaged, or an entry
            addresses something that does not exist.
    """
    data = read_bytes(path)
    if data[: len(MAGIC)] != MAGIC:
        raise InputError(str(path), f"begins with {data[:8]!r}", f"{MAGIC!r}, as index tables do")
    if len(data) < _HEADER.size + 4:
        raise _damaged(path, f"has {len(data)} bytes", f"at least {_HEADER.size + 4}")
    (checksum,) = struct.unpack("<I", data[-4:])
    version = struct.unpack_from("<I", data, len(MAGIC))[0]
    if version != VERSION:
        raise InputError(str(path), f"has version {version}", f"{VERSION}")
    if zlib.crc32(data[:-4]) != checksum:
        raise _damaged(path, f"has CRC-32 {zlib.crc32(data[:-4]):08x}", f"{checksum:08x}")
    layer = _decode(data[:-4], path)
    layer.check_entries(str(path))
    return layer


def _encode(layer: LayerTables) -> bytes:
    tables, name = layer.tables, layer.layer.encode()
    entry = layer.entry
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        *layer.conv_shape,
        layer.groups,
        *layer.epitome,
        *layer.patch,
        layer.crossbar_rows,
        *(getattr(layer.grid, field) for field in _GRID),
        *((0,) * len(_ENTRY) if entry is None else (getattr(entry, field) for field in _ENTRY)),
        tables.rounds,
        tables.ifat.shape[1],
        tables.ofat.shape[1],
        len(name),
        *(0,) * 2,
    )
    flags = tables.opens * _OPENS + tables.closes * _CLOSES
    arrays = (tables.slot, flags, tables.ifat, tables.ifrt, tables.columns, tables.ofat)
    padding = b"\0" * (-len(name) % 4)
    return b"".join([header, name, padding, *(array.astype("<i4").tobytes() for array in arrays)])


def _decode(data: bytes, path: str | Path) -> LayerTables:
    values = list(_HEADER.unpack_from(data)[2:])

    def take(count: int) -> list[int]:
        return [values.pop(0) for _ in range(count)]

    conv, (groups,), epitome, patch, (rows,) = take(4), take(1), take(4), take(2), take(1)
    grid, entry = dict(zip(_GRID, take(6), strict=True)), dict(zip(_ENTRY, take(7), strict=True))
    rounds, slabs, targets, length = take(4)
    start = _HEADER.size
    try:
        name = data[start : start + length].decode()
    except UnicodeDecodeError:
        raise _damaged(path, "has a layer name that is no text", "UTF-8") from None
    start += length + -length % 4
    shapes = {
        "slot": (rounds,),
        "flags": (rounds,),
        "ifat": (rounds, slabs, patch[1]),
        "ifrt": (rounds, patch[1]),
        "columns": (rounds, patch[0]),
        "ofat": (rounds, targets, patch[0]),
    }
    arrays: dict[str, IntArray] = {}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    if start + 4 * sum(sizes.values()) != len(data):
        raise _damaged(
            path, f"has {len(data) - start} bytes of tables", f"{4 * sum(sizes.values())}"
        )
    for field, shape in shapes.items():
        array = np.frombuffer(data, "<i4", sizes[field], start).astype(np.int64)
        arrays[field] = array.reshape(shape)
        start += 4 * sizes[field]
    flags = arrays.pop("flags")
    return LayerTables(
        layer=name,
        conv_shape=(conv[0], conv[1], conv[2], conv[3]),
        groups=groups,
        epitome=(epitome[0], epitome[1], epitome[2], epitome[3]),
        patch=(patch[0], patch[1]),
        grid=CrossbarGrid(outputs=epitome[0], **grid),
        crossbar_rows=rows,
        entry=TableEntry(**entry) if entry["drivers"] else None,
        tables=IndexTables(opens=flags & _OPENS != 0, closes=flags & _CLOSES != 0, **arrays),
    )


def _damaged(path: str | Path, problem: str, allowed: str) -> InputError:
    return InputError(str(path), f"{problem}: the file is damaged", allowed, "Export it again.")
