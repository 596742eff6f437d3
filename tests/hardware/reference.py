"""Reading the MNSIM reference cases: their networks, chips and expected values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from epim_nas.network.spec import LayerSpec, Network

DATA = Path(__file__).parent / "data"


def load_cases(path: Path = DATA / "mnsim_cases.json.gz") -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["records"]


def ini_text(case: dict[str, Any]) -> str:
    lines = []
    for section, keys in case["config"].items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def whole_ini(**changes: str) -> str:
    """MNSIM's own configuration, with the values of some keys (in small letters) replaced."""
    default = next(case for case in load_cases() if not case["overrides"])
    known = {key for keys in default["config"].values() for key in keys}
    assert known >= set(changes)
    config = {
        section: {key: changes.get(key, value) for key, value in keys.items()}
        for section, keys in default["config"].items()
    }
    return ini_text({"config": config})


def network_of(case: dict[str, Any]) -> Network:
    table = case["layers"]
    layers: list[LayerSpec] = []
    for i, kind in enumerate(table["type"]):
        inputs = tuple(
            f"l{i + offset}" if i + offset >= 0 else "input" for offset in table["Inputindex"][i]
        )
        name = f"l{i}"
        if kind == "fc":
            layer = LayerSpec(name, kind, inputs, table["Infeature"][i], table["Outfeature"][i])
        elif kind == "element_sum":
            source = next(item for item in layers if item.name == inputs[0])
            layer = LayerSpec(
                name,
                kind,
                inputs,
                source.out_channels,
                source.out_channels,
                source.output_size,
                source.output_size,
            )
        else:
            layer = LayerSpec(
                name,
                kind,
                inputs,
                table["Inputchannel"][i],
                table["Outputchannel"][i],
                tuple(table["Inputsize"][i]),
                tuple(table["Outputsize"][i]),
                (table["Kernelsize"][i],) * 2,
                (table["Stride"][i],) * 2,
                (table["Padding"][i],) * 2,
            )
        layers.append(layer)
    first = layers[0]
    return Network("case", tuple(layers), (first.in_channels, *first.input_size))


def overrides_of(case: dict[str, Any]) -> list[str]:
    overrides = []
    if case["mapping"].startswith("packed"):
        overrides.append("mapping.packing=packed")
    if case["latency_mode"] in (0, "0"):
        overrides.append("pipeline.input_fill=line")
    if case["latency_mode"] == "nopipe":
        overrides += ["pipeline.overlap=false", "pipeline.input_fill=line"]
    return overrides


_MAPPING = {
    "PEs": "crossbars",
    "tiles": "tiles",
    "max_row": "rows",
    "max_column": "columns",
    "max_PE": "pes_per_tile",
    "max_group": "groups",
    "cell_utilization": "utilization",
}
_GROUPS = {
    "latency_ns": "latency_ns",
    "energy_nJ": "energy_nj",
    "power_W": "power_w",
    "area_um2": "area_um2",
}


def load_packed_totals() -> list[dict[str, Any]]:
    """ResNet-50 with packed slices: totals of every case, and the network's geometry."""
    with gzip.open(DATA / "resnet50_packed_totals.json.gz", "rt", encoding="utf-8") as file:
        data = json.load(file)
    return [{**record, "layers": data["layers"]} for record in data["records"]]


def compare(case: dict[str, Any], cost: Any) -> dict[str, tuple[float, float]]:
    """Every number of a case that the model has: name -> (ours, the simulator's)."""
    return compare_layers(case, cost) | compare_totals(case, cost)


def compare_layers(case: dict[str, Any], cost: Any) -> dict[str, tuple[float, float]]:
    """The numbers of the layers."""
    pairs: dict[str, tuple[float, float]] = {}
    table = case["layers"]
    several_groups = case["config"]["Process element level"]["group_num"] != "1"
    for i, layer in enumerate(cost.layers):
        for key, values in table.items():
            if values[i] is None:
                continue
            group, _, part = key.partition(".")
            if part and group in _GROUPS:
                pairs[f"l{i}.{key}"] = (getattr(layer, _GROUPS[group])[part], values[i])
            elif key == "cell_utilization" and several_groups:
                continue  # The record counts half-filled groups as full.
            elif key in _MAPPING:
                pairs[f"l{i}.{key}"] = (getattr(layer.mapping, _MAPPING[key]), values[i])
        timeline = layer.timeline
        pairs[f"l{i}.first_finish"] = (timeline.first_finish_ns, table["first_finish_ns"][i])
        pairs[f"l{i}.finish"] = (timeline.finish_ns, table["finish_ns"][i])
        pairs[f"l{i}.inside"] = (layer.hops.inside, table["inLayer_distance"][i])
        pairs[f"l{i}.outside"] = (layer.hops.outside, table["transLayer_distance"][i])
    return pairs


def compare_totals(case: dict[str, Any], cost: Any) -> dict[str, tuple[float, float]]:
    """The numbers of the whole network."""
    pairs: dict[str, tuple[float, float]] = {}
    total, totals, shared = case["total"], cost.totals, cost.shared
    pairs["latency_ns"] = (totals.latency_ns, total["latency_ns"])
    pairs["crossbars"] = (totals.crossbars, total["PEs"])
    pairs["tiles"] = (totals.tiles, total["tiles"])
    pairs["energy"] = (totals.energy_nj, total["energy_nJ"]["total"])
    pairs["area"] = (totals.area_um2, total["area_um2"]["total"])
    pairs["power"] = (
        sum(layer.power_w["total"] for layer in cost.layers),
        total["power_W"]["total"],
    )
    pairs["inbuf"] = (shared.pe_input_kb, total["max_inbuf_KB"])
    pairs["outbuf"] = (shared.tile_output_kb, total["max_outbuf_KB"])
    pairs["global_buf"] = (shared.accumulator_kb, total["global_buf_KB"])
    pairs["global_adders"] = (shared.accumulator_adders, total["global_adder_num"])
    pairs["global_width"] = (shared.accumulator_adder_bits, total["global_adder_bitwidth"])
    for part in ("adder", "buf"):
        ours = sum(layer.area_um2[part] for layer in cost.layers) + shared.area_um2[part]
        pairs[f"area.{part}"] = (ours, total["area_um2"][part])
    for part in ("adder", "buf_r", "buf_w"):
        ours = sum(layer.power_w[part] for layer in cost.layers) + shared.power_w[part]
        pairs[f"power.{part}"] = (ours, total["power_W"][part])
    return pairs


def relative(pair: tuple[float, float]) -> float:
    ours, theirs = pair
    return abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-30)
