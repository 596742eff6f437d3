from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from epim_nas.data.arrays import ArrayData, Images
from epim_nas.errors import EpimError, InputError
from epim_nas.stored import digest_file
from epim_nas.supernet.checkpoint import read_checkpoint
from epim_nas.supernet.evaluation import evaluate
from epim_nas.supernet.training import NonFiniteLoss, TrainConfig, distillation_loss, train


def bright_or_dark(n: int = 96, classes: int = 2) -> ArrayData:
    """Images whose brightness tells their class: anything that learns, learns this."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    level = 40 + labels * (160 // (classes - 1))
    noise = random.integers(-30, 30, (n, 1, 8, 8))
    images = Images((level[:, None, None, None] + noise).astype(np.uint8), labels)
    return ArrayData(
        "brightness",
        {"train": images, "validation": images, "test": images},
        num_classes=classes,
        mean=[0.5],
        std=[0.25],
    )


def network(seed: int = 0, dropout: float = 0.2, classes: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


CONFIG = TrainConfig(steps=23, batch_size=16, lr=0.05, warmup=0.2)


def test_training_learns_and_reports() -> None:
    model, data, seen = network(), bright_or_dark(), []
    before = evaluate(model, data.batches("test", 32))
    result = train(
        model, data, CONFIG, device="cpu", progress=lambda s, loss: seen.append((s, loss))
    )
    after = evaluate(model, data.batches("test", 32))
    assert after.accuracy == 1.0
    assert after.loss < 0.5 * before.loss
    assert result.finished
    assert result.steps == 23
    assert [step for step, _ in seen] == list(range(1, 24))
    assert result.curve == tuple(seen)  # fewer steps than points: each step is one
    assert result.seconds > 0


def test_the_curve_holds_the_mean_loss_of_the_steps_between_its_points() -> None:
    seen: list[float] = []
    config = TrainConfig(steps=405, batch_size=4, lr=0.01)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    result = train(model, bright_or_dark(8), config, progress=lambda _, loss: seen.append(loss))
    assert [step for step, _ in result.curve] == [*range(2, 405, 2), 405]
    expected = [sum(seen[i : i + 2]) / len(seen[i : i + 2]) for i in range(0, 405, 2)]
    assert [loss for _, loss in result.curve] == pytest.approx(expected)


@pytest.mark.parametrize("interrupted_at", [1, 7, 22])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, interrupted_at: int
) -> None:
    data, whole = bright_or_dark(), network()
    expected = train(whole, data, CONFIG, seed=5, device="cpu")
    done: list[int] = []
    options = {"seed": 5, "device": "cpu", "checkpoint": tmp_path / "state.pt"}
    first = train(
        network(),
        data,
        CONFIG,
        **options,
        progress=lambda step, _: done.append(step),
        stop=lambda: done[-1] >= interrupted_at,
    )
    assert not first.finished
    assert first.steps == interrupted_at
    torch.manual_seed(99)  # the resumed process has another random state and other weights
    resumed = network(seed=1)
    second = train(resumed, data, CONFIG, **options, progress=lambda step, _: done.append(step))
    assert done == list(range(1, 24))
    assert second.finished
    assert second.curve == expected.curve
    assert state_bytes(resumed) == state_bytes(whole)


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, _: float) -> None:
        if step == 13:
            raise Killed

    data, whole, path = bright_or_dark(), network(), tmp_path / "state.pt"
    train(whole, data, CONFIG, device="cpu")
    with pytest.raises(Killed):
        train(
            network(),
            data,
            CONFIG,
            device="cpu",
            checkpoint=path,
            checkpoint_every=5,
            progress=kill,
        )
    assert read_checkpoint(path)["step"] == 10
    resumed = network(seed=3)
    train(resumed, data, CONFIG, device="cpu", checkpoint=path, checkpoint_every=5)
    assert state_bytes(resumed) == state_bytes(whole)
    # A finished training is loaded and not repeated.
    again, steps = network(seed=4), []
    result = train(
        again, data, CONFIG, device="cpu", checkpoint=path, progress=lambda s, _: steps.append(s)
    )
    assert (result.finished, result.steps, steps) == (True, 23, [])
    assert state_bytes(again) == state_bytes(whole)


def test_the_same_seed_trains_the_same_network_and_another_seed_another() -> None:
    data = bright_or_dark()
    states = []
    for seed in (1, 1, 2):
        model = network()
        train(model, data, CONFIG, seed=seed, device="cpu")
        states.append(state_bytes(model))
    assert states[0] == states[1] != states[2]


def test_the_random_state_outside_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
    torch.manual_seed(7)
    train(model, bright_or_dark(), TrainConfig(2, 8), device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_one_step_is_sgd_with_nesterov_momentum_and_decay_of_matrices_only() -> None:
    data = bright_or_dark()
    config = TrainConfig(steps=2, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    weight, bias = (p.detach().double().clone() for p in model.parameters())
    train(model, data, config, seed=3, device="cpu", precision="float32")
    # SGD after Sutskever et al. as torch documents it, by hand in double precision.
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step, (images, labels) in enumerate(islice(data.train_batches(16, 3), 2)):
        inputs = images.flatten(1).double()
        difference = (inputs @ weight.T + bias).softmax(1) - functional.one_hot(labels, 2)
        gradients = [difference.T @ inputs / 16 + 0.01 * weight, difference.mean(0)]
        rate = 0.1 * (1 + math.cos(math.pi * step / 2)) / 2
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weight = weight - rate * (gradients[0] + 0.9 * velocity[0])
        bias = bias - rate * (gradients[1] + 0.9 * velocity[1])
    torch.testing.assert_close(model[1].weight.double(), weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model[1].bias.double(), bias, atol=1e-5, rtol=1e-5)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = TrainConfig(steps=100, lr=0.4, warmup=0.1)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)
    assert all(a > b > 0 for a, b in pairwise(rates[10:]))
    assert TrainConfig(steps=1, lr=0.4, warmup=1.0).lr_at(0) == pytest.approx(0.4)


def test_distillation_loss_equals_the_definition() -> None:
    torch.manual_seed(0)
    scores, teacher = torch.randn(5, 7), torch.randn(5, 7)
    for temperature in (1.0, 4.0):
        p = (teacher / temperature).softmax(1)
        q = (scores / temperature).softmax(1)
        expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
        got = distillation_loss(scores, teacher, temperature)
        torch.testing.assert_close(got, expected)
    assert distillation_loss(scores, scores).abs() < 1e-6


def test_a_student_learns_from_a_teacher_without_labels() -> None:
    data = bright_or_dark()
    wrong = Images(data.splits["train"].images, 1 - data.splits["train"].labels)
    mislabelled = ArrayData(
        "mislabelled",
        {**data.splits, "train": wrong},
        num_classes=2,
        mean=data.mean,
        std=data.std,
    )
    teacher = network()
    train(teacher, data, CONFIG, device="cpu")
    before = state_bytes(teacher)
    teacher.train()
    student = network(seed=1)
    config = TrainConfig(steps=40, batch_size=16, lr=0.05, distillation=1.0, temperature=2.0)
    train(student, mislabelled, config, device="cpu", teacher=teacher)
    assert evaluate(student, data.batches("test", 32)).accuracy == 1.0
    assert state_bytes(teacher) == before
    assert teacher.training
    with pytest.raises(InputError, match="without a teacher"):
        train(student, data, config, device="cpu")


class BreaksAt(nn.Module):
    """A linear network whose output becomes NaN at a call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.norm = nn.BatchNorm1d(64)
        self.call, self.calls = call, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        factor = math.nan if self.calls > self.call else 1.0
        return self.layer(self.norm(images.flatten(1) * factor))


