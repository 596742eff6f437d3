from __future__ import annotations

import base64
import contextlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata

from epim_nas.errors import InputError
from epim_nas.network.spec import Network
from epim_nas.records import RunResult
from epim_nas.report import tensorboard
from epim_nas.report.events import RunEvents, write_run
from epim_nas.report.figures import PNG_SIGNATURE
from epim_nas.report.serve import links
from epim_nas.report.tensorboard import DashboardWriter
from epim_nas.solver.pareto import ReferenceBox, hypervolume_over_trials
from tests.report.helpers import network_cost

FRONTS = {"front/latency_ms", "front/energy_mj", "front/crossbars"}


def writer(folder: Path, result: RunResult, **options: Any) -> DashboardWriter:
    return DashboardWriter(
        folder, result.name, result.objectives, result.budget, result.baseline, **options
    )


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    accumulator.Reload()
    return accumulator


def runs_of(folder: Path) -> set[str]:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return set(multiplexer.Runs())


def hparams_of(folder: Path) -> list[dict[str, Any]]:
    """The hparams of every session start in a run."""
    found = []
    content = read(folder).PluginTagToContent(metadata.PLUGIN_NAME)
    for tag, data in content.items():
        if tag == metadata.SESSION_START_INFO_TAG:
            start = metadata.parse_session_start_info_plugin_data(data)
            found.append(
                {
                    name: value.number_value
                    if value.HasField("number_value")
                    else value.string_value
                    for name, value in start.hparams.items()
                }
            )
    return found


@pytest.fixture(scope="module")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory, result: RunResult, network: Network
) -> Path:
    folder = tmp_path_factory.mktemp("dashboard")
    with writer(folder, result) as board:
        for record in result.trials:
            board.add_trial(record)
        selected = result.trials[result.selected["knee"]]
        board.finish(result, network=network, cost=network_cost(network, selected.design))
    return folder


def test_runs_of_the_dashboard(dashboard: Path, result: RunResult) -> None:
    expected = {f"trials/{t.number:04d}" for t in result.trials}
    expected |= {f"finalists/{f.number:04d}" for f in result.finalists}
    assert runs_of(dashboard) == expected | {"search", "supernet", "result"}


def test_one_hparams_row_per_trial_with_its_numbers(dashboard: Path, result: RunResult) -> None:
    for record in result.trials:
        folder = dashboard / f"trials/{record.number:04d}"
        (row,) = hparams_of(folder)
        assert row["origin"] == record.origin
        assert row["feasible"] == ("yes" if record.feasible else "no")
        assert row["accuracy"] == pytest.approx(record.metrics["accuracy"])
        assert row["latency_ms"] == pytest.approx(record.metrics["latency_ns"] / 1e6)
        choices = record.design.choices.values()
        assert row["epitome_layers"] == sum(c.shape is not None for c in choices)
        assert row["mean_weight_bits"] == pytest.approx(
            sum(c.weight_bits or 32 for c in choices) / len(choices)
        )
        scalars = read(folder)
        (point,) = scalars.Scalars("result/energy_mj")
        assert point.value == pytest.approx(record.metrics["energy_nj"] / 1e6)
        assert point.wall_time == record.finished_at


def test_curves_of_the_search(dashboard: Path, result: RunResult) -> None:
    search = read(dashboard / "search")
    box = ReferenceBox.from_baseline(result.baseline.totals, result.objectives)
    expected = [volume for _, volume in hypervolume_over_trials(result.trials, box)]
    points = search.Scalars("hypervolume/over_trials")
    assert [point.step for point in points] == list(range(1, len(result.trials) + 1))
    assert [point.value for point in points] == pytest.approx(expected)
    last = search.Scalars("hypervolume/over_seconds")[-1]
    first = result.trials[0]
    assert last.step == round(result.trials[-1].finished_at - first.finished_at + first.seconds)
    limit = result.budget["crossbars"]
    for fraction in (1.0, 0.75, 0.5):
        within = [
            t.metrics["accuracy"] for t in result.trials
            if t.feasible and t.metrics["crossbars"] <= fraction * limit
        ]  # fmt: skip
        assert within
        best = search.Scalars(f"best_accuracy/within_{int(fraction * limit)}_crossbars")
        assert best[-1].value == pytest.approx(max(within))
        level = f"within_{int(fraction * limit)}_crossbars"
        timed = search.Scalars(f"best_accuracy_over_seconds/{level}")
        assert timed[-1].value == pytest.approx(max(within))
        assert timed[-1].step == last.step


