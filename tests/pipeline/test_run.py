"""A whole run of a tiny network on real images, through the real command."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from epim_nas import InputError, trained_model
from epim_nas.cli.app import run_command
from epim_nas.epitome.design import load_design
from epim_nas.export.datapath import read_datapath
from epim_nas.export.manifest import verify_manifest
from epim_nas.hardware import CostModel, load_chip
from epim_nas.hardware.mapping import mapped_plan
from epim_nas.models.weights import read_state, save_weights
from epim_nas.network.yaml_io import load_network
from epim_nas.pipeline.export import export_trial
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import load_result
from tests.pipeline import command
from tests.pipeline.tiny import tiny_run

TRIALS = tiny_run()["search"]["trials"]
XBAR_64 = load_chip("xbar_64")


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What a command prints with ``--json``, in this process."""
    capsys.readouterr()
    code = run_command([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def budget_of(run: Path) -> int:
    return json.loads((run / "budget.json").read_text())["crossbars"]


def brute_force_front(run: Path) -> dict[int, list[float]]:
    """Number -> values of the trials that no other dominates; of equals only the first."""
    trials = command.trials_of(run)
    # Optuna's directions: accuracy up, costs down.
    points = {trial.number: [-trial.values[0], *trial.values[1:]] for trial in trials}

    def beaten(number: int, point: list[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, point, strict=True))
            and (other != point or rival < number)
            for rival, other in points.items()
            if rival != number
        )

    return {
        number: list(trials[number].values)
        for number, point in points.items()
        if not beaten(number, point)
    }


def test_run_writes_every_file_of_the_contract(finished: Path) -> None:
    for name in (
        "run.yaml", "study.journal", "front.csv", "best.yaml", "report.html", "log.txt",
        "network.yaml", "chip.yaml", "checkpoints/baseline.safetensors",
    ):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "designs").glob("*.yaml"))
    assert list((finished / "checkpoints").glob("alignment-*/*.npz"))
    assert not list(finished.rglob(".*.yaml")), "temporary files are left"


def test_output_ends_with_the_front_and_the_next_commands(finished: Path) -> None:
    stdout = finished.with_name("run.stdout").read_text()
    stderr = finished.with_name("run.stderr").read_text()
    assert "Pareto front of tiny" in stdout
    for typed in ("epim-nas dashboard", "epim-nas pareto", "epim-nas export", "epim-nas finetune"):
        assert typed in stdout
    assert "Projection" in stderr, "wide networks take minutes"
    assert "Fashion-MNIST subset" in stderr, "the run has to say that it uses the subset"
    assert "Traceback" not in stderr


def test_journal_opens_with_stock_optuna(finished: Path) -> None:
    trials = command.trials_of(finished)
    assert len(trials) == TRIALS
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    seeds = tiny_run()["search"]["seeds"]
    origins = [trial.user_attrs["origin"] for trial in trials]
    assert origins == sorted(origins, key=lambda origin: origin != "seed")
    assert 1 <= origins.count("seed") <= seeds


def test_every_trial_is_new_and_keeps_the_budget(finished: Path) -> None:
    trials = command.trials_of(finished)
    designs = {tuple(sorted(trial.params.items())) for trial in trials}
    assert len(designs) == TRIALS
    for trial in trials:
        assert trial.user_attrs["metrics"]["crossbars"] <= budget_of(finished)
        assert all(value <= 0 for value in trial.constraints.values())


def test_budget_is_the_compression_that_was_asked_for(finished: Path) -> None:
    baseline = json.loads((finished / "baseline.json").read_text())
    dense = baseline["totals"]["crossbars"]
    assert budget_of(finished) == int(dense / tiny_run()["budget"]["compression"])