def test_nan_in_the_loss_stops_with_the_step_and_restores_sound_weights() -> None:
    data, model, reference = bright_or_dark(), BreaksAt(60), BreaksAt(1000)
    reference.load_state_dict(model.state_dict())
    config = TrainConfig(steps=100, batch_size=16, lr=0.01)
    with pytest.raises(NonFiniteLoss, match="at step 60") as caught:
        train(model, data, config, device="cpu")
    assert isinstance(caught.value, EpimError)
    assert (caught.value.step, caught.value.restored_step) == (60, 50)
    steps = []
    train(
        reference,
        data,
        config,
        device="cpu",
        progress=lambda step, _: steps.append(step),
        stop=lambda: steps[-1] == 50,
    )
    assert torch.equal(model.layer.weight, reference.layer.weight)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_an_update_that_overflows_at_the_last_step_is_noticed() -> None:
    model = network(dropout=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteLoss):
        train(model, bright_or_dark(), TrainConfig(1, 16, lr=1e38, weight_decay=1e38), device="cpu")
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_weights_that_overflow_are_never_saved(tmp_path: Path) -> None:
    config = TrainConfig(3, 16, lr=1e38, weight_decay=1e38)
    path = tmp_path / "state.pt"
    with pytest.raises(NonFiniteLoss):
        train(
            network(), bright_or_dark(), config, device="cpu", checkpoint=path, checkpoint_every=1
        )
    assert not path.exists()


