"""The description as the text of a Python file."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from pprint import pformat
from typing import Any

from epim_nas._version import __version__
from epim_nas.epitome.design import Design
from epim_nas.export.manifest import design_digest
from epim_nas.hardware.chip import Chip

_WIDTH = 99


def assignment(name: str, value: Any) -> str:
    """A statement; every item of a list stands on lines of its own."""
    if value and isinstance(value, list):
        items = "".join(f"    {_literal(item, 4)},\n" for item in value)
        return f"{name} = [\n{items}]\n"
    return f"{name} = {_literal(value, len(name) + 3)}\n"


def _literal(value: Any, column: int) -> str:
    """A literal that begins at ``column``, in filled lines."""
    text = repr(value)
    if column + len(text) <= _WIDTH or not isinstance(value, (str, dict, list, tuple)):
        return text
    if isinstance(value, str):
        return pformat(value, width=_WIDTH - column).replace("\n", "\n" + " " * column)
    inner = column + 1
    if isinstance(value, dict):
        pairs = ((f"{key!r}: ", item) for key, item in value.items())
        parts = [key + _literal(item, inner + len(key)) for key, item in pairs]
    else:
        parts = [_literal(item, inner) for item in value]
    lines = [parts[0]]
    for part in parts[1:]:
        joined = f"{lines[-1]}, {part}"
        if "\n" in joined or inner + len(joined) >= _WIDTH:
            lines.append(part)
        else:
            lines[-1] = joined
    return text[0] + (",\n" + " " * inner).join(lines) + text[-1]


def header(design: Design, chip: Chip, module: str) -> str:
    """What the file says before its first statement."""
    return f"""\
# Network description for MNSIM 2.0 (commit ca39ccb), written by epim_nas {__version__}.
# Network {design.network!r}, chip {chip.name!r}, design {design_digest(design)}.
#
# Put this file beside MNSIM's main.py, and the values of sim_config into SimConfig.ini. Import it
# and read it in no other way: versions of MNSIM compare layer types with `is`. The hardware models
# take NetStruct where main.py takes what get_structure() returns:
#
#     import {module} as exported
#     graph = TCG(exported.NetStruct, "SimConfig.ini")
#     latency = Model_latency(exported.NetStruct, "SimConfig.ini", TCG_mapping=graph)
#     latency.calculate_model_latency(mode=1)
#
# The accuracy model is built from the lists, unless network_graph_problems names a layer:
#
#     NetworkGraph(exported.hardware_config, exported.layer_config_list,
#                  exported.quantize_config_list, exported.input_index_list,
#                  exported.input_params)
#
# MNSIM knows dense convolutions only: notes says what it is not told of this design. Where a layer
# is an epitome, NetStruct has the dense layer on the same crossbars, and the key epim_nas, which
# MNSIM ignores, has the rest.
"""


def design_of(path: Path) -> str | None:
    """The digest of the design that a file describes, from its :func:`header`."""
    with open(path, encoding="utf-8") as file:
        found = re.search(r"design ([0-9a-f]{64})", "".join(islice(file, 5)))
    return found[1] if found else None
