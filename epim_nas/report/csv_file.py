"""Tables as CSV files that read back exactly."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from epim_nas.files import atomic_path


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Replace ``path`` by a line of headings and a line a row.

    None becomes an empty cell, a size such as (64, 32, 3, 3) ``64x32x3x3``, and a truth value
    ``true`` or ``false``.

    Args:
        path: the file.
        columns: headings.
        rows: the cells of every row.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    # repr keeps every digit of a float, so reading the file gives the same number back.
    return repr(float(value)) if isinstance(value, float) else value
