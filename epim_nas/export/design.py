"""Export of a design: its file, and its layers as a table for spreadsheets and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epim_nas.epitome.design import Design
from epim_nas.network.spec import Network
from epim_nas.report.csv_file import write_csv
from epim_nas.report.layers import LayerRow, NetworkCostLike, layer_rows

DESIGN_FILE = "design.yaml"
LAYERS_FILE = "layers.csv"

LAYER_COLUMNS = (
    "name", "type", "weight_shape", "epitome_shape", "rows", "columns", "patch", "wrap",
    "wrap_in", "weight_bits", "activation_bits", "size_fraction", "rounds",
    "crossbars", "latency_ns", "energy_nj",
)  # fmt: skip
"""Columns of ``layers.csv``, the fields of :class:`~epim_nas.report.layers.LayerRow`."""


def export_design(
    design: Design, folder: str | Path, network: Network, cost: NetworkCostLike | None = None
) -> tuple[Path, Path]:
    """Write ``design.yaml`` and ``layers.csv`` into a folder, replacing them.

    Args:
        design: the design.
        folder: where to write; created where needed.
        network: the design's network.
        cost: the design's cost; without it crossbars, latency and energy stay empty.

    Returns:
        The paths of the design file and of the table.

    Raises:
        InputError: the design does not fit the network.
    """
    rows = layer_rows(design, network, cost)
    design_path, table_path = Path(folder) / DESIGN_FILE, Path(folder) / LAYERS_FILE
    design.save(design_path)
    write_layers_csv(rows, table_path)
    return design_path, table_path


def write_layers_csv(rows: Sequence[LayerRow], path: str | Path) -> None:
    """Replace ``path`` by one line per layer.

    Sizes are written as ``64x32x3x3``; a dense layer has an empty ``epitome_shape`` and ``patch``;
    empty bits mean floating point; unknown values are empty.
    """
    write_csv(
        path, LAYER_COLUMNS, ([getattr(row, column) for column in LAYER_COLUMNS] for row in rows)
    )
