"""``epim-nas cost``: what one design of a network costs on a chip."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epim_nas.errors import InputError

if TYPE_CHECKING:
    from epim_nas.network.spec import Network


_MOST_INPUTS = 2**24
_MOST_CLASSES = 2**20
_MOST_COMPARED = 3  # What fits a terminal beside the first.


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
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="What to put beside it: another chip, another design file, or bits of the dense "
            "network, e.g. w9a9. Up to three times."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a key of every chip, e.g. mapping.packing=sliced. Repeatable."
        ),
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

    epim-nas cost --model resnet50 --hardware epim_256 --compare isaac_128

    epim-nas cost --model resnet20 --hardware xbar_64 --design a.yaml --compare b.yaml

    Latency is pipelined (layers overlap); the layers' shares are of the sequential latency.
    --compare keeps everything but the one thing that it names, and prints ratios to the first.
    """
    from epim_nas.cli.comparison import Candidate, Comparison, parse_compare
    from epim_nas.cli.comparison_tables import print_comparison
    from epim_nas.cli.cost_tables import print_cost
    from epim_nas.epitome.design import FLOAT_BITS, LEAST_BITS, load_design
    from epim_nas.hardware import load_chip
    from epim_nas.hardware.bits import check_bits
    from epim_nas.hardware.model import DENSE_BITS

    if design is not None and (weight_bits is not None or activation_bits is not None):
        raise InputError(
            "--weight-bits, --activation-bits",
            "the design file says the bits of every layer already",
            hint="Leave them out, or leave out --design.",
        )
    # What a design file may say, for the same reason: nothing else is made.
    check_bits("--weight-bits", weight_bits, LEAST_BITS, FLOAT_BITS)
    check_bits("--activation-bits", activation_bits, LEAST_BITS, FLOAT_BITS)
    if len(compare or []) > _MOST_COMPARED:
        raise InputError(
            "--compare", f"was given {len(compare or [])} times", f"at most {_MOST_COMPARED} times"
        )
    overrides = set_ or []
    first = Candidate(
        chip=load_chip(hardware, overrides),
        weight_bits=DENSE_BITS if weight_bits is None else weight_bits,
        activation_bits=DENSE_BITS if activation_bits is None else activation_bits,
        design=None if design is None else load_design(design),
        source=design or "",
    )
    others = [parse_compare(text, first, overrides) for text in compare or []]
    net = resolve_network(network, model, input_shape, classes)
    if others:
        comparison = Comparison.of([first, *others], net)
        if json_:
            _print_json(comparison.to_dict())
        else:
            print_comparison(comparison)
        return
    result = first.cost(net)
    if json_:
        _print_json(result.to_dict())
    else:
        print_cost(result)


def _print_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, allow_nan=False) + "\n")


def resolve_network(
    network: str | None, model: str | None, input_shape: str | None, classes: int | None
) -> Network:
    """The network that the options ``--network`` and ``--model`` name.

    Raises:
        InputError: both or neither are given, or one of the options is wrong.
    """
    if (network is None) == (model is None):
        raise InputError(
            "--network, --model",
            "got both" if network else "got neither",
            "one of them",
            "Give a network YAML with --network, or a model with --model.",
        )
    if network is not None and network.lower().endswith((".yaml", ".yml")):
        if input_shape is not None or classes is not None:
            raise InputError(
                "--input-shape, --classes", "a network YAML has its own", hint="Leave them out."
            )
        from epim_nas.network.yaml_io import load_network

        return load_network(network)
    return _trace(network or model or "", input_shape, classes)


def _trace(spec: str, input_shape: str | None, classes: int | None) -> Network:
    from epim_nas.models.prepare import initialise
    from epim_nas.models.registry import build_model, default_input_shape
    from epim_nas.network.trace import trace

    shape = default_input_shape(spec) if input_shape is None else parse_shape(input_shape)
    if classes is None:
        classes = default_classes(shape)
    check_classes(classes)
    built = build_model(spec, in_channels=shape[0], num_classes=classes)
    initialise(built, spec, shape)
    return trace(built, shape, name=spec)


def check_classes(classes: int) -> None:
    """Check a number of classes.

    Raises:
        InputError: it is out of range.
    """
    if not 1 <= classes <= _MOST_CLASSES:
        raise InputError("--classes", f"got {classes}", f"1 to {_MOST_CLASSES}")


def default_classes(shape: tuple[int, int, int]) -> int:
    """The classes of a model for images of such a (C, H, W): ImageNet's or CIFAR's."""
    return 1000 if shape[1] >= 64 else 10


def parse_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) from ``C,H,W``.

    Raises:
        InputError: it is not three positive numbers, or they are too large to run the model on.
    """
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        channels = height = width = 0
    if min(channels, height, width) < 1 or channels * height * width > _MOST_INPUTS:
        raise InputError(
            "--input-shape",
            f"got `{text}`",
            f"C,H,W, e.g. 3,224,224, of at most {_MOST_INPUTS} values",
        )
    return channels, height, width
