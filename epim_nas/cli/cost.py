"""``epim-nas cost``: what one design of a network costs on a chip."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from epim_nas.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from epim_nas.hardware import NetworkCost
    from epim_nas.network.spec import Network


def cost(
    hardware: Annotated[
        str,
        typer.Option(help="Chip: a preset's name, a chip YAML, or an MNSIM 2.0 SimConfig.ini."),
    ],
    network: Annotated[
        str | None, typer.Option(help="Network YAML, or the name of a built-in model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model: a built-in name, torchvision:NAME, timm:NAME, module:function."),
    ] = None,
    design: Annotated[
        str | None, typer.Option(help="Design file; without one every layer is dense.")
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(help="Bits of dense weights, where no design is given.  [default: 9]"),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(help="Bits of activations, where no design is given.  [default: 9]"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a chip key, e.g. mapping.packing=sliced. Repeatable."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Input of a model as C,H,W.  [default: the model's own]")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Classes of a model.  [default: 1000 at 224x224, else 10]")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Crossbars, latency, energy and area of one design, in total and layer by layer.

    epim-nas cost --model resnet50 --hardware epim_256 --weight-bits 32

    Latency is pipelined (layers overlap); the layers' shares are of the sequential latency.
    """
    from epim_nas.epitome.design import load_design
    from epim_nas.hardware import CostModel, load_chip
    from epim_nas.hardware.model import DENSE_BITS

    if design is not None and (weight_bits is not None or activation_bits is not None):
        raise InputError(
            "--weight-bits, --activation-bits",
            "the design file says the bits of every layer already",
            hint="Leave them out, or leave out --design.",
        )
    chip = load_chip(hardware, set_ or [])
    net = _network(network, model, input_shape, classes)
    chosen = None
    if design is not None:
        chosen = load_design(design)
        chosen.check_fits(net, design)
    result = CostModel(net, chip).evaluate(
        chosen,
        weight_bits=DENSE_BITS if weight_bits is None else weight_bits,
        activation_bits=DENSE_BITS if activation_bits is None else activation_bits,
    )
    if json_:
        sys.stdout.write(json.dumps(result.to_dict(), allow_nan=False) + "\n")
        return
    _show(result)


def _network(
    network: str | None, model: str | None, input_shape: str | None, classes: int | None
) -> Network:
    if (network is None) == (model is None):
        raise InputError(
            "--network, --model",
            "got both" if network else "got neither",
            "one of them",
            "Give a network YAML with --network, or a model with --model.",
        )
    if network is not None and network.lower().endswith((".yaml", ".yml")):
        if input_shape or classes:
            raise InputError(
                "--input-shape, --classes", "a network YAML has its own", hint="Leave them out."
            )
        from epim_nas.network.yaml_io import load_network

        return load_network(network)
    return _trace(network or model or "", input_shape, classes)


def _trace(spec: str, input_shape: str | None, classes: int | None) -> Network:
    from epim_nas.models.registry import build_model, default_input_shape
    from epim_nas.network.trace import trace

    shape = _shape(input_shape) if input_shape else default_input_shape(spec)
    if classes is None:
        classes = 1000 if shape[1] >= 64 else 10
    if classes < 1:
        raise InputError("--classes", f"got {classes}", "a positive number")
    built = build_model(spec, in_channels=shape[0], num_classes=classes)
    return trace(built, shape, name=spec)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise InputError("--input-shape", f"got `{text}`", "C,H,W, e.g. 3,224,224")
    return channels, height, width


def _show(result: NetworkCost) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A pipe or a file has no width to wrap at.
        console = Console(width=200)
    console.print(_layer_table(result))
    totals = result.totals
    console.print(
        f"[bold]{result.network}[/] on [bold]{result.hardware}[/]: "
        f"{totals.crossbars} crossbars in {totals.tiles} tiles, "
        f"{totals.utilization:.1%} of the cells used, {totals.area_um2 / 1e6:.4g} mm2"
    )
    console.print(
        f"latency {totals.latency_ns / 1e6:.4g} ms pipelined, "
        f"{totals.sequential_latency_ns / 1e6:.4g} ms layer after layer; "
        f"energy {totals.energy_nj / 1e6:.4g} mJ"
    )
    console.print("busy time: " + _shares(result, "latency_ns", _TIME_PARTS))
    console.print("energy: " + _shares(result, "energy_nj", _ENERGY_PARTS))


_TIME_PARTS = (
    "buffer",
    "computing",
    "digital",
    "intra_tile",
    "inter_tile",
    "pooling",
    "index_table",
)
_ENERGY_PARTS = ("ADC", "buf", "xbar", "DAC", "digital", "pooling", "index_table")


def _shares(result: NetworkCost, field: str, parts: tuple[str, ...]) -> str:
    """Where the time or the energy goes, largest part first."""
    sums = {part: sum(getattr(layer, field)[part] for layer in result.layers) for part in parts}
    whole = sum(sums.values()) or 1.0
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value / whole:.1%}" for name, value in ordered if value > 0)


def _layer_table(result: NetworkCost) -> Table:
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    for name in ("crossbars", "used", "rounds", "us", "share", "uJ", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    totals = result.totals
    for layer in result.layers:
        energy = layer.energy_nj["total"]
        weighted = layer.crossbars > 0
        table.add_row(
            layer.name,
            layer.type,
            str(layer.crossbars) if weighted else "",
            f"{layer.utilization:.1%}" if weighted else "",
            str(layer.rounds) if weighted else "",
            f"{layer.sequential_latency_ns / 1e3:.4g}",
            f"{layer.sequential_latency_ns / totals.sequential_latency_ns:.1%}",
            f"{energy / 1e3:.4g}",
            f"{energy / totals.energy_nj:.1%}" if totals.energy_nj else "",
        )
    return table
