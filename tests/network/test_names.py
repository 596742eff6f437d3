"""Names of layers and identity of weights, whatever the modules are called and made of."""

from __future__ import annotations

import keyword

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from epim_nas import Choice, EpitomeShape, apply_design, load_design
from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, load_chip
from epim_nas.network.trace import trace
from epim_nas.network.yaml_io import load_network, save_network

CHIP = load_chip("xbar_64")
ODD = [
    *(
        [
            "input",
            ".output",
            "output",
            "images",
            "x",
            "self",
            "add",
            "add_1",
            "conv",
            "conv_1",
            "add_0",
            "7",
            "1e3",
            "no",
            "null",
        ]
    ),
    *("a b", "a/b", "/tmp/x", "..", "\u00e9t\u00e9", "e\u0301", "<input>", "$(x)"),
    *keyword.kwlist,
]
NAMES = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
).map(lambda name: name.replace(".", "_"))


class Named(nn.Module):
    """Three layers and a sum, the layers by any names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        for name, layer in zip(names, (first, second, nn.Linear(8, 4)), strict=True):
            self.register_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, last = (self._modules[name] for name in self.names)
        x = first(x)  # type: ignore[misc]
        y = second(x) + x  # type: ignore[misc]
        y = y + x
        return last(y.mean((2, 3)))  # type: ignore[misc, no-any-return]


def usable(names: list[str]) -> bool:
    return len({*names}) == 3 and not any(
        hasattr(nn.Module(), name) or name == "names" for name in names
    )


@settings(max_examples=40)
@given(st.lists(NAMES, min_size=3, max_size=3).filter(usable))
def test_any_module_name_goes_through(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    model = Named(names)
    network = trace(model, (3, 6, 6))
    assert [layer.name for layer in network.weighted] == names
    assert len({layer.name for layer in network}) == len(network) == 6
    folder = tmp_path_factory.mktemp("names")
    save_network(network, folder / "network.yaml")
    assert load_network(folder / "network.yaml") == network
    choice = Choice(EpitomeShape(4, 4, 3, 3), weight_bits=4, activation_bits=6)
    design = Design.uniform(network, 4, 6)
    design = Design(design.network, {**design.choices, names[1]: choice})
    design.save(folder / "design.yaml")
    again = load_design(folder / "design.yaml")
    assert list(again.choices) == names
    assert again[names[1]].shape == choice.shape
    assert CostModel(network, CHIP).evaluate(again).totals.crossbars > 0
    small = apply_design(model, again)
    assert small(torch.ones(2, 3, 6, 6)).shape == (2, 4)


def test_a_second_call_never_takes_the_name_of_a_later_module() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)
            self.stem = nn.Conv2d(3, 4, 1)
            self.pool_1 = nn.Conv2d(4, 4, 1)
            self.add_1 = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.pool(self.stem(x)))
            x = x + x
            return self.add_1(self.pool_1(x + x))

    names = [layer.name for layer in trace(Twice(), (3, 8, 8))]
    assert [name for name in names if name in ("stem", "pool_1", "add_1")] == [
        "stem",
        "pool_1",
        "add_1",
    ]
    assert len({*names}) == len(names) == 7


def chain(second: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), second)


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
def test_computed_weights_are_told_apart(wrap) -> None:  # type: ignore[no-untyped-def]
    for _ in range(25):  # the address of a temporary tensor is used again at random
        layers = [wrap(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(4)]
        assert len(trace(nn.Sequential(*layers), (4, 6, 6)).weighted) == 4


def test_old_weight_norm_is_told_apart() -> None:
    with pytest.warns(FutureWarning):
        layers = [nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(4)]
    assert len(trace(nn.Sequential(*layers), (4, 6, 6)).weighted) == 4


@pytest.mark.parametrize("how", ["parameter", "storage", "part", "parametrization"])
def test_shared_weights_are_found(how: str) -> None:
    model = chain(nn.Conv2d(4, 4, 3, padding=1))
    first, second = model[0], model[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    if how == "parameter":
        second.weight = first.weight
    elif how == "storage":
        second.weight = nn.Parameter(first.weight.data)
    elif how == "part":
        whole = torch.randn(6, 4, 3, 3)
        first.weight, second.weight = nn.Parameter(whole[:4]), nn.Parameter(whole[2:])
    else:
        parametrizations.weight_norm(first)
        parametrizations.weight_norm(second)
        second.parametrizations.weight.original1 = first.parametrizations.weight.original1  # type: ignore
    with pytest.raises(InputError, match="2: shares its weight with 0"):
        trace(model, (4, 6, 6))


def test_views_of_different_parts_of_one_storage_are_no_sharing() -> None:
    model = chain(nn.Conv2d(4, 4, 3, padding=1))
    whole = torch.randn(8, 4, 3, 3)
    model[0].weight, model[2].weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    assert len(trace(model, (4, 6, 6)).weighted) == 2
