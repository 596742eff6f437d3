"""Commands on what is stored: ``pareto``, ``export``, ``dashboard``, ``presets``."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from epim_nas.cli.output import console, print_json

RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="Run folder of a search.")]


class Artefact(str, Enum):
    """What ``export`` can write."""

    design = "design"
    weights = "weights"
    onnx = "onnx"
    mnsim = "mnsim"
    datapath = "datapath"
    all = "all"


def pareto(
    folder: RunDir,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print the front of a run, offline, from what is stored; also of a running one.

    epim-nas pareto runs/demo --json
    """
    from epim_nas.pipeline.folder import RunFolder
    from epim_nas.pipeline.results import front_dict, load_result
    from epim_nas.report.tables import rich_table

    result = load_result(RunFolder(folder))
    if json_:
        print_json(front_dict(result))
    else:
        console().print(rich_table(result))
        if result.front:
            shown = shlex.quote(str(folder))
            typer.echo(
                f"Next: epim-nas export {shown} --select knee --out exports/{result.name}", err=True
            )


def export(
    folder: RunDir,
    out: Annotated[Path, typer.Option("--out", help="Folder for the artefacts.")],
    select: Annotated[
        str,
        typer.Option(
            "--select",
            help="knee, best-accuracy, best-latency, best-energy, or a trial's number.",
        ),
    ] = "knee",
    to: Annotated[Artefact, typer.Option("--to", help="What to write.")] = Artefact.design,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Its epitomes; those of the finalist by default."),
    ] = None,
) -> None:
    """Write the artefacts of one design, with a manifest of digests.

    epim-nas export runs/demo --select best-accuracy --to all --out exports/demo
    """
    from epim_nas.pipeline.export import export_trial
    from epim_nas.pipeline.folder import RunFolder

    for path in export_trial(RunFolder(folder), select, to.value, out, weights):
        typer.echo(str(path))
    # Not on stdout, which has the paths alone.
    typer.echo(f"Next: epim-nas verify {shlex.quote(str(out))}", err=True)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of an export.")],
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check an exported design again: that nothing has changed, and that its parts agree.

    epim-nas verify exports/demo
    """
    from epim_nas.export.verification import verify_export

    manifest, checks = verify_export(folder)
    if json_:
        print_json(
            {
                "schema": "epim-nas/verification@1",
                "network": manifest.network,
                "design_sha256": manifest.design_sha256,
                "checks": {check.part: check.found for check in checks},
            }
        )
        return
    for check in checks:
        typer.echo(f"{check.part}: {check.found}")


class Report(str, Enum):
    """Forms of a report."""

    html = "html"
    md = "md"
    latex = "latex"


def report(
    folder: RunDir,
    to: Annotated[
        Report, typer.Option("--to", help="The interactive page, a summary, or a LaTeX table.")
    ] = Report.html,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; DIR/report.html, and stdout for the others, by default."
        ),
    ] = None,
) -> None:
    """Write the report of a run, finished or not: a page, a summary to print, a LaTeX table.

    epim-nas report runs/demo --to md --out demo.md
    """
    from epim_nas.files import check_file_out, write_text
    from epim_nas.pipeline.folder import RunFolder
    from epim_nas.pipeline.results import report_text

    run_folder = RunFolder(folder)
    to_stdout = out is None and to is not Report.html
    path = out or run_folder.report
    if out is not None:
        check_file_out(out, "--out")
    elif not to_stdout and run_folder.path.is_dir():
        check_file_out(path, str(path), hint="Write it elsewhere: `--out FILE`.")
    text = report_text(run_folder, to.value, out)
    if to_stdout:
        typer.echo(text, nl=False)
        return
    write_text(path, text)
    typer.echo(str(path))


def schema(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="design, run, space, chip, manifest or datapath.")
    ],
) -> None:
    """Print the JSON Schema of a kind of file, for editors and for programs that read it.

    epim-nas schema design
    """
    from epim_nas.json_schemas import json_schema

    print_json(json_schema(kind))


def dashboard(
    folder: RunDir,
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 6006,
    host: Annotated[
        str, typer.Option("--host", help="Address; other machines cannot reach the default.")
    ] = "127.0.0.1",
) -> None:
    """Open the TensorBoard dashboard of a run, on this machine only.

    epim-nas dashboard runs/demo
    """
    from epim_nas.pipeline.folder import RunFolder
    from epim_nas.report.serve import serve_tensorboard

    run_folder = RunFolder(folder)
    run_folder.load_config()
    serve_tensorboard(run_folder.tensorboard, host, port)


def presets(
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List search spaces, chips, networks, data sets and run files.

    epim-nas presets
    """
    from rich.table import Table
    from rich.text import Text

    from epim_nas.cli.catalogue import catalogue

    entries = catalogue()
    if json_:
        print_json(entries)
        return
    screen = console()
    for kind, found in entries.items():
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for name, summary in found.items():
            table.add_row(Text(name, style="bold"), summary)
        screen.print(table)
        screen.print()
