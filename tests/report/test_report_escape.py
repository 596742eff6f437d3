"""Names from outside in every format: they show as they are, and nothing more."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import markdown
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epim_nas import load_chip
from epim_nas.hardware.chip import Chip
from epim_nas.network.spec import Network
from epim_nas.records import RunResult
from epim_nas.report import notes
from epim_nas.report.escape import (
    figure_text,
    latex_text,
    markdown_code,
    markdown_text,
    one_line,
)
from epim_nas.report.figures import heat_map_figure, layers_figure, png_bytes
from epim_nas.report.html import render_report
from epim_nas.report.layers import layer_rows
from epim_nas.report.summary import latex_table, markdown_summary
from epim_nas.report.tables import markdown_line, markdown_rule

NASTY = (
    "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://a/b.png)", "a | b",
    "`code`", "**bold** _it_ __x__", "a\n\n# heading", "# heading", "- item", "1. item", "+ x",
    "&lt;", "$x$ and $y$", "~~gone~~", "http://example.org", "\\", "a\\|b", "\\input{/etc/passwd}",
    "100 %", "~^{}_#", "{{ 7 * 7 }}", "</script>", "$\\frac{1}$", "a_b", "layer1.0.conv1",
)  # fmt: skip

visible = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=40)


def rendered(text: str) -> str:
    return markdown.markdown(text, extensions=["tables", "fenced_code"])


def nasty(check):  # type: ignore[no-untyped-def]
    for text in NASTY:
        check = example(text)(check)
    return check


@nasty
@given(visible)
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    shown = rendered(f"start {markdown_text(text)} end")
    assert set(re.findall(r"<[^>]*>", shown)) == {"<p>", "</p>"}
    plain = html.unescape(re.sub("</?p>", "", shown))
    assert plain.split() == ["start", *one_line(text).split(), "end"]


@nasty
@given(visible)
def test_a_name_stays_in_its_cell(text: str) -> None:
    lines = [markdown_line(["a", "b"]), markdown_rule(["---", "---"]), markdown_line([text, "2"])]
    shown = rendered("\n".join(lines))
    assert shown.count("<td>") == 2
    assert set(re.findall(r"</?(\w+)", shown)) == {
        "table", "thead", "tbody", "tr", "th", "td"
    }  # fmt: skip
    cell = html.unescape(re.findall(r"<td>(.*?)</td>", shown, flags=re.S)[0])
    assert cell.split() == one_line(text).split()


@nasty
@given(visible)
def test_a_heading_and_a_block_of_code_hold_any_text(text: str) -> None:
    assert rendered(f"# {markdown_text(text)}").count("<h") == 1
    shown = rendered(f"before\n\n{markdown_code(text)}\n\nafter")
    assert set(re.findall(r"</?(\w+)", shown)) <= {"p", "pre", "code"}


@nasty
@given(visible)
def test_latex_has_no_command_but_ours(text: str) -> None:
    escaped = latex_text(text)
    assert "\n" not in escaped
    ours = r"\\text(backslash|asciitilde|asciicircum)\{\}|\\[&%$#_{}]|\$\\times\$"
    assert not re.search(r"[\\&%$#_{}~^]", re.sub(ours, "", escaped))


def test_figures_draw_any_name(result: RunResult, network: Network) -> None:
    row = layer_rows(result.trials[0].design, network)[0]
    named = [replace(row, name=text) for text in NASTY]
    for draw in (layers_figure, heat_map_figure):
        png_bytes(draw(named, "$\\frac{1}$"))
    assert figure_text("$x$") == r"\$x\$"


@pytest.mark.parametrize("text", [" ".join(NASTY), *NASTY[:3], "a\n\n# heading", "</script>"])
def test_no_page_takes_a_name_for_markup(text: str, result: RunResult, network: Network) -> None:
    groups = {"data": {"name": "d"}, "space": "s", "search": {"strategy": "epitome"}}
    config = {"seed": 7, **groups, "model": {"name": "m"}}
    plain = markdown_summary(replace(result, config=config), "chip", "runs/x", "x.png")
    config["model"] = {"name": text}
    run = replace(result, config=config, baseline=replace(result.baseline, weights=text))
    summary = markdown_summary(run, text, run_folder=f"runs/{text}", picture=f"{text}.png")
    assert re.findall(r"</?(\w+)", rendered(summary)) == re.findall(r"</?(\w+)", rendered(plain))
    page = render_report(run, network=network)
    assert "<script>alert" not in page
    assert page.count("</script>") == render_report(result, network=network).count("</script>")
    table = latex_table(replace(run, name=text), text)
    assert "\\input{" not in table
    assert table.count("\\begin{") == 2
    page = notes.chip_page(chip_called(text))
    assert set(re.findall(r"</?(\w+)", rendered(page))) == {"p", "strong", "pre", "code"}


def chip_called(name: str) -> Chip:
    return load_chip("xbar_64").model_copy(update={"name": name})
