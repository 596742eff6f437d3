"""The sensitivity score, against its definition computed one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from epim_nas.supernet.sensitivity import output_fisher
from epim_nas.supernet.supernet import Supernet
from tests.supernet.nets import tiny

CPU = torch.device("cpu")


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(12, 1, 8, 8, generator=generator), torch.zeros(12, dtype=torch.long))
        for _ in range(count)
    ]


def make_supernet() -> Supernet:
    model, network, space = tiny()
    supernet = Supernet(model, network, space).eval()
    supernet.calibrate_activations(batches()[0][0])
    return supernet


def by_definition(supernet: Supernet, name: str, index: int, seed: int) -> float:
    """1/2 mean over images of sum (g d)^2, with d after matching each channel's statistics."""
    layer, total, images = supernet.layers[name], 0.0, 0
    for number, (x, _) in enumerate(batches()):
        kept: dict[str, torch.Tensor] = {}

        def keep(_: object, inputs: tuple, output: torch.Tensor, kept: dict = kept) -> None:
            kept["x"], kept["y"] = inputs[0], output

        hook = layer.register_forward_hook(keep)
        logits = supernet(x)
        hook.remove()
        generator = torch.Generator().manual_seed(seed + number)
        labels = torch.multinomial(F.softmax(logits.detach(), 1), 1, generator=generator)[:, 0]
        with torch.no_grad():
            changed = layer.run(layer.quantize_input(kept["x"], index), index)
        difference = changed.double() - kept["y"].detach().double()
        if name in ("conv1", "conv2"):  # batch norm follows
            y, c = kept["y"].detach().double(), changed.double()
            axes = (0, 2, 3)
            c = (c - c.mean(axes, keepdim=True)) / (c.std(axes, keepdim=True) + 1e-12)
            difference = c * y.std(axes, keepdim=True) + y.mean(axes, keepdim=True) - y
        for i in range(len(x)):
            loss = F.cross_entropy(logits[i : i + 1], labels[i : i + 1])
            gradient = torch.autograd.grad(loss, kept["y"], retain_graph=True)[0][i].double()
            total += float((gradient * difference[i]).square().sum())
        images += len(x)
    return total / (2 * images)


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "fc"])
def test_score_is_its_definition(name: str) -> None:
    supernet = make_supernet()
    table = output_fisher(supernet, batches(), device=CPU, seed=5)
    expected = [by_definition(supernet, name, i, 5) for i in range(len(table[name]))]
    np.testing.assert_allclose(table[name], expected, rtol=2e-3, atol=1e-12)


def test_a_lossless_choice_costs_nothing_and_fewer_bits_cost_more() -> None:
    supernet = make_supernet()
    table = output_fisher(supernet, batches(), device=CPU)
    assert all(scores[0] == pytest.approx(0, abs=1e-9) for scores in table.values())
    two, three, five, nine = table["conv2"][4:]
    assert two > three > five > nine > 0


def test_an_interrupted_pass_goes_on(tmp_path: Path) -> None:
    supernet = make_supernet()
    whole = output_fisher(supernet, batches(3), device=CPU, seed=1)
    path = tmp_path / "partial.npz"
    output_fisher(supernet, batches(2), device=CPU, seed=1, checkpoint=path)
    seen = []
    resumed = output_fisher(
        supernet,
        batches(3),
        device=CPU,
        seed=1,
        checkpoint=path,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == [9, 10, 11, 12], "only the third batch is computed"
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_the_model_is_left_as_it_was() -> None:
    supernet = make_supernet().train()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    output_fisher(supernet, batches(), device=CPU)
    assert supernet.training
    assert all(p.grad is None for p in supernet.parameters())
    assert all(torch.equal(supernet.state_dict()[n], v) for n, v in before.items())
