"""Averaged weights, gradient accumulation, learned steps and several processes in a training."""

from __future__ import annotations

import copy
import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from epim_nas import Choice, Design, EpitomeShape, apply_design
from epim_nas.epitome.quantization import Quantization
from epim_nas.errors import InputError
from epim_nas.supernet.averaging import decay_at
from epim_nas.supernet.damage import GENTLE, STRONG, learning_rate_for, measure_damage
from epim_nas.supernet.parallel import Parallel
from epim_nas.supernet.training import TrainConfig, _optimizer, train
from tests.supernet.test_training import bright_or_dark, network, state_bytes


def plain(seed: int = 0) -> nn.Sequential:
    """Without batch norm and dropout: a batch is the mean of its images."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulated_parts_are_the_whole_batch(parts: int) -> None:
    whole, split = plain(), plain()
    config = TrainConfig(steps=10, batch_size=16, lr=0.05)
    train(whole, bright_or_dark(), config, device="cpu", precision="float32")
    losses = []
    train(
        split, bright_or_dark(),
        TrainConfig(steps=10, batch_size=16, lr=0.05, accumulation=parts),
        device="cpu", precision="float32", progress=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert len(losses) == 10


def test_a_batch_has_no_more_parts_than_images() -> None:
    with pytest.raises(InputError, match=r"training\.accumulation: got 17.*1 to batch_size \(16\)"):
        TrainConfig(steps=1, batch_size=16, accumulation=17)


def test_the_model_ends_with_the_average_of_its_weights() -> None:
    model, seen = plain(), []
    config = TrainConfig(steps=12, batch_size=16, lr=0.1, ema=0.8)

    def note(step: int, loss: float) -> None:
        seen.append(states(model))

    train(model, bright_or_dark(), config, device="cpu", progress=note)
    # The first update copies; the n-th one after it keeps min(0.8, (1 + n) / (10 + n)).
    average = {name: value.double() for name, value in seen[0].items()}
    for updates, state in enumerate(seen[1:], start=1):
        keep = min(0.8, (1 + updates) / (10 + updates))
        average = {name: keep * v + (1 - keep) * state[name] for name, v in average.items()}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, average[name].float(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model.state_dict()["3.weight"], seen[-1]["3.weight"])


def test_a_training_that_is_stopped_ends_with_the_average_as_well(tmp_path: Path) -> None:
    config, short = TrainConfig(steps=12, batch_size=16, lr=0.1, warmup=0, ema=0.8), plain()
    seen: list[dict[str, torch.Tensor]] = []
    train(
        short, bright_or_dark(), config, device="cpu", checkpoint=tmp_path / "state",
        progress=lambda step, loss: seen.append(states(short)), stop=lambda: len(seen) == 7,
    )  # fmt: skip
    assert len(seen) == 7
    assert not torch.allclose(short.state_dict()["3.weight"], seen[-1]["3.weight"])
    whole, parts = plain(), plain()
    train(whole, bright_or_dark(), config, device="cpu")
    train(parts, bright_or_dark(), config, device="cpu", checkpoint=tmp_path / "state")
    assert state_bytes(parts) == state_bytes(whole)


def test_decay_grows_to_its_limit() -> None:
    decays = [decay_at(updates, 0.99) for updates in range(2000)]
    assert decays[0] == 0.1
    assert all(a <= b for a, b in pairwise(decays))
    assert decays[-1] == 0.99


def test_an_averaged_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = TrainConfig(steps=20, batch_size=16, lr=0.05, warmup=0.2, ema=0.9)
    measure = lambda model: float(next(model.parameters()).detach().sum())  # noqa: E731
    whole, parts = network(), network()
    once = train(whole, bright_or_dark(), config, device="cpu", measure=measure, measure_every=6)
    path, calls = tmp_path / "state", iter([False] * 8 + [True])
    first = train(
        parts, bright_or_dark(), config, device="cpu", checkpoint=path,
        stop=lambda: next(calls), measure=measure, measure_every=6,
    )  # fmt: skip
    assert not first.finished
    again = network(seed=5)
    second = train(
        again, bright_or_dark(), config, device="cpu", checkpoint=path,
        measure=measure, measure_every=6,
    )  # fmt: skip
    assert state_bytes(again) == state_bytes(whole)
    assert second.measured == once.measured
    assert [step for step, _ in once.measured] == [6, 12, 18, 20]
    # A finished state gives the averaged weights again.
    third = network(seed=6)
    train(third, bright_or_dark(), config, device="cpu", checkpoint=path)
    assert state_bytes(third) == state_bytes(whole)


def test_measuring_sees_the_averaged_network_and_changes_nothing() -> None:
    config, seen = TrainConfig(steps=9, batch_size=16, lr=0.1, ema=0.5), []
    measured, undisturbed = network(), network()

    def measure(model: nn.Module) -> float:
        seen.append(states(model))
        assert not model.training
        return 0.0

    train(measured, bright_or_dark(), config, device="cpu", measure=measure, measure_every=3)
    train(undisturbed, bright_or_dark(), config, device="cpu")
    assert state_bytes(measured) == state_bytes(undisturbed)
    assert len(seen) == 3
    assert torch.equal(seen[-1]["5.weight"], measured.state_dict()["5.weight"])


def test_quantization_steps_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    choice = Choice(EpitomeShape(4, 4, 3, 3), weight_bits=3, activation_bits=8)
    small = apply_design(
        model, Design("net", {"0": choice}), quantization=Quantization(learned_weight_step=True)
    )
    decayed, others = _optimizer(small, TrainConfig(steps=1)).param_groups
    names = {id(parameter): name for name, parameter in small.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"0.epitome", "2.weight"}
    found = {names[id(p)] for p in others["params"]}
    assert {"0.bias", "2.bias"} < found
    assert sum("step" in name for name in found) == 2
    assert others["weight_decay"] == 0


def _train_in_group(rank: int, size: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    model = plain(seed=rank)  # broadcast makes them equal
    config = TrainConfig(steps=8, batch_size=16, lr=0.05, clip_norm=1.0)
    parallel = Parallel.current()
    assert (parallel.rank, parallel.size, parallel.first) == (rank, size, rank == 0)
    result = train(
        model, bright_or_dark(), config, device="cpu", precision="float32", parallel=parallel
    )
    torch.save((model.state_dict(), result.curve), f"{out}.{rank}")
    assert math.isnan(parallel.mean(math.nan if rank == 1 else 1.0))
    distributed.destroy_process_group()


def test_processes_that_share_batches_train_as_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (2, str(tmp_path / "group"), str(tmp_path / "out"))
    processes = [context.Process(target=_train_in_group, args=(r, *arguments)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    alone = plain(seed=0)
    config = TrainConfig(steps=8, batch_size=16, lr=0.05, clip_norm=1.0)
    curve = train(alone, bright_or_dark(), config, device="cpu", precision="float32").curve
    for rank in range(2):
        state, found = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in curve], 1e-5)


def test_parts_of_a_batch_make_the_batch() -> None:
    data = bright_or_dark()
    for whole, *parts in islice(
        zip(
            data.train_batches(16, 3, 2),
            *(data.train_batches(16, 3, 2, (rank, 4)) for rank in range(4)),
            strict=True,
        ),
        9,
    ):
        for rank, (images, labels) in enumerate(parts):
            assert torch.equal(images, whole[0][rank::4])
            assert torch.equal(labels, whole[1][rank::4])


def test_damage_is_the_divergence_by_its_definition() -> None:
    data, teacher, model = bright_or_dark(), plain(), plain(seed=1)
    batches = list(data.batches("train", 40))
    images = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        p, q = (torch.softmax(net(images).double(), 1) for net in (teacher, model))
    expected = float((p * (p / q).log()).sum(1).mean())
    found = measure_damage(model, teacher, batches, precision="float32")
    assert found == pytest.approx(expected, rel=1e-4)
    assert measure_damage(copy.deepcopy(teacher), teacher, batches) == 0
    with pytest.raises(InputError, match="no images"):
        measure_damage(model, teacher, [])
    with torch.no_grad():
        model[3].bias[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        measure_damage(model, teacher, batches)


def test_the_rate_follows_the_damage_between_its_anchors() -> None:
    for damage, rate in (GENTLE, STRONG):
        assert learning_rate_for(damage) == pytest.approx(rate)
    assert learning_rate_for(0.0) == pytest.approx(GENTLE[1])
    assert learning_rate_for(50.0) == pytest.approx(STRONG[1])
    middle = math.sqrt(GENTLE[0] * STRONG[0])
    assert learning_rate_for(middle) == pytest.approx(math.sqrt(GENTLE[1] * STRONG[1]))
    rates = [learning_rate_for(d) for d in np.geomspace(1e-3, 10, 40)]
    assert rates == sorted(rates)
