"""Export of a design as a network description for MNSIM 2.0.

One Python file of plain literals. MNSIM's hardware models (``Mapping_Model/
Tile_connection_graph.py``, ``Latency_Model/Model_latency.py``, and those of area, power and energy)
take ``NetStruct`` as it is: per layer a list of (dictionary, weights), of which they read the first
dictionary. ``Interface/network.py`` builds the network of the accuracy model from the other lists.
Keys as in MNSIM 2.0, commit ca39ccb. It is Python and not JSON because versions of the latency
model compare layer types with ``is``, which holds for the constants of an imported module only.

MNSIM knows dense, square convolutions. What stands for an epitome:

- In ``NetStruct`` the dense layer that occupies the same crossbars: as many row groups, with as
  many rows in use, and as many columns. ``Padding`` keeps ``Kernelsize - Padding``, which decides
  the inputs that a position waits for. What the design has beyond that is under the key
  ``epim_nas`` of each dictionary; MNSIM ignores it.
- In ``layer_config_list`` the convolution itself, whose weight is sampled from the epitome.

MNSIM cannot be told of activation rounds and index tables, of wrapping, of groups, of channels that
an epitome saves on crossbars but not on links, and of bit slices side by side (``packed``). The
file says under ``notes`` what applies to which layers, and under ``network_graph_problems`` what
MNSIM's ``NetworkGraph`` cannot build. A network on which its hardware models would fail, or would
silently read other layers, is refused.
"""

from epim_nas.export.mnsim.description import (
    MNSIM_FILE,
    MnsimNetwork,
    describe_mnsim,
    export_mnsim,
)
from epim_nas.export.mnsim.text import design_of

__all__ = ["MNSIM_FILE", "MnsimNetwork", "describe_mnsim", "design_of", "export_mnsim"]
