from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from epim_nas.data.base import Batch
from epim_nas.errors import InputError
from epim_nas.supernet.evaluation import (
    autocast,
    cpu_flags,
    evaluate,
    has_fast_bfloat16,
    recalibrate_batch_norm,
    resolve_device,
)

CPU = torch.device("cpu")


def batches(n_batches: int, size: int = 6, channels: int = 3, seed: int = 0) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, channels, 5, 5, generator=random) * (i + 1) + i,
            torch.randint(0, 3, (size,), generator=random),
        )
        for i in range(n_batches)
    ]


def test_evaluate_equals_counting_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 3))
    uneven = [*batches(2), batches(1, size=2, seed=9)[0]]
    score = evaluate(model, uneven, "cpu", "float32")
    correct, loss, n = 0, 0.0, 0
    for images, labels in uneven:
        for image, label in zip(images, labels, strict=True):
            weight, bias = (p.detach().double() for p in model[1].parameters())
            scores = weight @ image.flatten().double() + bias
            correct += int(scores.argmax() == label)
            loss -= float(scores[label] - scores.exp().sum().log())
            n += 1
    assert n == score.images == 14
    assert score.accuracy == correct / n
    assert score.loss == pytest.approx(loss / n, rel=1e-5)


def test_evaluate_uses_evaluation_mode_and_restores_each_modules_mode() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Flatten(), nn.Linear(75, 3))
    model.train()
    model[0].eval()
    before = model[0].running_mean.clone()
    scores = [evaluate(model, batches(3), "cpu") for _ in range(2)]
    assert scores[0] == scores[1]  # dropout would differ
    assert torch.equal(model[0].running_mean, before)
    assert [module.training for module in model] == [False, True, True, True]


def test_evaluating_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        evaluate(nn.Flatten(), [], "cpu")


def test_recalibration_gives_the_exact_mean_and_variance_of_a_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    (images, _) = batch = batches(1, size=50)[0]
    recalibrate_batch_norm(model, [batch], "cpu", "float32")
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(model[0].running_var, images.var((0, 2, 3)))  # unbiased, as torch's


def test_recalibration_averages_over_batches_and_forgets_what_was_before() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    model[1].running_mean.fill_(1e6)
    given = batches(5)
    recalibrate_batch_norm(model, given, "cpu", "float32")
    first = [model[0](images) for images, _ in given]
    mean = torch.stack([x.mean((0, 2, 3)) for x in first]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in first]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    # The second layer sees the first one's batch statistics, as in training.
    second = []
    for x in first:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        second.append(
            model[2](centred / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt())
        )
    mean = torch.stack([x.mean((0, 2, 3)) for x in second]).mean(0)
    torch.testing.assert_close(model[3].running_mean, mean, atol=1e-5, rtol=1e-4)


def test_recalibration_restores_modes_momenta_and_leaves_dropout_off() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3))
    model.eval()
    model[2].train()
    model[2].weight.requires_grad_(False)
    images = batches(1, size=400)[0][0]
    recalibrate_batch_norm(model, [(images, torch.zeros(400))], "cpu", "float32")
    torch.testing.assert_close(model[1].running_mean, images.mean((0, 2, 3)))  # nothing dropped
    assert [module.momentum for module in model[1:]] == [0.3, 0.1]
    assert [module.training for module in model] == [False, False, True]


def test_momenta_are_restored_when_the_forward_pass_fails() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Linear(1, 1))
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, batches(1), "cpu")
    assert model[0].momentum == 0.3
    with pytest.raises(InputError, match="no images"):
        recalibrate_batch_norm(model, [], "cpu")


def test_recalibration_does_nothing_without_batch_norm() -> None:
    class Untouchable:
        def __iter__(self) -> None:
            raise AssertionError("the batches were read")

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    recalibrate_batch_norm(model, Untouchable(), "cpu")  # type: ignore[arg-type]


def test_precision_chooses_the_type_that_layers_compute_in() -> None:
    layer, inputs = nn.Linear(4, 4), torch.randn(2, 4)
    with autocast(CPU, "bfloat16"):
        assert layer(inputs).dtype == torch.bfloat16
    with autocast(CPU, "float32"):
        assert layer(inputs).dtype == torch.float32
    expected = torch.bfloat16 if has_fast_bfloat16(CPU) else torch.float32
    with autocast(CPU, "auto"):
        assert layer(inputs).dtype == expected
    with pytest.raises(InputError, match="Did you mean `bfloat16`"):
        autocast(CPU, "bfloat6")


def test_cpu_flags_are_read_as_linux_lists_them(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t\t: amx_bf16\n")
    assert cpu_flags.__wrapped__(str(file)) == {"fpu", "avx2", "avx512_bf16"}
    assert cpu_flags.__wrapped__(str(tmp_path / "absent")) == frozenset()


def test_devices_are_resolved_or_refused() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device(CPU) is CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="Did you mean `cuda`"):
        resolve_device("cudda")
    with pytest.raises(InputError, match="torch sees"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_a_model_whose_output_is_not_finite_gets_a_loss_that_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 3))
    nn.init.constant_(model[1].weight, math.nan)
    assert math.isnan(evaluate(model, batches(1), "cpu").loss)
