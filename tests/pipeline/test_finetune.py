"""The full training of one design: its result, its resume, its errors; on one process and two."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from epim_nas import InputError
from epim_nas.models.weights import read_state
from epim_nas.supernet.damage import learning_rate_for
from tests.pipeline import command
from tests.pipeline.finetuning import EPOCHS, SET, tune


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_the_folder_holds_epitomes_curves_and_the_design(finished: Path, tuned: Path) -> None:
    result = result_of(tuned)
    assert result["epochs"] == EPOCHS
    assert result["validation_accuracy"] >= result["before"]
    assert result["learning_rate"] == learning_rate_for(result["damage"])
    # 500 images are 10 batches of 50.
    assert [step for step, _ in result["validation_curve"]] == [10, 20, 30]
    names = read_state(tuned / "epitomes.safetensors")
    assert any(name.endswith(".epitome") for name in names)
    assert {path.name for path in tuned.iterdir()} - {".lock", ".digests"} == {
        "design.yaml", "epitomes.safetensors", "result.json", "settings.json", "tensorboard",
    }  # fmt: skip
    events = EventAccumulator(str(tuned / "tensorboard")).Reload()
    accuracy = events.Scalars("finetune/validation_accuracy")
    assert [(e.step, pytest.approx(e.value)) for e in accuracy] == [
        tuple(point) for point in result["validation_curve"]
    ]
    assert [e.step for e in events.Scalars("finetune/loss")] == [10, 20, 30]
    rates = [e.value for e in events.Scalars("finetune/learning_rate")]
    assert rates[0] > rates[1] > rates[2] > 0


def test_a_finished_training_is_not_repeated(
    finished: Path, tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (tuned / "epitomes.safetensors").stat().st_mtime_ns
    weights = tuned / "epitomes.safetensors"
    again = json.loads(json.dumps(tune(finished, tuned)))
    assert again == {**result_of(tuned), "weights": str(weights)}
    assert (tuned / "epitomes.safetensors").stat().st_mtime_ns == before


def test_the_result_names_the_weights_wherever_the_folder_is(
    finished: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result_of(tuned)["weights"] == "epitomes.safetensors"
    moved = shutil.copytree(tuned, tmp_path / "moved")
    for current in (tmp_path, moved):
        monkeypatch.chdir(current)
        weights = Path(tune(finished, moved)["weights"])
        assert weights.resolve() == moved.resolve() / "epitomes.safetensors"


def test_interrupted_it_goes_on_to_the_same_weights(
    finished: Path, tuned: Path, tmp_path: Path
) -> None:
    arguments = [
        "finetune", finished / "best.yaml", "--run", finished / "run.yaml", "--epochs", EPOCHS,
        "--out", tmp_path / "out", *(part for key in SET for part in ("--set", key)),
    ]  # fmt: skip
    for _ in range(5):  # the training is short: the signal may come too late
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = command.start(*arguments)
        state = tmp_path / "out" / "training.state"
        command.wait_until(process, state.exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "Type the same command to go on" in stderr
    assert command.run(*arguments).returncode == 0
    mine, theirs = (read_state(path / "epitomes.safetensors") for path in (tmp_path / "out", tuned))
    assert all(mine[name].equal(theirs[name]) for name in theirs)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("finetune/loss")] == [10, 20, 30]


def test_it_starts_from_given_epitomes(finished: Path, tuned: Path, tmp_path: Path) -> None:
    weights = tuned / "epitomes.safetensors"
    result = tune(finished, tmp_path / "more", weights=weights)
    assert result["before"] == result_of(tuned)["validation_accuracy"]


def test_weights_of_another_design_are_refused(finished: Path, tmp_path: Path) -> None:
    weights = finished / "checkpoints" / "baseline.safetensors"
    with pytest.raises(InputError, match=r"--weights.*stem\.epitome"):
        tune(finished, tmp_path / "out", weights=weights)
    with pytest.raises(InputError, match=r"--weights: .*is not a file"):
        tune(finished, tmp_path / "out2", weights=tmp_path / "none.safetensors")


def test_a_mistake_does_not_claim_the_folder(finished: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="--weights"):
        tune(finished, out, weights=finished / "checkpoints" / "baseline.safetensors")
    weights = tuned / "epitomes.safetensors"
    assert tune(finished, out, "finetune.epochs=1", weights=weights)["weights"].startswith(str(out))


def test_a_worse_network_is_not_kept(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, tuned: Path
) -> None:
    result = tune(
        finished, tmp_path / "out", "finetune.lr=9.0", "finetune.ema=null",
        "finetune.clip_norm=10.0", weights=tuned / "epitomes.safetensors",
    )  # fmt: skip
    assert result["validation_accuracy"] == result["before"]
    assert result["steps"] == 0


def test_nan_keeps_the_last_good_state(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "finetune", finished / "best.yaml", "--run", finished / "run.yaml", "--epochs", EPOCHS,
        "--out", out, "--set", "finetune.lr=9.9", "--set", "finetune.weight_decay=0.99",
        "--set", "finetune.batch_size=50", "--set", "precision=float32",
    ]  # fmt: skip
    done = command.run(*arguments)
    assert done.returncode == 2
    assert "learning rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "result.json").exists()


def test_two_workers_train_the_same_network(finished: Path, tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    kinds = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(kind) for kind in kinds]
    result = tune(finished, tmp_path / "two", workers=2)
    assert [signal.getsignal(kind) for kind in kinds] == handlers, "Ray's own are left behind"
    alone = result_of(tuned)
    assert [step for step, _ in result["validation_curve"]] == [10, 20, 30]
    # Batch norm sees half a batch in each: not the same numbers, but the same network.
    assert result["validation_accuracy"] == pytest.approx(alone["validation_accuracy"], abs=0.1)
    assert result["before"] == alone["before"]


def test_workers_have_to_share_a_batch_evenly(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="--workers: 3 cannot share batches of 50"):
        tune(finished, tmp_path / "three", workers=3)
