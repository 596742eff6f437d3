"""The orders of a layer's choices in their file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from epim_nas import Choice, EpitomeShape, InputError, SamplingPlan, SearchSpace, trace
from epim_nas.epitome.alignment import AlignmentSearch, align
from epim_nas.space import Group
from epim_nas.supernet import alignments
from epim_nas.supernet.alignments import align_plans
from epim_nas.supernet.supernet import Supernet
from tests.supernet.nets import tiny

WEIGHT = np.random.default_rng(4).normal(size=(8, 8, 3, 3))
PLANS = [
    SamplingPlan.identity(WEIGHT.shape),
    SamplingPlan.build(WEIGHT.shape, EpitomeShape(4, 8, 3, 3)),
    SamplingPlan.build(WEIGHT.shape, EpitomeShape(4, 8, 3, 3)),
    SamplingPlan.build(WEIGHT.shape, EpitomeShape(4, 4, 4, 4), wrap=True),
    SamplingPlan.build(WEIGHT.shape, EpitomeShape(4, 4, 3, 3), wrap_in=True),
]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[SamplingPlan]:
    """The plans for which an order was searched."""
    plans: list[SamplingPlan] = []

    def counted(weight: np.ndarray, plan: SamplingPlan, **options: object) -> object:
        plans.append(plan)
        return align(weight, plan, **options)

    monkeypatch.setattr(alignments, "align", counted)
    return plans


def test_equal_plans_are_aligned_once_and_never_again(tmp_path: Path, searched: list) -> None:
    file, seen = tmp_path / "layer.npz", []
    found = align_plans(WEIGHT, PLANS, file=file, progress=seen.append)
    assert found == [align(WEIGHT, plan).plan for plan in PLANS]
    assert (len(searched), seen) == (4, [1, 2, 1, 1])
    assert align_plans(WEIGHT, PLANS, file=file, progress=seen.append) == found
    assert (len(searched), seen[4:]) == (4, [5])


@pytest.mark.parametrize("change", ["weight", "plans", "search", "damage"])
def test_orders_of_something_else_are_not_used(tmp_path: Path, searched: list, change: str) -> None:
    file = tmp_path / "layer.npz"
    align_plans(WEIGHT, PLANS, file=file)
    if change == "damage":
        file.write_bytes(file.read_bytes()[:200])
    weight = WEIGHT + 1e-9 if change == "weight" else WEIGHT
    plans = PLANS[1:] if change == "plans" else PLANS
    search = AlignmentSearch(sweeps=7) if change == "search" else None
    done = len(searched)
    found = align_plans(weight, plans, search, file=file)
    assert len(searched) > done
    assert found == [align(weight, plan, search=search).plan for plan in plans]
    done = len(searched)
    assert align_plans(weight, plans, search, file=file) == found
    assert len(searched) == done


def test_a_supernet_goes_on_from_the_layers_that_are_done(tmp_path: Path, searched: list) -> None:
    model, network, space = tiny()
    steps: list[int] = []
    make = lambda: Supernet(  # noqa: E731
        model, network, space, align=AlignmentSearch(), alignments=tmp_path, progress=steps.append
    )
    first = make()
    assert steps == sorted(steps)
    assert steps[-1] == sum(len(choices) for choices in space.layer_choices.values())
    (tmp_path / "conv2.npz").unlink()
    done = len(searched)
    again = make()
    assert {plan.conv_shape for plan in searched[done:]} == {model.conv2.weight.shape}
    for name, layer in first.layers.items():
        assert again.layers[name].plans == layer.plans


def test_a_weight_that_is_not_finite_names_its_layer() -> None:
    model, network, space = tiny()
    model.conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer conv2: weight: has NaN"):
        Supernet(model, network, space, align=AlignmentSearch())


def test_names_of_modules_are_no_paths(tmp_path: Path) -> None:
    names = (str(tmp_path / "outside"), "/", "a b", "plain")  # torch refuses dots alone
    model = nn.Sequential(OrderedDict((name, nn.Conv2d(8, 8, 3, padding=1)) for name in names))
    network = trace(model, (8, 6, 6), "named")
    choice = Choice(EpitomeShape(4, 8, 3, 3), weight_bits=4)
    space = SearchSpace("s", "named", tuple(Group(name, (name,), ((choice,),)) for name in names))
    folder = tmp_path / "run" / "alignments"
    Supernet(model, network, space, align=AlignmentSearch(), alignments=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in folder.parent.iterdir()] == ["alignments"]
    assert len(list(folder.glob("*.npz"))) == len(names)
    assert (folder / "plain.npz").is_file(), "a simple name stays"
