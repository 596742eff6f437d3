"""Models of every kind are made ready for a search, or refused before anything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from epim_nas.errors import InputError
from epim_nas.models.prepare import check_outputs, initialise, trains_on_one_image
from epim_nas.models.registry import build_model
from epim_nas.network.modules import clone
from epim_nas.network.trace import trace

SHAPE = (1, 8, 8)


def net(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *more,
        nn.Linear(4, 10),
    )  # fmt: skip


class Heads(nn.Module):
    """Returns something else than one tensor, always or in training."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.net, self.what = net(), what

    def forward(self, x: Tensor) -> object:
        y = self.net(x)
        if self.what == "auxiliary":
            return (y, y) if self.training else y
        return {"tuple": (y, y), "dict": {"out": y}, "none": None, "map": x, "one": y.sum(1),
                "whole": y.long(), "classes": y[:, :3]}[self.what]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("tuple", "`net` returns a tuple in evaluation mode"),
        ("dict", "`net` returns a dict in evaluation mode"),
        ("none", "returns a NoneType"),
        ("auxiliary", "`net` returns a tuple in training mode"),
        ("map", r"the shape \(2, 1, 8, 8\)"),
        ("one", r"the shape \(2,\)"),
        ("whole", "type int64"),
        ("classes", r"the shape \(2, 3\)"),
    ],
)
def test_other_outputs_are_refused(what: str, said: str) -> None:
    model = Heads(what)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        InputError, match=said + r".*Allowed: one tensor of the shape \(images, 10\)"
    ):
        check_outputs(model, "net", SHAPE, 10)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_googlenet_says_which_argument_to_give() -> None:
    model = build_model("torchvision:googlenet", in_channels=3, num_classes=10)
    with pytest.raises(InputError, match="`aux_logits: false`"):
        check_outputs(model, "torchvision:googlenet", (3, 64, 64), 10)
    args = {"aux_logits": False, "init_weights": False}
    model = build_model("torchvision:googlenet", in_channels=3, num_classes=10, args=args)
    check_outputs(model, "torchvision:googlenet", (3, 64, 64), 10)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types_become_float32(kind: torch.dtype) -> None:
    model = net().to(kind)
    initialise(model, "net", SHAPE)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    check_outputs(model, "net", SHAPE, 10)
    assert len(trace(model, SHAPE).weighted) == 2


def test_lazy_modules_take_their_shapes() -> None:
    model = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    initialise(model, "net", SHAPE)
    assert [type(m) for m in model][:2] == [nn.Conv2d, nn.BatchNorm2d]
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(4)), "evaluation mode: nothing is learned"
    assert len(trace(model, SHAPE).weighted) == 2


def test_a_lazy_model_of_other_images_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(InputError, match="fails in evaluation mode on a batch of shape"):
        initialise(model, "net", SHAPE)


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(InputError, match="device `meta`"):
        initialise(net().to("meta"), "net", SHAPE)


def test_single_images_and_batch_norm() -> None:
    assert trains_on_one_image(net(), SHAPE)
    assert not trains_on_one_image(net(nn.BatchNorm1d(4)), SHAPE)


def test_copies_of_models_with_computed_weights() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Conv2d(1, 4, 3))
    model = nn.Sequential(layer, nn.Flatten())
    images = torch.randn(2, *SHAPE)
    expected = model(images)
    copied = clone(model)
    assert torch.equal(copied(images), expected)
    copied[0].weight_g.data.zero_()
    assert torch.equal(model(images), expected), "the copy has weights of its own"
    copied(images).sum().backward()
    assert copied[0].weight_v.grad is not None
    assert model[0].weight_v.grad is None
