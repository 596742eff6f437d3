"""A design's whole description for MNSIM 2.0, and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.export.mnsim.graph import Graph
from epim_nas.export.mnsim.remarks import (
    ACTIVATION_SCALE,
    DataBits,
    Entry,
    Remarks,
    check_input,
)
from epim_nas.export.mnsim.structure import Structure
from epim_nas.export.mnsim.text import assignment, header
from epim_nas.files import write_text
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.converters import adc_spec, dac_spec
from epim_nas.network.spec import Network

MNSIM_FILE = "mnsim_network.py"


@dataclass(frozen=True)
class MnsimNetwork:
    """What the file holds; the names are those of MNSIM's parameters.

    Attributes:
        sim_config: section -> key -> value of ``SimConfig.ini``, of those that decide the mapping.
        hardware_config: the chip as ``NetworkGraph`` wants it.
        input_params: scale, bits and shape of the network's input.
        layer_config_list: the layers of ``NetworkGraph``, with normalisation and activations.
        quantize_config_list: per layer of these, bits of its weights and of its outputs.
        input_index_list: per layer of these, its inputs relative to its own position.
        net_struct: what the hardware models read.
        totals: crossbars and tiles as MNSIM counts them, and those of the design on its chip.
        notes: what MNSIM is not told, or was told by convention.
        network_graph_problems: why ``NetworkGraph`` cannot build or run the lists; empty if it can.
    """

    sim_config: dict[str, dict[str, str]]
    hardware_config: Entry
    input_params: Entry
    layer_config_list: list[Entry]
    quantize_config_list: list[Entry]
    input_index_list: list[list[int]]
    net_struct: list[list[tuple[Entry, None]]]
    totals: dict[str, int]
    notes: list[str]
    network_graph_problems: list[str]


def export_mnsim(design: Design, network: Network, chip: Chip, path: str | Path) -> Path:
    """Replace ``path`` by the description of a design for MNSIM 2.0.

    Args:
        design: the design.
        network: its network.
        chip: the chip; MNSIM's own configuration has to have its crossbars (``sim_config``).
        path: where to write, a ``.py`` that can be imported.

    Returns:
        The path.

    Raises:
        InputError: the design does not fit the network or the network the chip, or MNSIM cannot
            express the network.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise InputError(
            "path",
            f"got `{path.name}`",
            "a file that Python can import, such as `" + MNSIM_FILE + "`",
        )
    found = describe_mnsim(design, network, chip)
    parts = [header(design, chip, path.stem)]
    for name, value in vars(found).items():
        parts.append(assignment("NetStruct" if name == "net_struct" else name, value))
    write_text(path, "\n".join(parts))
    return path


def describe_mnsim(design: Design, network: Network, chip: Chip) -> MnsimNetwork:
    """The description of a design for MNSIM 2.0, see :func:`export_mnsim`.

    Raises:
        InputError: see :func:`export_mnsim`.
    """
    design.check_fits(network)
    check_input(network)
    notes, bits = Remarks(), DataBits.of(design, network)
    structure = Structure(design, network, chip, bits, notes)
    graph = Graph(design, network, bits, notes)
    first = network.layers[0]
    size, mapping = chip.crossbar, chip.mapping
    adc_bits = adc_spec(chip.interface.adc).bits
    return MnsimNetwork(
        sim_config={
            "Device level": {"Device_Level": str(2**mapping.cell_bits)},
            "Crossbar level": {
                "Xbar_Size": f"{size.rows},{size.columns}",
                "Subarray_Size": str(size.subarray_rows),
            },
            "Process element level": {
                "Xbar_Polarity": str(mapping.polarity),
                "Group_Num": str(mapping.groups),
            },
            "Tile level": {"PE_Num": f"{chip.tile.pes[0]},{chip.tile.pes[1]}"},
        },
        hardware_config={
            "xbar_size": size.rows,
            "type": 0,
            "xbar_polarity": mapping.polarity,
            "DAC_num": chip.interface.dacs_per_subarray,
            "weight_bit": mapping.cell_bits,
            "input_bit": dac_spec(chip.interface.dac).bits,
            "ADC_quantize_bit": adc_bits,
            "quantize_bit": adc_bits,  # its name in older versions
        },
        input_params={
            "activation_scale": ACTIVATION_SCALE,
            "activation_bit": bits.read[first.name],
            "input_shape": (1, *network.input_shape),
        },
        layer_config_list=graph.layers,
        quantize_config_list=graph.quantize,
        input_index_list=graph.inputs,
        net_struct=[[(entry, None)] for entry in structure.entries.values()],
        totals=structure.totals,
        notes=notes.texts(),
        network_graph_problems=graph.problems.texts(),
    )
