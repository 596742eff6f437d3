"""Commands that search and measure: ``search``, ``evaluate``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from epim_nas.cli.output import console, print_json

_SIMULATION = "Options of --simulate"

RunFile = Annotated[
    str, typer.Argument(metavar="RUN", help="Run file: a path, or a preset's name (`demo`).")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run file; repeatable."),
]


def search(
    run: RunFile,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; runs/NAME by default.")
    ] = None,
    set_: Set = None,
) -> None:
    """Search the best designs of a network, or go on with an interrupted search.

    A folder that holds an interrupted run is resumed: nothing finished is lost or repeated.

    epim-nas search demo

    epim-nas search my_run.yaml --out results --set budget.compression=30
    """
    from epim_nas.pipeline.driver import resolve_run
    from epim_nas.pipeline.driver import search as run_search
    from epim_nas.pipeline.folder import RunFolder
    from epim_nas.pipeline.progress import log_to_file
    from epim_nas.pipeline.results import best_number, relative
    from epim_nas.report.tables import rich_table

    config, folder_path = resolve_run(run, out, set_)
    folder = RunFolder(folder_path)
    with log_to_file(folder.log):
        result = run_search(config, folder_path)
    console().print(rich_table(result))
    shown = relative(folder.path)
    files = ("front.csv", "report.html", "best.yaml", "designs", "tensorboard")
    written = ", ".join(name for name in files if (folder.path / name).exists())
    typer.echo(f"\nResults in {shown}: {written}")
    best = best_number(result)
    shown = shlex.quote(str(shown))
    typer.echo("Next:")
    typer.echo(f"  epim-nas dashboard {shown}")
    typer.echo(f"  epim-nas pareto {shown}")
    if best is not None:
        typer.echo(
            f"  epim-nas export {shown} --select {best} --to all --out exports/{config.name}"
        )
        typer.echo(f"  epim-nas finetune {shown}/best.yaml --run {shown}/run.yaml")


def evaluate(
    context: typer.Context,
    design: Annotated[Path, typer.Argument(metavar="DESIGN.yaml", help="Design file.")],
    run: Annotated[str, typer.Option("--run", help="Run file: network, data and weights.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="Epitomes (safetensors); without, the projected trained network."
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="validation or test.")] = "test",
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Through the crossbar simulator.")
    ] = False,
    adc_bits: Annotated[
        str,
        typer.Option(
            "--adc-bits",
            rich_help_panel=_SIMULATION,
            metavar="N,N,...",
            help="Bits of the ADCs to simulate.",
        ),
    ] = "3,4,5,6,7,8,9",
    variation: Annotated[
        str,
        typer.Option(
            "--variation",
            rich_help_panel=_SIMULATION,
            metavar="X,X,...",
            help="Simulated log-normal variations of the cells' conductance.",
        ),
    ] = "0,0.1,0.3",
    adc_range: Annotated[
        str,
        typer.Option(
            "--adc-range",
            rich_help_panel=_SIMULATION,
            help="unit (clips), full (rounds), or calibrated; see docs/simulator.md.",
        ),
    ] = "unit",
    stuck_off: Annotated[
        float,
        typer.Option(
            "--stuck-off", rich_help_panel=_SIMULATION, help="Share of simulated cells stuck at 0."
        ),
    ] = 0.0,
    stuck_on: Annotated[
        float,
        typer.Option(
            "--stuck-on",
            rich_help_panel=_SIMULATION,
            help="Share of simulated cells stuck at the top level.",
        ),
    ] = 0.0,
    read_noise: Annotated[
        float,
        typer.Option(
            "--read-noise",
            rich_help_panel=_SIMULATION,
            help="Relative noise of a simulated cell's current.",
        ),
    ] = 0.0,
    drift: Annotated[
        str,
        typer.Option(
            "--drift",
            rich_help_panel=_SIMULATION,
            metavar="EXPONENT,SPREAD,TIME",
            help="Simulated drift: the conductance falls with time^-exponent.",
        ),
    ] = "0,0,1",
    seed: Annotated[
        int, typer.Option("--seed", rich_help_panel=_SIMULATION, help="Of the simulated cells.")
    ] = 0,
    images: Annotated[
        int, typer.Option("--images", rich_help_panel=_SIMULATION, help="Images to simulate.")
    ] = 256,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            rich_help_panel=_SIMULATION,
            help="Folder of the figure; simulated/DESIGN by default.",
        ),
    ] = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure the accuracy of one design, in torch or through the crossbar simulator.

    epim-nas evaluate runs/demo/best.yaml --run demo --weights best.safetensors --json

    epim-nas evaluate runs/demo/best.yaml --run demo --weights best.safetensors --simulate

    Simulated, it prints top-1 accuracy against ADC bits and variation, and draws it.
    """
    if simulate:
        from epim_nas.cli.simulate import simulate_command

        simulate_command(
            design,
            run,
            weights=weights,
            split=split,
            adc_bits=adc_bits,
            variation=variation,
            adc_range=adc_range,
            imperfections={
                "stuck_off": stuck_off,
                "stuck_on": stuck_on,
                "read_noise": read_noise,
            },
            drift=drift,
            seed=seed,
            images=images,
            out=out,
            overrides=set_,
            json_=json_,
        )
        return
    _refuse_simulation_options(context)
    from epim_nas.pipeline.evaluate import evaluate_design

    result = evaluate_design(design, run, weights=weights, split=split, overrides=set_)
    if json_:
        print_json(result)
        return
    typer.echo(
        f"top-1 {100 * result['accuracy']:.2f} % on {result['images']} {split} images, "
        f"{result['crossbars']} crossbars ({result['compression']:.2f}x)"
    )


def _refuse_simulation_options(context: typer.Context) -> None:
    """They would have no effect without ``--simulate``."""
    from epim_nas.errors import InputError

    for parameter in context.command.params:
        simulation = getattr(parameter, "rich_help_panel", None) == _SIMULATION
        # By name: Typer brings a copy of click's type, of an internal module.
        source = getattr(context.get_parameter_source(parameter.name or ""), "name", "")
        if simulation and source == "COMMANDLINE":
            raise InputError(
                parameter.opts[0],
                "is an option of the simulator",
                hint="Add `--simulate`, or leave it out.",
            )
