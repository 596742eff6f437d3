"""The first lines of the ``epim-nas`` command: signals and streams, before anything heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from epim_nas import interrupts
from epim_nas.cli import streams
from epim_nas.errors import machine_fault


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    interrupts.install()
    code = interrupts.EXIT_CODE
    try:
        streams.guard()
        code = _run(arguments)
        if interrupts.arrived() and code != interrupts.EXIT_CODE:  # swallowed on its way
            raise KeyboardInterrupt
    except BaseException:
        if not interrupts.arrived():
            raise
        code = interrupts.EXIT_CODE
        sys.stderr.write("epim-nas: interrupted\n")
    interrupts.finish(code)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        os.getcwd()
    except OSError as error:  # without it torch cannot be imported, and ends the process
        sys.stderr.write(f"epim-nas: {machine_fault(error)}\n")
        return 1
    from epim_nas.cli.app import run_command

    return run_command(arguments)
