"""The ``epim-nas`` command."""

from epim_nas.cli.app import main

__all__ = ["main"]
