from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from epim_nas.errors import InputError
from epim_nas.files import write_text
from epim_nas.network.spec import Network
from epim_nas.records import RunResult
from epim_nas.report.html import render_report
from tests.report.helpers import network_cost


class Page(HTMLParser):
    """Collects what a browser would load, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.trials: list[int] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.data = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [values[key] or "" for key in ("src", "href", "srcset") if key in values]
        if "data-trial" in values:
            self.trials.append(int(values["data-trial"] or -1))
        if tag in ("script", "style"):
            self._inside = "data" if values.get("id") == "report-data" else tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.texts.append(data)


@pytest.fixture(scope="module")
def page(result: RunResult, network: Network) -> Page:
    costs = {number: network_cost(network, result.trials[number].design) for number in result.front}
    return Page(render_report(result, costs=costs, network=network))


def test_page_is_self_contained(page: Page) -> None:
    assert page.links == []
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    assert any("plotly.js v" in script for script in page.scripts)


def test_page_shows_the_front_with_its_numbers(page: Page, result: RunResult) -> None:
    assert page.trials == list(result.front)
    text = " ".join(page.texts)
    assert f"{100 * result.baseline.test_accuracy:.2f}" in text
    for number in result.front:
        assert f"trial {number}" in text
        assert f"{100 * result.trials[number].metrics['accuracy']:.2f}" in text
    for word in ("epim-nas finetune", "sampler_seed", "torch", "2.6.0", "How each number"):
        assert word in text


def test_data_of_the_charts(page: Page, result: RunResult, network: Network) -> None:
    data: dict[str, Any] = json.loads(page.data)
    by_number = {design["trial"]: design for design in data["designs"]}
    assert set(by_number) == {trial.number for trial in result.trials}
    for trial in result.trials:
        design = by_number[trial.number]
        assert design["top1"] == trial.metrics["accuracy"]
        assert design["feasible"] == trial.feasible
        assert design["front"] == (trial.number in result.front)
        rows = [data["rows"][index] for index in design["layers"]]
        assert [row["name"] for row in rows] == [layer.name for layer in network.weighted]
        for row, choice in zip(rows, trial.design.choices.values(), strict=True):
            assert row["bars"][1] == choice.weight_bits
            assert len(row["cells"]) == len(data["columns"])
    knee = by_number[data["selected"]]
    assert data["selected"] == result.selected["knee"]
    crossbars = sum(data["rows"][index]["bars"][2] for index in knee["layers"])
    assert crossbars == knee["crossbars"]
    assert len(data["hypervolume"]) == len(result.trials)
    assert len(data["curves"]) == 1 + len(result.finalists)


def test_hostile_names_stay_text(result: RunResult) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    bad = replace(
        result,
        name=hostile,
        config={"seed": hostile, hostile: hostile},
        versions={hostile: hostile},
        baseline=replace(result.baseline, weights=hostile),
    )
    page = Page(render_report(bad))
    assert "img" not in page.tags
    assert len(page.scripts) == len(Page(render_report(result)).scripts)
    assert json.loads(page.data)["name"] == hostile


def test_unmeasured_numbers_do_not_break_the_page(result: RunResult) -> None:
    last = result.trials[-1]
    broken = replace(last, feasible=False, metrics={**last.metrics, "latency_ns": math.nan})
    run = replace(result, trials=(*result.trials[:-1], broken))
    data = json.loads(Page(render_report(run)).data)
    assert data["designs"][-1]["latency_ns"] is None


def test_page_of_an_interrupted_run_without_a_front(make_result: Callable[..., RunResult]) -> None:
    page = Page(render_report(make_result(count=4, budget=1)))
    assert page.trials == []
    assert "No design of 4 trials keeps the budget." in " ".join(page.texts)


def test_write_report_replaces_the_file(result: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_text(path, render_report(result))
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_missing_plotly_says_what_to_install(
    result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"pip install 'epim_nas\[plot\]'"):
        render_report(result)
