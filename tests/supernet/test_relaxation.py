"""The relaxed supernet: its value is the drawn design's, its gradient plain autograd's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epim_nas.epitome.sampling import expand
from epim_nas.supernet.relaxation import Relaxation
from epim_nas.supernet.supernet import Supernet
from tests.supernet.nets import TinyNet, tiny


@pytest.fixture
def subject() -> tuple[TinyNet, Supernet, Tensor]:
    model, network, space = tiny()
    supernet = Supernet(model, network, space)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    supernet.calibrate_activations(images)
    return model, supernet, images


def one_hot(supernet: Supernet, row: tuple[int, ...]) -> list[Tensor]:
    return [
        F.one_hot(torch.tensor(index), len(group)).double().requires_grad_()
        for index, group in zip(row, supernet.space.groups, strict=True)
    ]


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (1, 3, 2, 1), (0, 6, 1, 0)])
@pytest.mark.parametrize("cache", [0, 2**20])
def test_under_a_draw_it_is_the_design_with_batch_statistics(
    subject: tuple[TinyNet, Supernet, Tensor], row: tuple[int, ...], cache: int
) -> None:
    model, supernet, images = subject
    relaxed = Relaxation(supernet, model, [images], "float32", cache)
    loss = relaxed(one_hot(supernet, row), 0)
    plain = copy.deepcopy(supernet)
    plain.select(row)
    plain.train()
    with torch.no_grad():
        output = F.log_softmax(plain(images), dim=1)
        wanted = F.log_softmax(model(images), dim=1)
    expected = (wanted.exp() * (wanted - output)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_gradients_are_those_of_mixed_weights(subject: tuple[TinyNet, Supernet, Tensor]) -> None:
    model, supernet, images = subject
    draws = one_hot(supernet, (1, 3, 2, 1))
    Relaxation(supernet, model, [images], "float32")(draws, 0).backward()

    # The same by plain autograd: weights and inputs as explicit sums over the choices.
    shares = [draw.detach().float().requires_grad_() for draw in draws]
    by_layer = dict(zip(supernet.layers, shares, strict=True))

    def mixed(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        layer, share = supernet.layers[name], by_layer[name]
        weight = sum(
            share[i] * expand(layer.epitome(i), layer.plans[i]).detach() for i in range(len(share))
        )
        seen = sum(share[i] * layer.quantize_input(x, i) for i in range(len(share)))
        return weight, seen

    def conv(name: str, x: Tensor, **geometry: int) -> Tensor:
        weight, seen = mixed(name, x)
        dense = supernet.layers[name].dense
        return F.conv2d(seen, weight.reshape(dense.weight.shape), dense.bias, **geometry)

    norms = copy.deepcopy(model).train()
    x = norms.bn1(conv("conv1", images, padding=1)).relu()
    x = (x + norms.bn2(conv("conv2", x, padding=1))).relu()
    weight, seen = mixed("fc", conv("conv3", x, stride=2).relu().mean((2, 3)))
    fc = supernet.layers["fc"].dense
    output = F.log_softmax(F.linear(seen, weight.reshape(fc.weight.shape), fc.bias), dim=1)
    with torch.no_grad():
        wanted = F.log_softmax(model(images), dim=1)
    F.kl_div(output, wanted, reduction="batchmean", log_target=True).backward()
    for draw, share in zip(draws, shares, strict=True):
        assert draw.grad is not None
        assert share.grad is not None
        torch.testing.assert_close(draw.grad.float(), share.grad, rtol=1e-3, atol=1e-6)


def test_it_leaves_the_supernet_as_it_was(subject: tuple[TinyNet, Supernet, Tensor]) -> None:
    model, supernet, images = subject
    supernet.train()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    required = [p.requires_grad for p in supernet.parameters()]
    Relaxation(supernet, model, [images])(one_hot(supernet, (1, 3, 2, 1)), 0).backward()
    assert supernet.training
    assert [p.requires_grad for p in supernet.parameters()] == required
    assert all(p.grad is None for p in supernet.parameters())
    after = supernet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all("forward" not in layer.__dict__ for layer in supernet.layers.values())
