"""The front as rows: ``front.csv``, a table for the terminal, markdown for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from epim_nas.records import Finalist, RunResult, TrialRecord
from epim_nas.report.csv_file import write_csv
from epim_nas.report.escape import markdown_text
from epim_nas.solver.metrics import METRICS, metric_of
from epim_nas.solver.pareto import BEST_IN

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class FrontRow:
    """One design (or the baseline) as the tables show it; unmeasured values are None.

    Accuracies are top-1 fractions (0..1). The fields, in order, are the columns of ``front.csv``;
    ``own`` has a column a metric.

    Attributes:
        name: ``baseline`` or ``trial N``.
        trial: number of the trial.
        origin: exact ``seed`` or ``search``.
        on_front: whether the trial is on the Pareto front of the supernet's scores.
        selected: selections that chose it, e.g. ``knee best-energy``.
        supernet_top1: validation top-1 with the supernet's shared weights.
        validation_top1: validation top-1 after stand-alone fine-tuning (of the trained network
            itself for the baseline).
        test_top1: test top-1 after stand-alone fine-tuning.
        crossbars: crossbars.
        compression: dense 32-bit crossbars over these; the product of the next two.
        shape_compression: the part that the epitomes' shapes save.
        bits_compression: the part that fewer weight bits save.
        latency_ns: pipelined latency of one inference.
        energy_nj: energy of one inference.
        own: objectives that the user registered -> value.
    """

    name: str
    trial: int | None
    origin: str
    on_front: bool
    selected: str
    supernet_top1: float | None
    validation_top1: float | None
    test_top1: float | None
    crossbars: int
    compression: float
    shape_compression: float
    bits_compression: float
    latency_ns: float
    energy_nj: float
    own: Mapping[str, float | None] = field(default_factory=dict)


def front_rows(result: RunResult) -> tuple[FrontRow, ...]:
    """The baseline, the front by falling accuracy, then finalists that are not on the front."""
    trials = {trial.number: trial for trial in result.trials}
    finalists = {finalist.number: finalist for finalist in result.finalists}
    rows = [_baseline_row(result)]
    for number in result.front:
        rows.append(_design_row(result, trials[number], finalists.get(number), True))
    for finalist in result.finalists:
        if finalist.number not in result.front:
            rows.append(_design_row(result, trials[finalist.number], finalist, False))
    return tuple(rows)


def _baseline_row(result: RunResult) -> FrontRow:
    totals = result.baseline.totals
    return FrontRow(
        name="baseline",
        trial=None,
        origin="dense, 32 bit",
        on_front=False,
        selected="",
        supernet_top1=None,
        validation_top1=result.baseline.validation_accuracy,
        test_top1=result.baseline.test_accuracy,
        crossbars=round(totals["crossbars"]),
        compression=1.0,
        shape_compression=1.0,
        bits_compression=1.0,
        latency_ns=float(totals["latency_ns"]),
        energy_nj=float(totals["energy_nj"]),
        own=_own(result, totals),
    )


def _design_row(
    result: RunResult, record: TrialRecord, finalist: Finalist | None, on_front: bool
) -> FrontRow:
    metrics = record.metrics
    return FrontRow(
        name=f"trial {record.number}",
        trial=record.number,
        origin=record.origin,
        on_front=on_front,
        selected=" ".join(
            name for name, number in result.selected.items() if number == record.number
        ),
        supernet_top1=_optional(metrics.get("accuracy")),
        validation_top1=finalist.validation_accuracy if finalist else None,
        test_top1=finalist.test_accuracy if finalist else None,
        crossbars=round(metrics["crossbars"]),
        compression=float(metrics["compression"]),
        shape_compression=float(metrics["shape_compression"]),
        bits_compression=float(metrics["bits_compression"]),
        latency_ns=float(metrics["latency_ns"]),
        energy_nj=float(metrics["energy_nj"]),
        own=_own(result, metrics),
    )


def own_objectives(result: RunResult) -> list[str]:
    """Objectives that the user registered and that no other column shows."""
    shown = {column.name for column in fields(FrontRow)}
    names = map(metric_of, result.objectives)
    return [
        name
        for name in names
        if name not in shown and name in METRICS and METRICS[name].function is not None
    ]


def _own(result: RunResult, metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _optional(metrics.get(name)) for name in own_objectives(result)}


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)


def write_front_csv(result: RunResult, path: str | Path) -> None:
    """Replace ``path`` by the rows of :func:`front_rows`; unmeasured values are empty cells."""
    columns = [column.name for column in fields(FrontRow) if column.name != "own"]
    write_csv(
        path,
        [*columns, *own_objectives(result)],
        ([*(getattr(row, c) for c in columns), *row.own.values()] for row in front_rows(result)),
    )


def percent(value: float | None) -> str:
    """A fraction as per cent with two decimals, a dash for None."""
    return "–" if value is None else f"{100 * value:.2f}"


def millis(value: float) -> str:
    """Nano-units as milli-units with three significant digits."""
    scaled = value / 1e6
    return f"{scaled:#.3g}" if abs(scaled) < 100 else f"{scaled:,.0f}"


Column = tuple[str, Callable[[FrontRow], str]]

COLUMNS: tuple[Column, ...] = (
    ("design", lambda row: row.name),
    ("top-1 supernet %", lambda row: percent(row.supernet_top1)),
    ("top-1 fine-tuned %", lambda row: percent(row.validation_top1)),
    ("test top-1 %", lambda row: percent(row.test_top1)),
    ("crossbars", lambda row: f"{row.crossbars:,}"),
    (
        "compression (shape × bits)",
        lambda row: (
            f"{row.compression:.1f}× ({row.shape_compression:.2f} × {row.bits_compression:.2f})"
        ),
    ),
    ("latency ms", lambda row: millis(row.latency_ns)),
    ("energy mJ", lambda row: millis(row.energy_nj)),
    ("note", lambda row: _note(row)),
)
"""Headings and texts of the table for people; the user's own objectives come before the note."""


