from __future__ import annotations

import re
from dataclasses import replace

import pytest

from epim_nas.records import Finalist, RunResult
from epim_nas.report import notes
from epim_nas.report.escape import latex_text
from epim_nas.report.summary import latex_table, markdown_summary
from epim_nas.report.tables import front_rows

CONFIG = {
    "seed": 7,
    "model": {"name": "resnet20"},
    "data": {"name": "images_50%"},
    "space": {"name": "small"},
    "search": {"strategy": "epitome", "seeds": 4},
}


@pytest.fixture
def run(result: RunResult) -> RunResult:
    return replace(result, config=CONFIG)


def test_markdown_has_the_front_the_run_and_how_to_repeat_it(run: RunResult) -> None:
    text = markdown_summary(run, "my_chip", "runs/demo", "front.png")
    for number in run.front:
        assert f"| trial {number} |" in text
    for fact in ("| chip | my_chip |", "| seed | 7 |", "| search space | small |", "torch 2.6.0",
                 "| budget | crossbars 28 |", "![Accuracy against cost](front.png)",
                 "\n    epim-nas pareto runs/demo --json\n"):  # fmt: skip
        assert fact in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
    assert "front.png" not in markdown_summary(run, "my_chip")


def test_latex_has_a_line_a_design_and_as_many_cells_as_columns(run: RunResult) -> None:
    text = latex_table(run, "my_chip")
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 2 + len(front_rows(run))
    for line in body:
        spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
        assert line.count("&") - line.count(r"\&") + 1 + spanned == len(columns)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert r"images\_50\%" in text  # a name from outside does not break the table


def test_signs_of_latex_are_escaped() -> None:
    assert latex_text("a_b & 5% #1 {x} ~ ^ \\") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_designs_off_the_front_stand_apart(run: RunResult) -> None:
    off = next(t for t in run.trials if t.number not in run.front)
    extra = Finalist(off.number, off.design, off.metrics, 100, 0.9, 0.9, ())
    lines = latex_table(replace(run, finalists=(*run.finalists, extra)), "c").splitlines()
    last = next(
        n for n, line in enumerate(lines) if line.strip().startswith(f"trial {off.number} ")
    )
    assert lines[last - 1].strip() == r"\midrule"
    assert latex_table(run, "c").count(r"\midrule") == 2  # below the headings, and the baseline


def test_numbers_of_budgets_keep_their_digits(run: RunResult) -> None:
    text = markdown_summary(replace(run, budget={"energy_nj": 1234567.0, "area_um2": 0.25}), "c")
    assert "energy_nj 1,234,567, area_um2 0.25" in text


def test_commands_without_a_design_to_go_on_with(run: RunResult) -> None:
    empty = replace(run, front=(), selected={}, finalists=())
    typed = [command for _, command in notes.commands(empty, "a folder")]
    assert typed[0] == "epim-nas search 'a folder/run.yaml' --out 'a folder'-again"
    assert not any("export" in command or "finetune" in command for command in typed)
