"""Reading index tables from a file of either format."""

from __future__ import annotations

from pathlib import Path

from epim_nas.datapath.binary_tables import read_binary_tables, write_binary_tables
from epim_nas.datapath.json_tables import read_json_tables, write_json_tables
from epim_nas.datapath.layer import LayerTables
from epim_nas.errors import InputError

_READERS = {".json": read_json_tables, ".bin": read_binary_tables}
_WRITERS = {".json": write_json_tables, ".bin": write_binary_tables}


def read_tables(path: str | Path) -> LayerTables:
    """The index tables of a layer, from JSON (``.json``) or the binary layout (``.bin``).

    Raises:
        InputError: another ending, or the file is missing, damaged or contradicts itself.
    """
    _check_ending(path)
    return _READERS[Path(path).suffix](path)


def write_tables(path: str | Path, layer: LayerTables) -> None:
    """Replace ``path`` by the index tables of a layer, in the format of its ending.

    Raises:
        InputError: another ending than ``.json`` or ``.bin``.
    """
    _check_ending(path)
    _WRITERS[Path(path).suffix](path, layer)


def _check_ending(path: str | Path) -> None:
    if Path(path).suffix not in _READERS:
        raise InputError(
            str(path), f"ends in `{Path(path).suffix}`", ", ".join(f"`{end}`" for end in _READERS)
        )
