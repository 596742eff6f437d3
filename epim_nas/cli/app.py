"""The command line: commands, exit codes, and how errors reach the user.

Exit codes: 0 done, 2 the input is wrong, 1 anything else, 130 interrupted with everything saved.
Results go to stdout; logs, progress and errors to stderr.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from epim_nas import interrupts
from epim_nas._version import __version__
from epim_nas.cli import cost as cost_command
from epim_nas.cli import describe as describe_command
from epim_nas.cli import finetune as finetune_command
from epim_nas.cli import launch as launch_command
from epim_nas.cli import results, run
from epim_nas.cli.streams import ReaderGone
from epim_nas.errors import EpimError, InputError, machine_fault, shortened

_INTERRUPTED = interrupts.EXIT_CODE
_MOST_SAID = 2000
"""Characters of a message; that of an InputError has fewer."""

_USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""Root of the errors in a command line. Newer Typer has a copy of Click of its own inside, older
Typer uses Click itself; its public exception leads to the right one."""

app = typer.Typer(
    name="epim-nas",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Search layer-wise epitome shapes and bit-widths for processing-in-memory chips.

Start with `epim-nas search demo`, or look around with `epim-nas presets`.""",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"epim-nas {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from epim_nas.pipeline.progress import setup_logging

    setup_logging(-1 if quiet else int(verbose))


app.command("search")(run.search)
app.command("pareto")(results.pareto)
app.command("export")(results.export)
app.command("verify")(results.verify)
app.command("report")(results.report)
app.command("finetune")(finetune_command.finetune)
app.command("evaluate")(run.evaluate)
app.command("cost")(cost_command.cost)
app.command("describe")(describe_command.describe)
app.command("dashboard")(results.dashboard)
app.command("presets")(results.presets)
app.command("schema")(results.schema)
app.command("launch")(launch_command.launch)
app.command("jobs")(launch_command.jobs)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        _refuse_empty(sys.argv[1:] if arguments is None else arguments)
        command = typer.main.get_command(app)
        # Commands return nothing; a number is the code of an early exit (--version, Ctrl-C).
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="epim-nas",
            standalone_mode=False,
        )
        if sys.stdout is not None:
            sys.stdout.flush()
        if code == _INTERRUPTED:
            _say("interrupted")
        return code if isinstance(code, int) else 0
    except ReaderGone as gone:
        return gone.exit_code
    except EpimError as error:
        _say(str(error))
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except _USAGE_ERROR as error:  # an unknown option or command, a missing argument
        _say_usage(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return _INTERRUPTED
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Say what nobody has foreseen; returns the exit code."""
    logging.getLogger("epim_nas").debug("traceback", exc_info=True)
    if interrupts.arrived():  # in the middle of an import, it comes out as any error
        _say("interrupted")
        return _INTERRUPTED
    fault = machine_fault(error)
    if fault is not None:
        _say(fault)
        return 1
    _say(f"unexpected {type(error).__name__}: {error}")
    _say("This is a bug; `epim-nas --verbose ...` shows where it happened.")
    return 1


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse arguments that are empty, e.g. a variable of a script that is not set.

    None of them means anything; as a path it would be the current folder.
    """
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option = before if before.startswith("-") else "an argument"
        if argument.startswith("--") and argument.endswith("=") and argument.count("=") == 1:
            option, argument = argument[:-1], ""
        if not argument.strip() or "\0" in argument:
            raise InputError(option, f"got {argument!r}", "a value", "Give one, or leave it out.")


def _say(text: str) -> None:
    typer.echo(f"epim-nas: {shortened(text, _MOST_SAID)}", err=True)


def _say_usage(error: Any) -> None:
    message = error.format_message().strip()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help
        typer.echo(message, err=True)
        return
    path = context.command_path if context is not None else "epim-nas"
    message = message.replace("Value error, ", "")
    message += "" if message.endswith((".", "?", ")")) else "."
    _say(f"{message} Type `{path} --help` for what is allowed.")
