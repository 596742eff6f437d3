"""What ``--json`` prints."""

from __future__ import annotations

import json
from typing import Any

import typer


def print_json(data: Any) -> None:
    """Print one JSON object to stdout; NaN and infinity, which JSON has not, are an error."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))