def test_figures_texts_and_training_curves(dashboard: Path, result: RunResult) -> None:
    grown = read(dashboard / "search")
    assert set(grown.Tags()["images"]) == FRONTS
    for tag in FRONTS:
        assert [image.step for image in grown.Images(tag)] == [25]
    final = read(dashboard / "result")
    assert set(final.Tags()["images"]) == FRONTS | {
        "selected_design/layers", "selected_design/heat_map"
    }  # fmt: skip
    for tag in final.Tags()["images"]:
        (image,) = final.Images(tag)
        assert image.encoded_image_string.startswith(PNG_SIGNATURE)
        assert image.width > 500
    (page,) = final.Tensors("front/text_summary")
    text = page.tensor_proto.string_val[0].decode()
    for number in result.front:
        assert f"trial {number} " in text
    (page,) = final.Tensors("commands/text_summary")
    assert b"epim-nas pareto runs/demo --json" in page.tensor_proto.string_val[0]
    loss = read(dashboard / "supernet").Scalars("training/loss")
    assert [(p.step, pytest.approx(p.value)) for p in loss] == list(result.supernet_curve)
    finalist = result.finalists[0]
    tuned = read(dashboard / f"finalists/{finalist.number:04d}")
    assert len(tuned.Scalars("training/loss")) == len(finalist.curve)
    assert tuned.Scalars("finalist/test_top1")[0].value == pytest.approx(finalist.test_accuracy)


def test_resumed_run_has_nothing_twice(
    tmp_path: Path, make_result: Callable[..., RunResult]
) -> None:
    """Two interrupted attempts and a whole one leave what one uninterrupted run leaves."""
    result = make_result(count=16, finalists=1)
    plain, resumed = tmp_path / "plain", tmp_path / "resumed"
    with writer(plain, result, figure_every=10) as board:
        for record in result.trials:
            board.add_trial(record)
        board.finish(result)
    for begin, count in ((0, 4), (4, 11), (11, len(result.trials))):
        with writer(resumed, result, figure_every=10) as board:
            board.add_stored(result.trials[:begin])
            for record in result.trials[begin:count]:
                board.add_trial(record)
                board.add_trial(record)
            for step, loss in result.supernet_curve[:count]:
                board.add_supernet_loss(step, loss)
            if count == len(result.trials):
                board.finish(result)
    assert runs_of(resumed) == runs_of(plain)
    for run in ("search", "supernet", "result"):
        one, other = read(plain / run), read(resumed / run)
        assert one.Tags() == other.Tags()
        for tag in one.Tags()["scalars"]:
            assert [(p.step, p.value) for p in one.Scalars(tag)] == [
                (p.step, p.value) for p in other.Scalars(tag)
            ]
        for tag in one.Tags()["images"]:
            assert len(one.Images(tag)) == len(other.Images(tag))
    for record in result.trials:
        folder = resumed / f"trials/{record.number:04d}"
        assert len(list(folder.iterdir())) == 1
        assert len(hparams_of(folder)) == 1


def test_a_resume_draws_no_figure_of_what_is_past(
    tmp_path: Path, make_result: Callable[..., RunResult]
) -> None:
    """Hundreds of them would take minutes; only that of the last trial may have been missed."""
    result = make_result(count=20)
    for count, drawn in ((20, [20]), (15, [])):
        folder = tmp_path / str(count)
        with writer(folder, result, figure_every=2) as board:
            board.add_stored(result.trials[:count])
            found = read(folder / "search")
            tags = found.Tags()["images"]
            assert [p.step for tag in tags[:1] for p in found.Images(tag)] == drawn
            for record in result.trials[count:]:
                board.add_trial(record)
        steps = [point.step for point in read(folder / "search").Scalars("hypervolume/over_trials")]
        assert steps == list(range(1, 21))
    assert [p.step for p in read(tmp_path / "15/search").Images("front/crossbars")] == [16, 18, 20]


