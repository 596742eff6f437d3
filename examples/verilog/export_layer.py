"""Export one layer for the test bench beside this file, with inputs and what they convolve to.

    python examples/verilog/export_layer.py out/verilog
    iverilog -g2012 -I out/verilog -o out/verilog/tb examples/verilog/tb_layer.v
    vvp out/verilog/tb

The layer is the worked example of docs/cost_model.md: a 3x3 convolution 32 -> 32 with an epitome of
16x16x3x3 and 3-bit weights on 64x64 crossbars. The weights and the inputs are random; what is
expected is the integer convolution with the expanded weight, for one output position.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from epim_nas import Choice, Design, EpitomeShape, LayerSpec, Network, SamplingPlan, load_chip
from epim_nas.datapath.index import DatapathIndex, LayerInfo
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import Field, Memory, write_memory
from epim_nas.datapath.stored import StoredLayer
from epim_nas.export.datapath import export_datapath, read_datapath

ACTIVATION_BITS, SUM_BITS = 9, 32


CHOICE = Choice(EpitomeShape(16, 16, 3, 3), weight_bits=3, activation_bits=9)


def main(
    folder: Path, choice: Choice = CHOICE, overrides: Sequence[str] = (), seed: int = 0
) -> None:
    """Write the datapath, ``params.vh``, ``inputs.hex`` and ``expected.hex`` into a folder.

    Args:
        folder: where to write.
        choice: the layer's epitome, and its bits (at least 2).
        overrides: changes to the chip, as in ``epim-nas cost --set``.
        seed: of the weights and inputs.
    """
    assert choice.weight_bits is not None
    layer = LayerSpec("conv1", "conv", ("input",), 32, 32, (3, 3), (1, 1), (3, 3))
    design = Design("one_layer", {"conv1": choice})
    network = Network("one_layer", (layer,), (32, 3, 3))
    plan = choice.plan(layer)
    random = np.random.default_rng(seed)
    largest = 2 ** (choice.weight_bits - 1) - 1
    epitome = random.integers(-largest, largest + 1, plan.shape.as_tuple)
    inputs = random.integers(0, 1 << ACTIVATION_BITS, (32, 9))
    stored = {"conv1": StoredLayer(plan, epitome, np.ones((1, 1, 1, 1)))}
    export_datapath(design, network, load_chip("xbar_64", list(overrides)), folder, stored)
    index, layers = read_datapath(folder, design)
    (folder / "params.vh").write_text(parameters(folder, index, layers["conv1"]))
    _write(folder / "inputs.hex", ACTIVATION_BITS, inputs.ravel(), "inputs: channel * 9 + cell")
    _write(folder / "expected.hex", SUM_BITS, convolve(plan, epitome, inputs), "outputs")


def convolve(plan: SamplingPlan, epitome: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """(O,) the integer convolution at one position."""
    weight = epitome.reshape(-1)[plan.weight_index]
    return weight.reshape(len(weight), -1) @ inputs.ravel()


def parameters(folder: Path, index: DatapathIndex, layer: LayerTables) -> str:
    """The sizes that the test bench needs, from the index and the tables of the layer."""
    (info,) = index.layers
    assert info.cells is not None
    _, _, kernel_h, kernel_w = layer.conv_shape
    values = {
        "TILES": len(info.tiles),
        "PES": layer.grid.pes,
        "CROSSBARS": layer.crossbars,
        "ROW_GROUPS": layer.grid.row_groups,
        "ROWS": layer.crossbar_rows,
        "COLUMNS": layer.grid.columns,
        "COLUMNS_PER_OUTPUT": layer.grid.columns_per_output,
        "CELL_BITS": info.cells.cell_bits,
        "IN_CHANNELS": layer.conv_shape[1] * layer.groups,
        "OUT_CHANNELS": layer.conv_shape[0],
        "EPITOME_OUT": layer.epitome[0],
        "EPITOME_W": layer.epitome[3],
        "KERNEL_H": kernel_h,
        "KERNEL_W": kernel_w,
        "SLOTS": info.slots,
        "WORDS_PER_SLOT": info.words_per_slot,
        "REPLICAS": info.replicas.depth if info.replicas else 0,
        "LANES": layer.entry.channels if layer.entry else 0,
        "OWN_DRIVERS": int(info.slots < info.rounds),
        "ACTIVATION_BITS": ACTIVATION_BITS,
        "SUM_BITS": SUM_BITS,
        **_widths(info),
    }
    lines = [f"localparam {name} = {value};" for name, value in values.items()]
    return "\n".join(
        [
            "// Sizes of the exported layer; written by export_layer.py",
            f'`define FOLDER "{folder.resolve()}"',
            f'`define LAYER "{folder.resolve() / info.folder}"',
            *lines,
            "",
        ]
    )


def _widths(info: LayerInfo) -> dict[str, int]:
    """Width and records of every memory, and width of every field, by name."""
    found = {}
    for memory, layout in info.memories.items():
        found[f"{memory}_WIDTH".upper()] = layout.width
        found[f"{memory}_COUNT".upper()] = layout.count
        for field in layout.fields:
            found[f"{memory}_{field.name}_BITS".upper()] = field.bits
    return found


def _write(path: Path, bits: int, values: np.ndarray, title: str) -> None:
    words = tuple(int(value) & ((1 << bits) - 1) for value in values)
    write_memory(path, Memory((Field("value", bits),), 1, words), title)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/verilog/export_layer.py FOLDER")
    main(Path(sys.argv[1]))
