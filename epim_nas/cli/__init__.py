"""The ``epim-nas`` command."""

from epim_nas.cli.entry import main

__all__ = ["main"]