@given(cut=st.integers(0, 400), flipped=st.none() | st.integers(0, 400))
def test_events_are_found_as_tensorboard_finds_them(cut: int, flipped: int | None) -> None:
    """Where lengths are damaged or the end is torn; checksums of contents are not looked at."""
    with TemporaryDirectory() as folder:
        with RunEvents(folder) as run:
            for step in range(4):
                run.scalar(f"tag/{step % 2}", step, step)
        (path,) = Path(folder).iterdir()
        content = bytearray(path.read_bytes()[: max(30, path.stat().st_size - cut)])
        starts, at = [], 0
        while at + 12 <= len(content):
            starts.append(at)
            at += 16 + int.from_bytes(content[at : at + 8], "little")
        if flipped is not None:
            start = starts[flipped // 12 % len(starts)]
            content[start + flipped % 12] ^= 1 << flipped % 8
        path.write_bytes(content)
        with RunEvents(folder) as run:
            found = {(tag, n) for tag in ("tag/0", "tag/1") for n in range(4) if run.has(tag, n)}
        known = set()
        with contextlib.suppress(Exception):  # a damaged length
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                known |= {(value.tag, event.step) for value in event.summary.value}
        assert found == known


def test_large_study_keeps_the_rows_of_its_front_and_fewer_figures(
    tmp_path: Path, make_result: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and figures cost a reader of the dashboard; hypervolume and front lose nothing."""
    monkeypatch.setattr(tensorboard, "MAX_ROWS", 20)
    monkeypatch.setattr(tensorboard, "DENSE_FIGURES", 5)
    result = make_result(count=100)
    with writer(tmp_path, result, figure_every=2) as board:
        for record in result.trials:
            board.add_trial(record)
    search = read(tmp_path / "search")
    volumes = [point.value for point in search.Scalars("hypervolume/over_trials")]
    grew = [n for n in range(20, 100) if volumes[n] > volumes[n - 1]]
    rows = {int(folder.name) for folder in (tmp_path / "trials").iterdir()}
    assert rows == {*range(20), *grew}
    assert set(result.front) <= rows
    assert len(rows) < 100
    steps = [image.step for image in search.Images("front/crossbars")]
    assert steps == [*range(2, 20, 2), *range(20, 40, 4), *range(40, 80, 8), *range(80, 101, 16)]


def test_half_written_record_does_not_stop_a_resume(tmp_path: Path) -> None:
    with RunEvents(tmp_path) as run:
        for step in range(5):
            run.scalar("loss", 1.0 / (step + 1), step)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    with RunEvents(tmp_path) as run:
        assert run.has("loss", 3)
        assert not run.has("loss", 4)
        assert not run.scalar("loss", 0.25, 3)
        assert run.scalar("loss", 0.2, 4)
    assert [point.step for point in read(tmp_path).Scalars("loss")] == [0, 1, 2, 3, 4]


def test_interrupted_write_leaves_no_event_file(tmp_path: Path) -> None:
    def failing() -> Any:
        yield from ()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_run(tmp_path / "trials/0001", failing())
    assert list((tmp_path / "trials/0001").iterdir()) == []


def test_without_matplotlib_one_warning_and_no_figures(
    tmp_path: Path, result: RunResult, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING), writer(tmp_path, result, figure_every=5) as board:
        board.finish(result)
    assert [record.name for record in caplog.records] == ["epim_nas.report.tensorboard"]
    assert "pip install 'epim_nas[plot]'" in caplog.text
    assert read(tmp_path / "result").Tags()["images"] == []
    assert len(read(tmp_path / "search").Scalars("hypervolume/over_trials")) == len(result.trials)


def test_baseline_without_a_cost_is_refused(tmp_path: Path, result: RunResult) -> None:
    with pytest.raises(InputError, match=r"baseline\.totals\.area_um2"):
        DashboardWriter(tmp_path, "x", ("accuracy", "area_um2"), {}, result.baseline)


def test_addresses_select_what_their_pages_need(dashboard: Path, result: RunResult) -> None:
    """TensorBoard selects nothing by itself where there are many runs."""
    found = links(dashboard, "127.0.0.1", 6006)
    pages = {address.partition("#")[2].partition("&")[0] for address in found.values()}
    assert pages == {"images", "custom_scalars", "text", "hparams"}
    for address in found.values():
        assert address.startswith("http://127.0.0.1:6006/#")
        state = address.partition("runSelectionState=")[2]
        assert not set(state) & set("=+/&")
        if state:
            selected = json.loads(base64.b64decode(state))
            assert {"search", "result", "supernet"} <= set(selected)
            assert {run for run in selected if run.startswith("finalists/")}
            assert not {run for run in selected if run.startswith("trials")}
            assert set(selected.values()) == {True}
    assert links(dashboard, "::1", 1)["curves"].startswith("http://[::1]:1/#")
