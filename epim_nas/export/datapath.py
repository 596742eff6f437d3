"""Export of the datapath: index tables and memory images of every layer, read back and compared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.datapath.cells import CellArray, SliceRule, cell_memory, program
from epim_nas.datapath.files import read_tables, write_tables
from epim_nas.datapath.index import (
    INDEX_FILE,
    INDEX_SCHEMA,
    DatapathIndex,
    memory_info,
    read_index,
    table_bits,
)
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import Memory, read_memory, write_memory
from epim_nas.datapath.stored import StoredLayer
from epim_nas.datapath.tiles import (
    TileMemories,
    processing_elements,
    replica_memory,
    tile_memories,
)
from epim_nas.epitome.design import Design
from epim_nas.errors import EpimError, InputError
from epim_nas.export.manifest import design_digest
from epim_nas.files import safe_name, write_json
from epim_nas.hardware.chip import Chip
from epim_nas.network.spec import Network

TABLES_JSON, TABLES_BINARY, REPLICAS_FILE = "tables.json", "tables.bin", "replicas.hex"


def export_datapath(
    design: Design,
    network: Network,
    chip: Chip,
    folder: str | Path,
    stored: Mapping[str, StoredLayer] | None = None,
    weights_sha256: str | None = None,
) -> list[Path]:
    """Write the datapath of a design into a folder, then read it back and compare.

    Args:
        design: the design.
        network: its network.
        chip: the chip.
        folder: where to write.
        stored: the integers of the quantized layers
            (:func:`~epim_nas.datapath.stored.stored_layers`); without them no cells are written.
        weights_sha256: digest of the weights that these integers are of
            (:func:`~epim_nas.export.weights.weights_digest`), for the index.

    Returns:
        The files, the index ``datapath.json`` first.

    Raises:
        InputError: the design does not fit the network, or weights do not fit the design.
        EpimError: what was read back differs from what was written (a failing disk).
    """
    design.check_fits(network)
    folder, stored = Path(folder), stored or {}
    images = [
        _LayerImages(index, layer, stored.get(name), design, chip)
        for index, (name, layer) in enumerate(_tables(design, network, chip, stored).items())
    ]
    _remove_old(folder)
    files = [path for image in images for path in image.write(folder)]
    write_json(
        folder / INDEX_FILE,
        {
            "schema": INDEX_SCHEMA,
            "network": design.network,
            "hardware": {"name": chip.name, "digest": chip.digest},
            "design_sha256": design_digest(design),
            # Tables without cells are those of any weights.
            "weights_sha256": weights_sha256 if stored else None,
            "layers": [image.info() for image in images],
        },
    )
    read_datapath(folder, design)
    for image in images:
        image.compare(folder)
    return [folder / INDEX_FILE, *files]


def read_datapath(
    folder: str | Path, design: Design | None = None
) -> tuple[DatapathIndex, dict[str, LayerTables]]:
    """The index and the tables of an exported folder, checked against one another.

    Both formats of the tables have to agree, and the images of the tables have to be those of the
    tables. Cells are not checked here: they follow from the weights.

    Args:
        folder: the folder of ``datapath.json``.
        design: the design that the tables have to belong to.

    Raises:
        InputError: a file is missing, damaged or belongs to another layer or design.
    """
    folder = Path(folder)
    index = read_index(folder)
    if design is not None and index.design_sha256 != design_digest(design):
        raise InputError(
            f"{folder / INDEX_FILE}: design_sha256",
            f"got {index.design_sha256[:12]}...: the tables of another design",
            f"{design_digest(design)[:12]}..., the design of {design.network} at hand",
            "Export the datapath of this design.",
        )
    layers: dict[str, LayerTables] = {}
    for info in index.layers:
        path = folder / info.folder
        layer, binary = read_tables(path / TABLES_JSON), read_tables(path / TABLES_BINARY)
        if not layer.equals(binary) or not layer.layer == binary.layer == info.name:
            raise InputError(
                str(path / TABLES_BINARY),
                f"differs from {TABLES_JSON}, or from layer {info.name} of the index",
                "the same tables in both formats",
                "Export the datapath again.",
            )
        for name, memory in _table_memories(tile_memories(layer), replica_memory(layer)):
            _check_image(path / name, memory)
        layers[info.name] = layer
    return index, layers


def _remove_old(folder: Path) -> None:
    """Remove the layers of an earlier export: a stale image looks like one of this design."""
    if (folder / INDEX_FILE).is_file():
        for path in folder.iterdir():
            if path.is_dir() and re.match(r"\d{3}-", path.name):
                shutil.rmtree(path)


def _tables(
    design: Design, network: Network, chip: Chip, stored: Mapping[str, StoredLayer]
) -> dict[str, LayerTables]:
    tables = {}
    for layer in network.weighted:
        choice = design[layer.name]
        tables[layer.name] = LayerTables.of(layer, choice, chip)
        if layer.name in stored:
            # Channels may have been put in another order before the weights were projected.
            plan = stored[layer.name].plan
            tables[layer.name] = LayerTables.build(layer.name, plan, choice.weight_bits, chip)
    return tables


def _table_memories(
    tiles: Sequence[TileMemories], replicas: Memory | None
) -> Iterator[tuple[str, Memory]]:
    """(path in the layer's folder, memory) of all index tables."""
    for tile in tiles:
        for name, memory in tile.memories.items():
            yield f"{_tile_folder(tile.tile)}/{name}.hex", memory
    if replicas is not None:
        yield REPLICAS_FILE, replicas


def _tile_folder(tile: int) -> str:
    return f"tile{tile:03d}"


def _check_image(path: Path, memory: Memory) -> None:
    words = read_memory(path, memory.width, len(memory.words))
    for address, (found, right) in enumerate(zip(words, memory.words, strict=True)):
        if found != right:
            raise InputError(
                f"{path}: word {address}",
                f"got {found:x}",
                f"{right:x}, from {TABLES_JSON}",
                "Export the datapath again.",
            )


class _LayerImages:
    """Everything that is written of one layer."""

    def __init__(
        self,
        index: int,
        layer: LayerTables,
        stored: StoredLayer | None,
        design: Design,
        chip: Chip,
    ) -> None:
        self._layer = layer
        self._folder = f"{index:03d}-{safe_name(layer.layer)}"
        self._tiles: list[TileMemories] = tile_memories(layer)
        self._replicas = replica_memory(layer)
        self._stored = stored
        self._cells: dict[str, Memory] = {}
        self._rule: SliceRule | None = None
        bits = design[layer.layer].weight_bits
        if stored is not None and bits is not None:
            self._rule = SliceRule.of(bits, chip)
            cells = program(
                stored.weights, layer.grid, layer.crossbar_rows, self._rule, layer.layer
            )
            self._cells = dict(_cell_memories(cells, layer, self._rule))

    def write(self, folder: Path) -> list[Path]:
        """Write all files of the layer."""
        base = folder / self._folder
        files = [base / TABLES_JSON, base / TABLES_BINARY]
        for path in files:
            write_tables(path, self._layer)
        for name, memory in [*_table_memories(self._tiles, self._replicas), *self._cells.items()]:
            write_memory(base / name, memory, f"{self._layer.layer}: {name}")
            files.append(base / name)
        return files

    def info(self) -> dict[str, Any]:
        """The layer's entry of the index."""
        layer, tiles = self._layer, self._tiles
        return {
            "name": layer.layer,
            "folder": self._folder,
            "rounds": layer.tables.rounds,
            "slots": layer.tables.slots,
            "words_per_slot": tiles[0].words_per_slot if tiles else 0,
            "bits": table_bits(layer, tiles, self._replicas),
            "memories": {
                name: memory_info(memory)
                for name, memory in (tiles[0].memories if tiles else {}).items()
            },
            "replicas": None if self._replicas is None else memory_info(self._replicas),
            "tiles": [
                {
                    "tile": tile,
                    "folder": _tile_folder(tile),
                    "pes": [asdict(pe) for pe in processing_elements(layer, tile)],
                }
                for tile in range(layer.tiles)
            ],
            "cells": self._cell_info(),
        }

    def _cell_info(self) -> dict[str, Any] | None:
        if self._rule is None or self._stored is None:
            return None
        return {
            **asdict(self._rule),
            "offset": self._rule.offset,
            "memory": memory_info(next(iter(self._cells.values()))),
            "scale_shape": list(np.shape(self._stored.scales)),
            "scales": np.ravel(self._stored.scales).tolist(),
        }

    def compare(self, folder: Path) -> None:
        """Check that the cells came back as they were written."""
        for name, memory in self._cells.items():
            path = folder / self._folder / name
            if read_memory(path, memory.width, len(memory.words)) != memory.words:
                raise EpimError(f"{path}: what was read back differs from what was written")


def _cell_memories(
    cells: CellArray, layer: LayerTables, rule: SliceRule
) -> Iterator[tuple[str, Memory]]:
    signs = ("positive", "negative") if rule.polarity == 2 else ("offset",)
    for tile in range(layer.tiles):
        for place, pe in enumerate(processing_elements(layer, tile)):
            for group in range(rule.groups):
                for index, sign in enumerate(signs):
                    memory = cell_memory(cells[pe.number, group, index], rule.cell_bits)
                    yield f"{_tile_folder(tile)}/pe{place}.group{group}.{sign}.hex", memory
