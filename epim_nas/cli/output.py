"""What commands print to stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def print_json(data: Any) -> None:
    """Print one JSON object to stdout; NaN and infinity, which JSON has not, are an error."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def console(width: int | None = None) -> Console:
    """Rich's console on stdout, which takes no name from outside for markup.

    Args:
        width: characters of a line; by default those of the terminal.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, width=width)