def _with_own(columns: Sequence[Column], result: RunResult) -> list[Column]:
    own: list[Column] = [(name, partial(own_text, name)) for name in own_objectives(result)]
    return [*columns[:-1], *own, columns[-1]]


def own_text(name: str, row: FrontRow) -> str:
    """A user's objective of a row, for people."""
    value = row.own.get(name)
    return "–" if value is None else f"{value:.4g}"


_SHORT = {"accuracy": "super", "latency_ns": "ms", "energy_nj": "mJ"}
"""Metric -> its column of the terminal's table."""

TERMINAL_COLUMNS: tuple[Column, ...] = (
    ("trial", lambda row: "dense" if row.trial is None else str(row.trial)),
    ("super", lambda row: percent(row.supernet_top1)),
    ("tuned", lambda row: percent(row.validation_top1)),
    ("test", lambda row: percent(row.test_top1)),
    ("xbars", lambda row: str(row.crossbars)),
    ("compr.", lambda row: f"{row.compression:.1f}x"),
    ("shape", lambda row: f"{row.shape_compression:.2f}"),
    ("bits", lambda row: f"{row.bits_compression:.2f}"),
    ("ms", lambda row: millis(row.latency_ns)),
    ("mJ", lambda row: millis(row.energy_nj)),
    ("note", lambda row: " ".join(map(_best_in, row.selected.split()))),
)
"""The same for a terminal of 80 columns."""


def _best_in(which: str) -> str:
    """The column of the terminal's table in which a selection is best."""
    return _SHORT[BEST_IN[which]] if which in BEST_IN else which


def _note(row: FrontRow) -> str:
    notes = [row.selected.replace(" ", ", ")] if row.selected else []
    if row.trial is None or row.origin != "search":
        notes.append(row.origin)
    if row.trial is not None and not row.on_front:
        notes.append("not on the supernet's front")
    return ", ".join(notes)


def table_texts(result: RunResult) -> tuple[list[str], list[list[str]]]:
    """The headings and the texts of every row of :func:`front_rows`."""
    columns = _with_own(COLUMNS, result)
    headings = [heading for heading, _ in columns]
    return headings, [[text(row) for _, text in columns] for row in front_rows(result)]


def rich_table(result: RunResult) -> Table:
    """The front as a table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows = front_rows(result)
    table = Table(
        title=f"Pareto front of {result.name}",
        title_justify="left",
        caption="top-1 in %: shared weights and fine-tuned on validation images, fine-tuned on "
        "test images; note: best in",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        pad_edge=False,
    )
    own = own_objectives(result)
    columns = _with_own(TERMINAL_COLUMNS, result)
    if own:  # eighty columns have no room for all
        columns = [column for column in columns if column[0] not in ("shape", "bits")]
    for heading, _ in columns:
        note = heading == "note"
        table.add_column(
            heading,
            justify="left" if note else "right",
            no_wrap=not note and heading not in own,
            overflow="fold",
            min_width=8 if note else 6 if heading in own else None,
        )
    for row in rows:
        style = "dim" if row.trial is None else "bold" if "knee" in row.selected else ""
        # Text, not str: a name from outside must not be read as console markup.
        table.add_row(*(Text(text(row)) for _, text in columns), style=style)
    return table


def markdown_table(result: RunResult) -> str:
    """The front as a markdown table."""
    headings, cells = table_texts(result)
    aligns = [":---" if name in ("design", "note") else "---:" for name in headings]
    lines = [markdown_line(headings), markdown_rule(aligns)]
    lines += map(markdown_line, cells)
    return "\n".join(lines) + "\n"


def markdown_line(cells: Sequence[str]) -> str:
    """A row of a markdown table; cells are plain text."""
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def markdown_rule(aligns: Sequence[str]) -> str:
    """The line below the headings of a markdown table."""
    return "| " + " | ".join(aligns) + " |"