class TwoHeads(nn.Module):
    """A weight-sharing network: one of two heads is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, 2) for _ in range(2))
        self.chosen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.heads[self.chosen](images.flatten(1))

    def choose(self, index: int) -> None:
        self.chosen = index


def test_a_step_over_variants_takes_the_mean_of_their_gradients() -> None:
    data, model = bright_or_dark(), TwoHeads()
    before = deepcopy(model.heads)
    config = TrainConfig(1, 16, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
    shares = {0: 3 / 4, 1: 1 / 4}  # head 0 is used three times in the step, head 1 once
    result = train(
        model,
        data,
        config,
        seed=2,
        device="cpu",
        precision="float32",
        variants=lambda _: [partial(model.choose, index) for index in (0, 0, 1, 0)],
    )
    images, labels = next(data.train_batches(16, 2))
    loss = sum(
        share * functional.cross_entropy(before[index](images.flatten(1)), labels)
        for index, share in shares.items()
    )
    loss.backward()
    assert result.curve[0][1] == pytest.approx(loss.item(), rel=1e-5)
    for got, start in zip(model.heads.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(got, start - 0.1 * start.grad)


def test_clipping_bounds_the_update() -> None:
    model = network(dropout=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    config = TrainConfig(
        1, 16, lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=1e-3
    )
    train(model, bright_or_dark(), config, device="cpu")
    moved = sum(
        ((a - b) ** 2).sum() for a, b in zip(model.parameters(), before, strict=True)
    ).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_modes_are_restored_and_frozen_parameters_stay() -> None:
    model = network()
    model.eval()
    model[5].train()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    train(model, bright_or_dark(), CONFIG, device="cpu")
    assert [module.training for module in model] == [False] * 5 + [True]
    assert torch.equal(model[0].weight, frozen)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    data, path = bright_or_dark(), tmp_path / "state.pt"
    train(network(), data, CONFIG, device="cpu", checkpoint=path)
    content = torch.load(path, weights_only=True)
    assert content["step"] == 23
    others = {
        "config": (network(), TrainConfig(steps=24, batch_size=16), 0),
        "seed": (network(), CONFIG, 1),
        "model": (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), CONFIG, 0),
    }
    for model, config, seed in others.values():
        with pytest.raises(InputError, match=r"another training.*Remove the file"):
            train(model, data, config, seed=seed, device="cpu", checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(InputError, match="is damaged"):
        train(network(), data, CONFIG, device="cpu", checkpoint=path)
    digest_file(path).unlink()  # as of an earlier version
    with pytest.raises(InputError, match="cannot be read"):
        train(network(), data, CONFIG, device="cpu", checkpoint=path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a checkpoint of a training"):
        train(network(), data, CONFIG, device="cpu", checkpoint=path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1.0},
        {"warmup": 1.5},
        {"label_smoothing": 1.0},
        {"distillation": 2.0},
        {"temperature": 0.0},
        {"clip_norm": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"^training\.") as caught:
        TrainConfig(**{"steps": 1, **wrong})
    assert caught.value.allowed


def test_models_that_do_not_fit_the_data_are_refused() -> None:
    with pytest.raises(InputError, match="has 2 classes"):
        train(network(classes=3), bright_or_dark(), CONFIG, device="cpu")
    with pytest.raises(InputError, match="no parameters"):
        train(nn.Flatten(), bright_or_dark(), CONFIG, device="cpu")
    with pytest.raises(InputError, match="96 training images"):
        train(network(), bright_or_dark(), TrainConfig(1, batch_size=97), device="cpu")
