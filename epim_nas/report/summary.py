"""A run on paper: a summary in markdown, and the front as a LaTeX table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from epim_nas.files import safe_name
from epim_nas.records import RunResult
from epim_nas.report import notes
from epim_nas.report.escape import latex_text, markdown_code, markdown_text
from epim_nas.report.page_data import headline
from epim_nas.report.tables import (
    FrontRow,
    front_rows,
    markdown_line,
    markdown_rule,
    markdown_table,
    millis,
    own_objectives,
    own_text,
    percent,
)
from epim_nas.solver.metrics import own_texts
from epim_nas.units import duration


def markdown_summary(
    result: RunResult, chip: str, run_folder: str | None = None, picture: str | None = None
) -> str:
    """What was searched, what was found and how it was measured, to print or to keep with a paper.

    Args:
        result: the run.
        chip: name of the chip.
        run_folder: the run folder as the commands should name it.
        picture: path of the front's picture, as the file should name it.
    """
    config = result.config
    facts = [
        ("network", config["model"]["name"]),
        ("baseline weights", result.baseline.weights),
        ("data", config["data"]["name"]),
        ("chip", chip),
        ("search space", _space(config["space"])),
        ("budget", ", ".join(f"{name} {_number(value)}" for name, value in result.budget.items())),
        ("objectives", ", ".join(result.objectives)),
        ("strategy", f"{config['search']['strategy']}, {len(result.trials)} designs scored"),
        *((name, str(value)) for name, value in notes.seeds(config)),
        ("versions", ", ".join(f"{name} {value}" for name, value in result.versions.items())),
        ("time", ", ".join(f"{name} {duration(value)}" for name, value in result.seconds.items())),
    ]
    parts = [f"# {markdown_text(result.name)}", markdown_text(headline(result)["sentence"])]
    if picture is not None:
        parts.append(f"![Accuracy against cost]({quote(picture)})")
    parts += [
        "## Front",
        markdown_table(result).rstrip(),
        "## Run",
        _table(["", ""], facts),
        "## How each number was measured",
        _table(["number", "how"], notes.measured(result)),
        "## Commands",
        *(
            f"{purpose}:\n\n{markdown_code(command)}"
            for purpose, command in notes.commands(result, run_folder)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def latex_table(result: RunResult, chip: str) -> str:
    r"""The front as a LaTeX ``table`` (needs ``\usepackage{booktabs}``).

    Args:
        result: the run.
        chip: name of the chip, for the caption.
    """
    own = own_objectives(result)
    headings = [
        "design", r"\multicolumn{3}{c}{top-1 (\%)}", "crossbars",
        r"\multicolumn{3}{c}{compression}",
        "latency (ms)", "energy (mJ)", *map(latex_text, own),
    ]  # fmt: skip
    under = ["", "shared", "tuned", "test", "", "total", "shape", "bits", "", ""]
    under += [""] * len(own)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_caption(result, chip)}}}",
        f"  \\label{{tab:{safe_name(result.name)}}}",
        f"  \\begin{{tabular}}{{l{'r' * (9 + len(own))}}}",
        r"    \toprule",
        f"    {' & '.join(headings)} \\\\",
        r"    \cmidrule(lr){2-4}\cmidrule(lr){6-8}",
        f"    {' & '.join(under)} \\\\",
        r"    \midrule",
    ]
    rows = front_rows(result)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        lines.append(f"    {' & '.join(map(latex_text, _cells(row)))} \\\\")
        beyond = after is not None and row.on_front and not after.on_front
        if row.trial is None or beyond:
            lines.append(r"    \midrule")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _cells(row: FrontRow) -> list[str]:
    return [
        "dense, 32 bit" if row.trial is None else row.name,
        percent(row.supernet_top1),
        percent(row.validation_top1),
        percent(row.test_top1),
        f"{row.crossbars:,}",
        f"{row.compression:.1f}×",
        f"{row.shape_compression:.2f}×",
        f"{row.bits_compression:.2f}×",
        millis(row.latency_ns),
        millis(row.energy_nj),
        *(own_text(name, row) for name in row.own),
    ]


def _caption(result: RunResult, chip: str) -> str:
    model, data = result.config["model"]["name"], result.config["data"]["name"]
    budget = ", ".join(f"{name} at most {_number(value)}" for name, value in result.budget.items())
    return (
        latex_text(f"Pareto front of {result.name} ({model} on {data}, chip {chip}; {budget}). ")
        + "Top-1 with shared weights and after fine-tuning on validation images, and after "
        "fine-tuning on test images. Latency and energy of one inference are modelled"
        + latex_text("".join(f"; {name}: {text}" for name, text in own_texts().items()))
        + ". Designs below the second line are not on the front."
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,}"


def _space(space: object) -> str:
    name = space.get("name", "") if isinstance(space, dict) else space
    return Path(str(name)).stem


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [markdown_line(headings), markdown_rule([":---"] * len(headings))]
    return "\n".join([*lines, *map(markdown_line, rows)])
