"""``finetune``: the full training of one design."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from epim_nas.cli.output import print_json
from epim_nas.cli.run import Set


def finetune(
    design: Annotated[Path, typer.Argument(metavar="DESIGN.yaml", help="Design file.")],
    run: Annotated[str, typer.Option("--run", help="Run file: network, data and weights.")],
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the data [finetune.epochs: 30].")
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option("--lr", help="Peak learning rate; `auto` follows the damage [finetune.lr]."),
    ] = None,
    ema: Annotated[
        float | None, typer.Option("--ema", help="Decay of the averaged weights [finetune.ema].")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Epitomes to start from, such as a finalist's; without, the projected network.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes or GPUs, by Ray Train.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; finetuned/DESIGN by default.")
    ] = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Train one design fully, from the run's trained network or from given epitomes.

    Interrupted, the same command goes on. The result is a checkpoint of epitomes.

        epim-nas finetune runs/demo/best.yaml --run runs/demo/run.yaml --epochs 30
    """
    from epim_nas.pipeline.finetune.finetune import finetune_design

    result = finetune_design(
        design,
        run,
        options={"epochs": epochs, "lr": _rate(lr), "ema": ema},
        weights=weights,
        workers=workers,
        out=out,
        overrides=set_,
    )
    if json_:
        print_json(result)
        return
    typer.echo(
        f"top-1 {100 * result['validation_accuracy']:.2f} % validation, "
        f"{100 * result['test_accuracy']:.2f} % test (before training "
        f"{100 * result['before']:.2f} % validation)"
    )
    typer.echo(f"Weights in {result['weights']}")
    folder = Path(result["weights"]).parent
    typer.echo("Next:")
    typer.echo(f"  tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
    typed = shlex.join(["--run", run, "--weights", str(result["weights"]), "--json"])
    typer.echo(f"  epim-nas evaluate {shlex.quote(str(design))} {typed}")


def _rate(text: str | None) -> float | str | None:
    """A number where it is one; what else is allowed, the configuration knows."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
