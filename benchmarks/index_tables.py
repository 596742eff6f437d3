"""Sizes of the index tables of search spaces: what the cost model charges, and what images hold.

For every distinct choice of a network's layers the memories of a tile are put together. Control is
in bits per bit of address; slots with several words of the OFAT write more results in a tile than
the entry that the cost model charges has addresses.

    OMP_NUM_THREADS=1 python benchmarks/index_tables.py
"""

from __future__ import annotations

from statistics import median

from epim_nas import Network, SearchSpace, load_chip, trace
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.tiles import replica_memory, tile_memories
from epim_nas.models.registry import build_model
from epim_nas.space import load_space_config

CASES = (("resnet20", (3, 32, 32), "xbar_64"), ("resnet50", (3, 224, 224), "epim_256"))


def distinct_tables(network: Network, space: SearchSpace, chip_name: str) -> list[LayerTables]:
    """The tables of every distinct choice that has some."""
    chip = load_chip(chip_name)
    found = {}
    for layer in network.weighted:
        for choice in space.layer_choices[layer.name]:
            key = (layer.weight_shape, choice.shape, choice.wrap, choice.wrap_in, choice.patch,
                   choice.weight_bits)  # fmt: skip
            if key not in found:
                found[key] = LayerTables.of(layer, choice, chip)
    return [tables for tables in found.values() if tables.entry is not None]


def main() -> None:
    """Print one line per network and space."""
    print("network   chip      space   tables   KB a tile      words a slot      control  copies")
    print("                                   median   max   one  several  most   /address   / KB")
    for name, size, chip in CASES:
        network = trace(build_model(name, in_channels=3, num_classes=10), size, name)
        for space_name in ("narrow", "wide"):
            space = SearchSpace.build(load_space_config(space_name, "space"), network)
            layers = distinct_tables(network, space, chip)
            charged, words, control, addresses, copies = [], [], 0, 0, 0.0
            for layer in layers:
                tile = tile_memories(layer)[0]
                assert layer.entry is not None
                charged.append(layer.entry.bits * layer.tables.slots / 8192)
                words.append(tile.words_per_slot)
                control += tile.control_bits
                addresses += tile.address_bits
                replicas = replica_memory(layer)
                copies = max(copies, replicas.bits / 8192 if replicas else 0.0)
            print(
                f"{name:<10}{chip:<10}{space_name:<8}{len(layers):>6}"
                f"{median(charged):>9.3f}{max(charged):>7.2f}"
                f"{words.count(1):>6}{len(words) - words.count(1):>9}{max(words):>6}"
                f"{control / addresses:>11.2f}{copies:>7.2f}"
            )


if __name__ == "__main__":
    main()