def test_front_csv_is_the_brute_force_front(finished: Path) -> None:
    with open(finished / "front.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["on_front"] == "true"]
    shown = {
        int(row["trial"]): [float(row[c]) for c in ("supernet_top1", "latency_ns", "energy_nj")]
        for row in rows
    }
    assert shown == brute_force_front(finished)
    accuracies = [float(row["supernet_top1"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


def test_pareto_json_prints_the_same_front_and_nothing_else(finished: Path) -> None:
    data = command.run_json("pareto", finished)
    shown = {
        entry["trial"]: [entry["metrics"][name] for name in data["objectives"]]
        for entry in data["designs"]
    }
    assert shown == brute_force_front(finished)
    assert data["trials"] == TRIALS
    assert data["budget"]["crossbars"] == budget_of(finished)


def test_pareto_changes_nothing_in_the_folder(finished: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in finished.rglob("*")
            if path.is_file()
        }

    before = state()
    assert run_command(["pareto", str(finished)]) == 0
    assert state() == before


def test_designs_load_and_fit_and_are_the_trials(finished: Path) -> None:
    network = load_network(finished / "network.yaml")
    trials = command.trials_of(finished)
    files = sorted((finished / "designs").glob("*.yaml"))
    numbers = set()
    for path in [*files, finished / "best.yaml"]:
        design = load_design(path)
        design.check_fits(network, str(path))
        trial = trials[design.provenance["trial"]]
        assert {n: str(c) for n, c in design.choices.items()} == trial.user_attrs["design"]
        assert design.totals["crossbars"] == trial.user_attrs["metrics"]["crossbars"]
        assert design.provenance["seed"] == tiny_run()["seed"]
        if path.name != "best.yaml":
            numbers.add(design.provenance["trial"])
    assert numbers >= set(brute_force_front(finished))


def test_some_design_uses_epitomes(finished: Path) -> None:
    # Otherwise the run would exercise quantization alone.
    metrics = [trial.user_attrs["metrics"] for trial in command.trials_of(finished)]
    assert any(trial["shape_compression"] > 1.2 for trial in metrics)
    for trial in metrics:
        parts = trial["shape_compression"] * trial["bits_compression"]
        assert parts == pytest.approx(trial["compression"])


def test_costs_in_the_journal_are_those_of_the_cost_command(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--network", finished / "network.yaml", "--hardware", finished / "chip.yaml")
    trials = command.trials_of(finished)
    for path in sorted((finished / "designs").glob("*.yaml")):
        metrics = trials[load_design(path).provenance["trial"]].user_attrs["metrics"]
        totals = answer(capsys, "cost", *arguments, "--design", path)["totals"]
        for name, value in totals.items():
            assert metrics[name] == pytest.approx(value, rel=1e-12), name
    dense = answer(capsys, "cost", *arguments, "--weight-bits", 32)["totals"]
    baseline = json.loads((finished / "baseline.json").read_text())["totals"]
    assert {name: baseline[name] for name in dense} == pytest.approx(dense)
    assert baseline["edp_nj_ns"] == baseline["energy_nj"] * baseline["latency_ns"]


def test_best_is_the_best_finalist(finished: Path) -> None:
    finalists = [json.loads(path.read_text()) for path in (finished / "finalists").glob("*.json")]
    assert len(finalists) == tiny_run()["finalists"]["count"]
    highest = max(finalist["validation_accuracy"] for finalist in finalists)
    design = load_design(finished / "best.yaml")
    best = next(f for f in finalists if f["trial"] == design.provenance["trial"])
    assert best["validation_images"] == 400
    error = math.sqrt(highest * (1 - highest) / 400)
    assert best["validation_accuracy"] >= highest - error
    assert design.provenance["metrics"]["test_top1"] == best["test_accuracy"]
    assert not list((finished / "finalists").glob("*.state")), "training states are left"


def test_tensorboard_has_one_hparams_row_a_trial(finished: Path) -> None:
    rows = 0
    for run in sorted((finished / "tensorboard" / "trials").iterdir()):
        events = EventAccumulator(str(run)).Reload()
        content = events.PluginTagToContent(metadata.PLUGIN_NAME)
        rows += list(content).count(metadata.SESSION_START_INFO_TAG)
    assert rows == TRIALS
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(finished / "tensorboard"))
    multiplexer.Reload()
    assert {"search", "supernet", "result"} <= set(multiplexer.Runs())
    volumes = [event.value for event in multiplexer.Scalars("search", "hypervolume/over_trials")]
    assert len(volumes) == TRIALS
    assert volumes == sorted(volumes)
    assert volumes[-1] > 0


def test_report_needs_nothing_from_elsewhere(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    sources = re.findall(r'<(?:script|link|img|iframe)[^>]*\s(?:src|href)="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources), sources
    best = load_design(finished / "best.yaml")
    assert f"trial {best.provenance['trial']}" in page


def test_stored_run_file_is_resolved(finished: Path) -> None:
    stored = yaml.safe_load((finished / "run.yaml").read_text())
    assert stored["search"]["strategy"] == "epitome"  # a default, written out
    assert stored["search"]["trials"] == TRIALS


@pytest.mark.parametrize("selection", ["knee", "best-accuracy", "best-latency", "best-energy"])
def test_export_of_a_design(finished: Path, tmp_path: Path, selection: str) -> None:
    assert run_command(
        ["export", str(finished), "--select", selection, "--out", str(tmp_path)]
    ) == 0  # fmt: skip
    front = brute_force_front(finished)
    column = {"best-latency": 1, "best-energy": 2}.get(selection)
    chosen = load_design(tmp_path / "design.yaml").provenance["trial"]
    if selection == "best-accuracy":  # what was fine-tuned is judged by that
        assert chosen == load_design(finished / "best.yaml").provenance["trial"]
    else:
        assert chosen in front
    if column is not None:
        assert front[chosen][column] == min(values[column] for values in front.values())
    manifest = verify_manifest(tmp_path)
    assert set(manifest.files) == {"design.yaml", "layers.csv"}


def test_exported_weights_reproduce_the_stored_accuracy(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finalists = [json.loads(path.read_text()) for path in (finished / "finalists").glob("*.json")]
    for finalist in finalists:
        out = tmp_path / str(finalist["trial"])
        capsys.readouterr()
        arguments = ["export", str(finished), "--select", str(finalist["trial"])]
        assert run_command([*arguments, "--to", "all", "--out", str(out)]) == 0
        printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert [str(path.relative_to(out)) for path in printed] == [
            "design.yaml", "layers.csv", "epitomes.safetensors", "network.onnx",
            "network_epitomes.onnx", "mnsim_network.py", "datapath/datapath.json",
            "manifest.json",
        ]  # fmt: skip
        files = verify_manifest(out).files
        assert set(files) >= {str(path.relative_to(out)) for path in printed[:-1]}
        assert set(answer(capsys, "verify", out)["checks"]) == {
            "digests", "design", "weights", "datapath", "network.onnx", "network_epitomes.onnx",
            "mnsim_network.py",
        }  # fmt: skip
        score = answer(
            capsys, "evaluate", out / "design.yaml", "--run", finished / "run.yaml",
            "--weights", out / "epitomes.safetensors",
        )  # fmt: skip
        assert score["accuracy"] == finalist["test_accuracy"]
        assert score["images"] == 2000
        assert score["crossbars"] <= budget_of(finished)


def test_parts_of_another_training_do_not_pass(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = load_design(finished / "best.yaml").provenance["trial"]
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    arguments = ["export", str(finished), "--select", str(best), "--out", str(out), "--to"]
    assert run_command([*arguments, "all"]) == 0
    state = read_state(out / "epitomes.safetensors")
    name = next(name for name in state if name.endswith(".epitome"))
    save_weights({**state, name: 0.99 * state[name]}, other)
    assert run_command([*arguments, "weights", "--weights", str(other)]) == 0
    capsys.readouterr()
    assert run_command(["verify", str(out)]) == 2
    message = capsys.readouterr().err
    assert "is of other weights" in message
    assert "epitomes.safetensors" in message
    # All parts of the other training agree again.
    assert run_command([*arguments, "all", "--weights", str(other)]) == 0
    assert run_command(["verify", str(out)]) == 0


def test_export_of_weights_alone(finished: Path, tmp_path: Path) -> None:
    best = load_design(finished / "best.yaml").provenance["trial"]
    assert run_command(
        ["export", str(finished), "--select", str(best), "--to", "weights", "--out", str(tmp_path)]
    ) == 0  # fmt: skip
    assert set(verify_manifest(tmp_path).files) == {"epitomes.safetensors"}
    state = read_state(tmp_path / "epitomes.safetensors")
    design = load_design(finished / "best.yaml")
    for name, choice in design.choices.items():
        if choice.shape is not None:
            assert tuple(state[f"{name}.epitome"].shape) == choice.shape.as_tuple
            # Aligned: without its order the epitome would be of no use.
            assert {f"{name}.out_order", f"{name}.in_order"} & set(state)
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


@pytest.mark.parametrize("tuned", [True, False])
def test_export_of_the_datapath(finished: Path, tmp_path: Path, tuned: bool) -> None:
    finalists = {
        json.loads(path.read_text())["trial"] for path in finished.glob("finalists/*.json")
    }
    trial = min(finalists if tuned else {*range(TRIALS)} - finalists)
    for what in ("design", "datapath"):
        arguments = ["export", str(finished), "--select", str(trial), "--to", what]
        assert run_command([*arguments, "--out", str(tmp_path)]) == 0
    design = load_design(tmp_path / "design.yaml")
    index, layers = read_datapath(tmp_path / "datapath", design)
    assert list(layers) == list(design.choices)
    network = load_network(finished / "network.yaml")
    state = {}
    if tuned:
        state = read_state(finished / "finalists" / f"trial-{trial:04d}.safetensors")
        assert any(name.endswith(".in_order") for name in state)
    for layer in network.weighted:
        orders = [state.get(f"{layer.name}.{name}") for name in ("out_order", "in_order")]
        plan = mapped_plan(layer, design[layer.name], XBAR_64).reordered(
            *(None if order is None else order.tolist() for order in orders)
        )
        layers[layer.name].check_plan(plan)
    assert all((info.cells is not None) == tuned for info in index.layers)
    cells = list(tmp_path.glob("datapath/*/tile*/pe*.hex"))
    crossbars = CostModel(network, XBAR_64).evaluate(design).totals.crossbars
    assert len(cells) == (2 * crossbars if tuned else 0)
    assert {path.relative_to(tmp_path).as_posix() for path in cells} <= set(
        verify_manifest(tmp_path).files
    )


def test_finetune_and_evaluate_its_weights(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design, run = finished / "best.yaml", finished / "run.yaml"
    # An epoch of the 500 images is 15 steps.
    tuned = answer(
        capsys, "finetune", design, "--run", run, "--epochs", 1, "--out", tmp_path / "tuned"
    )
    assert tuned["epochs"] == 1
    score = answer(capsys, "evaluate", design, "--run", run, "--weights", tuned["weights"])
    assert score["accuracy"] == tuned["test_accuracy"]
    validation = answer(
        capsys, "evaluate", design, "--run", run,
        "--weights", tuned["weights"], "--split", "validation",
    )  # fmt: skip
    assert validation["accuracy"] == tuned["validation_accuracy"]
    projected = answer(capsys, "evaluate", design, "--run", run, "--split", "validation")
    assert projected["weights"] == "projected"
    assert projected["accuracy"] == tuned["before"]
    losses = {}
    for change in ("align=true", "align=false", "outputs=64"):
        losses[change] = answer(
            capsys, "evaluate", design, "--run", run, "--split", "validation",
            "--set", f"projection.{change}",
        )["loss"]  # fmt: skip
    assert losses["align=true"] == projected["loss"]
    assert len(set(losses.values())) == 3


def test_weights_that_do_not_fit_the_network_are_named(finished: Path, tmp_path: Path) -> None:
    trial = load_design(finished / "best.yaml").provenance["trial"]
    weights = finished / "finalists" / f"trial-{trial:04d}.safetensors"
    state = read_state(weights)
    norm = next(name for name in state if name.endswith("running_mean"))
    for changed in (
        {name: value for name, value in state.items() if name != norm},
        {**state, norm: torch.zeros(1)},
        {**state, "other.weight": torch.zeros(1)},
    ):
        save_file(
            {name: value.contiguous() for name, value in changed.items()},
            tmp_path / "w.safetensors",
        )
        with pytest.raises(InputError, match="--weights: the tensors are not the model's"):
            export_trial(
                RunFolder(finished),
                str(trial),
                "weights",
                tmp_path / "out",
                tmp_path / "w.safetensors",
            )
        assert not (tmp_path / "out" / "epitomes.safetensors").exists()


def test_a_damaged_finalist_is_named(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    trial = load_design(folder / "best.yaml").provenance["trial"]
    (folder / "finalists" / f"trial-{trial:04d}.safetensors").write_bytes(b"xx")
    with pytest.raises(InputError, match="damaged"):
        trained_model(folder, trial)
    with pytest.raises(InputError, match="which: there is no finished trial 999"):
        trained_model(folder, 999)
    (folder / "finalists" / f"trial-{trial:04d}.json").write_text('{"trial": 1}')
    with pytest.raises(InputError, match=r"trial-\d+\.json: is damaged"):
        load_result(RunFolder(folder))


def test_tensorboard_ends_with_its_command(finished: Path) -> None:
    process = command.start("dashboard", finished, "--port", 0)
    children: list[str] = []
    try:
        deadline = time.monotonic() + 60
        while not children:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
            found = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            )
            children = found.stdout.split()
        process.terminate()
        process.wait(timeout=60)
        for child in children:
            assert not Path(f"/proc/{child}").exists()
    finally:
        process.kill()
        process.communicate()
