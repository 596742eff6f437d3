"""``epim-nas describe``: how large a search space is and what its layers may become."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from epim_nas.cli.output import print_json
from epim_nas.errors import InputError

if TYPE_CHECKING:
    from epim_nas.hardware import CostModel
    from epim_nas.pipeline.config import RunConfig
    from epim_nas.space.config import SpaceConfig
    from epim_nas.space.description import SpaceDescription

log = logging.getLogger(__name__)


def describe(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Run file: a path, or a preset's name (`demo`)."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space, without a RUN: a preset's name or a YAML.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model: a built-in name, torchvision:NAME, timm:NAME, module:function."),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Network YAML, or the name of a built-in model.")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(help="Chip: a preset's name, a chip YAML, or an MNSIM 2.0 SimConfig.ini."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of the run file, or of the chip where there is no RUN; repeatable.",
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Input of the model as C,H,W.  [default: the data's, or the model's]"),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help="Classes of the model.  [default: the data's, or the model's]"),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Count the designs of a search space, and the choices and crossbars of each layer.

    epim-nas describe demo

    epim-nas describe --space wide --model resnet50 --hardware epim_256

    Nothing is trained and no image is read, so it answers in seconds what a search would search.
    """
    from epim_nas.space.description import describe_space

    others = {"--space": space, "--model": model, "--network": network, "--hardware": hardware}
    if run is not None:
        given = [option for option, value in others.items() if value is not None]
        if given:
            raise InputError(
                ", ".join(given),
                "the run file has its own",
                hint="Change the run file's by --set, or leave out RUN.",
            )
        config, cost = _of_run(run, set_, input_shape, classes)
    else:
        missing = [option for option in ("--space", "--hardware") if others[option] is None]
        if missing:
            raise InputError(
                ", ".join(missing),
                "is missing",
                "a run file, or --space, --hardware and one of --model and --network",
                "Try `epim-nas describe demo`.",
            )
        assert space is not None
        assert hardware is not None
        config, cost = _of_parts(space, model, network, hardware, set_, input_shape, classes)
    description = describe_space(config, cost)
    if json_:
        print_json(description.to_dict())
    else:
        _print(description)


def _of_parts(
    space: str,
    model: str | None,
    network: str | None,
    hardware: str,
    overrides: list[str] | None,
    input_shape: str | None,
    classes: int | None,
) -> tuple[SpaceConfig, CostModel]:
    from epim_nas.cli.cost import resolve_network
    from epim_nas.hardware import CostModel, load_chip
    from epim_nas.space.config import load_space_config

    config = load_space_config(space)
    chip = load_chip(hardware, overrides or [])
    return config, CostModel(resolve_network(network, model, input_shape, classes), chip)


def _of_run(
    run: str, overrides: list[str] | None, input_shape: str | None, classes: int | None
) -> tuple[SpaceConfig, CostModel]:
    from epim_nas.hardware import CostModel
    from epim_nas.models.prepare import initialise
    from epim_nas.models.registry import build_model, without_downloads
    from epim_nas.network.trace import trace
    from epim_nas.pipeline.config import load_run_config
    from epim_nas.pipeline.context import load_run_chip
    from epim_nas.space.config import SpaceConfig, load_space_config

    config, _ = load_run_config(run, overrides)
    chip = load_run_chip(config)
    space = config.space
    if not isinstance(space, SpaceConfig):
        space = load_space_config(space, "space")
    shape, n_classes = _geometry(config, input_shape, classes)
    # Trained weights do not change the geometry.
    args = without_downloads(config.model.name, config.model.args)
    built = build_model(config.model.name, in_channels=shape[0], num_classes=n_classes, args=args)
    initialise(built, config.model.name, shape)
    return space, CostModel(trace(built, shape, config.model.name), chip)


def _geometry(
    config: RunConfig, input_shape: str | None, classes: int | None
) -> tuple[tuple[int, int, int], int]:
    """The input and the classes of a run's model: what the options say, else what the data has."""
    from epim_nas.cli.cost import check_classes, default_classes, parse_shape
    from epim_nas.data.geometry import data_geometry
    from epim_nas.models.registry import default_input_shape

    shape = None if input_shape is None else parse_shape(input_shape)
    if classes is not None:
        check_classes(classes)
    if shape is not None and classes is not None:
        return shape, classes
    found = data_geometry(config.data, config.seed)
    if found is not None:
        return shape or found.input_shape, classes or found.num_classes
    shape = shape or default_input_shape(config.model.name)
    classes = classes or default_classes(shape)
    log.warning(
        "data.root is not given: %s images in %d classes are assumed; --input-shape and --classes "
        "say otherwise",
        "x".join(map(str, shape)),
        classes,
    )
    return shape, classes


def _print(description: SpaceDescription) -> None:
    from epim_nas.cli.cost_tables import number_table, show
    from epim_nas.space.description import powers_of_ten

    tied = any(layer.tied_with for layer in description.layers)
    columns = ["choices\noffered", "\nsearched", "crossbars\nfewest", "\nmost"]
    table = number_table(
        "layer", "weight", *(["tied with"] if tied else []), *columns, texts=2 + tied
    )
    table.padding = (0, 1)
    for layer in description.layers:
        numbers = (layer.offered, layer.choices, layer.fewest, layer.most)
        table.add_row(
            layer.name,
            "x".join(map(str, layer.weight_shape)),
            *([_tied(layer.tied_with)] if tied else []),
            *map(str, numbers),
        )
    least, greatest = description.compression
    dropped = ""
    if description.dropped:
        dropped = (
            f" ({powers_of_ten(description.log10_offered)} before {description.dropped} dominated "
            "choices were dropped)"
        )
    show(
        table,
        "",
        f"{description.space} for {description.network} on {description.hardware}: "
        f"{description.decisions} decisions",
        f"designs      {powers_of_ten(description.log10_designs)}{dropped}",
        f"crossbars    {description.fewest} to {description.most}; "
        f"the dense network with 32-bit weights has {description.dense}",
        f"compression  {least:.2f}x to {greatest:.2f}x",
    )


def _tied(names: tuple[str, ...]) -> str:
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else ""
