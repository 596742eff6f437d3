from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from epim_nas import Choice, CostModel, Design, EpitomeShape, LayerSpec, load_chip
from epim_nas.network.spec import Network
from epim_nas.records import RunResult
from epim_nas.report.layers import layer_rows
from epim_nas.report.notes import commands, measured, seeds
from epim_nas.report.tables import front_rows, markdown_table, rich_table, write_front_csv
from tests.report.helpers import network_cost


def test_rows_are_baseline_front_and_other_finalists(result: RunResult) -> None:
    outside = next(t for t in result.trials if t.feasible and t.number not in result.front)
    extra = replace(result.finalists[0], number=outside.number, metrics=outside.metrics)
    rows = front_rows(replace(result, finalists=(*result.finalists, extra)))
    assert [row.trial for row in rows] == [None, *result.front, outside.number]
    assert [row.on_front for row in rows] == [False, *[True] * len(result.front), False]
    assert rows[0].crossbars == result.baseline.totals["crossbars"]
    tuned = {f.number: f for f in result.finalists}
    for row in rows[1:-1]:
        record = result.trials[row.trial or 0]
        assert row.supernet_top1 == record.metrics["accuracy"]
        assert row.shape_compression * row.bits_compression == pytest.approx(row.compression)
        assert row.test_top1 == (
            tuned[record.number].test_accuracy if record.number in tuned else None
        )


def test_selected_designs_are_marked(result: RunResult) -> None:
    for row in front_rows(result):
        expected = {name for name, number in result.selected.items() if number == row.trial}
        assert set(row.selected.split()) == expected


def test_csv_reads_back_exactly(result: RunResult, tmp_path: Path) -> None:
    write_front_csv(result, tmp_path / "front.csv")
    with open(tmp_path / "front.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = front_rows(result)
    assert len(lines) == len(rows) == len(result.front) + 1
    for line, row in zip(lines, rows, strict=True):
        assert line["name"] == row.name
        assert float(line["latency_ns"]) == row.latency_ns
        assert float(line["compression"]) == row.compression
        assert line["supernet_top1"] == (
            "" if row.supernet_top1 is None else repr(row.supernet_top1)
        )
    assert not list(tmp_path.glob(".front*"))


def test_terminal_table_shows_every_design_whole_in_80_columns(result: RunResult) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(result))
    text = console.export_text()
    firsts = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert "dense" in firsts
    for number in result.front:
        assert str(number) in firsts
    assert f"{100 * result.finalists[0].test_accuracy:.2f}" in text
    assert "…" not in text


def test_markdown_has_one_line_a_design_and_equal_columns(result: RunResult) -> None:
    lines = markdown_table(result).strip().splitlines()
    assert len(lines) == 2 + 1 + len(result.front)
    assert len({line.count("|") for line in lines}) == 1


def test_table_of_an_empty_front(make_result: Callable[..., RunResult]) -> None:
    empty = make_result(count=5, budget=1)
    assert empty.front == ()
    assert [row.name for row in front_rows(empty)] == ["baseline"]
    assert "baseline" in markdown_table(empty)


def test_layer_rows_agree_with_design_and_cost(result: RunResult, network: Network) -> None:
    design = result.trials[result.selected["knee"]].design
    cost = network_cost(network, design)
    rows = layer_rows(design, network, cost)
    assert [row.name for row in rows] == [layer.name for layer in network.weighted]
    assert sum(row.crossbars or 0 for row in rows) == sum(layer.crossbars for layer in cost.layers)
    for row, spec in zip(rows, network.weighted, strict=True):
        assert row.weight_shape == spec.weight_shape
        outs, ins, height, width = row.epitome_shape or spec.weight_shape
        assert (row.rows, row.columns) == (ins * height * width, outs)
        weights = spec.weight_shape[0] * spec.weight_shape[1] * spec.kernel[0] * spec.kernel[1]
        assert row.size_fraction == pytest.approx(outs * ins * height * width / weights)


def test_a_grouped_layer_kept_dense_has_the_rows_and_rounds_that_it_is_charged_for() -> None:
    layer = LayerSpec("g", "conv", ("input",), 32, 64, (8, 8), (8, 8), (3, 3), groups=8)
    network = Network("net", (layer,), (32, 8, 8))
    model = CostModel(network, load_chip("xbar_64"))
    for shape, rows, rounds in ((None, 32 * 9, 1), (EpitomeShape.dense(layer.weight_shape), 36, 8)):
        design = Design("net", {"g": Choice(shape, weight_bits=3)})
        (mapping,) = (found.mapping for found in model.evaluate(design).layers)
        (row,) = layer_rows(design, network, model.evaluate(design))
        assert (row.rows, row.columns, row.rounds, row.size_fraction) == (rows, 64, rounds, 1)
        assert row.rounds == mapping.rounds
        # A crossbar of 64 rows holds 7 channels of 9.
        assert mapping.row_groups == -(-rows // 63)


def test_layer_rows_without_network_or_cost(result: RunResult) -> None:
    rows = layer_rows(result.trials[0].design)
    assert [row.name for row in rows] == list(result.trials[0].design)
    assert all(row.crossbars is None and row.size_fraction is None for row in rows)


def test_seeds_are_found_at_every_depth() -> None:
    config = {"seed": 1, "search": {"sampler_seed": 2, "trials": 3}, "seeds": 9}
    assert seeds(config) == [("seed", 1), ("search.sampler_seed", 2)]


def test_commands_quote_the_folder(result: RunResult) -> None:
    typed = dict(commands(result, "my runs/a"))
    assert typed["print the front"] == "epim-nas pareto 'my runs/a' --json"
    assert "--select knee --to all" in typed["export the selected design"]
    untuned = dict(commands(replace(result, finalists=())))
    assert "--select knee --to design" in untuned["export the selected design"]


def test_how_the_weights_of_the_baseline_were_found_comes_last(result: RunResult) -> None:
    *_, (name, text) = measured(result)
    assert (name, text) == ("baseline weights", "trained for 10 epochs")
