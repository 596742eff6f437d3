from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from epim_nas.data.config import DataConfig
from epim_nas.data.custom import LoaderData
from epim_nas.data.registry import data_names, load_data
from epim_nas.errors import InputError
from epim_nas.schema import validate

MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def loaders(n=20, classes=2, without=None, **change):
    images = torch.arange(n * 12.0).view(n, 3, 2, 2)
    data = TensorDataset(images, torch.arange(n) % 2)
    result = {split: DataLoader(data, batch_size=6, shuffle=split == "train")
              for split in ("train", "validation", "test")}
    result["num_classes"] = classes
    result.update(change)
    result.pop(without, None)
    return result

def shipped():
    from epim_nas.data.fashion_mnist import fashion_mnist_subset
    return fashion_mnist_subset()

def number():
    return 3

def broken():
    raise ZeroDivisionError("oh no")

not_a_function = 4
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> str:
    name = f"my_data_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_bad.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    return name


def config(module: str, function: str, **options: object) -> DataConfig:
    return DataConfig(name=f"{module}:{function}", batch_size=4, **options)  # type: ignore[arg-type]


def test_loaders_of_a_users_function(module: str) -> None:
    before = list(sys.path)
    data = load_data(config(module, "loaders", args={"n": 20}))
    assert sys.path == before
    assert data.sizes == {"train": 20, "validation": 20, "test": 20}
    assert data.input_shape == (3, 2, 2)
    batches = list(data.batches("test", 8))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    values = torch.cat([images for images, _ in batches])[:, 0, 0, 0]
    assert values.tolist() == [12.0 * k for k in range(20)]
    assert [len(labels) for _, labels in data.batches("test", 8, limit=10)] == [8, 2]


def test_a_data_object_is_taken_as_it_is(module: str) -> None:
    assert load_data(config(module, "shipped")).name == "fashion_mnist_subset"


def loader_data(n: int = 10, batch: int = 4) -> LoaderData:
    dataset = TensorDataset(torch.arange(n * 1.0).view(n, 1, 1, 1), torch.arange(n) % 2)
    loaders = {
        split: DataLoader(dataset, batch_size=batch, shuffle=split == "train")
        for split in ("train", "validation", "test")
    }
    return LoaderData("mine", loaders, 2)


def test_training_batches_of_loaders_are_regrouped_and_reproducible() -> None:
    data = loader_data(10, batch=4)
    torch.manual_seed(1)
    whole = list(islice(data.train_batches(5, seed=3), 6))
    torch.manual_seed(2)
    for start in range(5):
        images, _ = next(data.train_batches(5, 3, start))
        assert torch.equal(images, whole[start][0])
    for epoch in range(3):
        seen = torch.cat([images for images, _ in whole[2 * epoch : 2 * epoch + 2]]).flatten()
        assert sorted(seen.tolist()) == list(range(10))
    assert not torch.equal(whole[0][0], whole[2][0])
    assert not torch.equal(whole[0][0], next(data.train_batches(5, seed=4))[0])


def test_reading_loaders_leaves_the_random_state_alone() -> None:
    data = loader_data()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    list(islice(data.train_batches(5, 0), 4))
    assert torch.equal(torch.rand(2), expected)


def test_plain_lists_of_batches_will_do_and_incomplete_ones_are_counted() -> None:
    batch = (torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))
    short = (torch.zeros(1, 1, 2, 2), torch.tensor([1]))
    data = LoaderData("list", {key: [batch, short] for key in ("train", "validation", "test")}, 2)
    assert data.sizes["train"] == 4


GOOD = (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no batches"),
        (iter([GOOD]), "again and again"),
        (5, "got a int"),
        ([torch.zeros(2)], "pairs"),
        ([(torch.zeros(2, 4), GOOD[1])], r"shape \(2, 4\)"),
        ([(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), GOOD[1])], "normalised floats"),
        ([(GOOD[0], torch.tensor([0, 2]))], "labels from 0 to 2"),
        ([(GOOD[0], torch.tensor([0.0, 1.0]))], "integers of shape"),
        ([(GOOD[0], torch.tensor([0]))], r"integers of shape \(2,\)"),
        ([(GOOD[0] * torch.nan, GOOD[1])], "NaN"),
        ([GOOD, (torch.zeros(2, 3, 2, 2), GOOD[1])], "as in the first batch"),
    ],
)
def test_loaders_that_yield_something_else_are_refused(loader: object, message: str) -> None:
    loaders = {"train": loader, "validation": [GOOD], "test": [GOOD]}
    with pytest.raises(InputError, match=message) as caught:
        LoaderData("mine", loaders, 2)  # type: ignore[arg-type]
    assert "train" in caught.value.field


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("loader", {}, "has no function `loader`. Did you mean `loaders`"),
        ("not_a_function", {}, "has no function"),
        ("", {}, "incomplete"),
        ("number", {}, "returns a int"),
        ("broken", {}, "ZeroDivisionError: oh no"),
        ("number", {"args": {"x": 1}}, "TypeError"),
        ("loaders", {"args": {"without": "test"}}, "has no `test`"),
        ("loaders", {"args": {"classes": 1}}, "integer of 2 or more"),
        ("loaders", {"args": {"classes": "2"}}, "integer of 2 or more"),
        ("loaders", {"args": {"n": 3}}, "only 3 training images"),
        ("loaders", {"train_fraction": 0.5}, "data.train_fraction: is not used"),
        ("loaders", {"root": "/tmp"}, "data.root: is not used"),
    ],
)
def test_functions_that_do_not_fit_are_refused(module: str, function, options, message) -> None:
    with pytest.raises(InputError, match=message):
        load_data(config(module, function, **options))


def test_modules_that_cannot_be_imported_are_named(module: str) -> None:
    with pytest.raises(InputError, match="there is no module `no_such_module`"):
        load_data(DataConfig(name="no_such_module:f"))
    with pytest.raises(InputError, match="fails: ZeroDivisionError"):
        load_data(config(f"{module}_bad", "f"))


def test_named_data_follows_the_options_of_the_run_file() -> None:
    data = load_data(
        DataConfig(
            name="fashion_mnist_subset",
            train_fraction=0.05,
            image_size=32,
            augment=False,
            args={"mean": [0.0], "std": [1.0]},
        )
    )
    assert data.sizes == {"train": 500, "validation": 2000, "test": 2000}
    assert data.input_shape == (1, 32, 32)
    images, _ = next(data.train_batches(100, 0))
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fashion_mist"}, "Did you mean `fashion_mnist`"),
        ({"name": "imagefolder"}, "data.root: is missing"),
        ({"name": "imagefolder", "root": "/no/such"}, "no such folder"),
        ({"name": "cifar10", "root": __file__}, "is not a folder"),
        ({"name": "fashion_mnist_subset", "train_fraction": 0.001}, "only 10 training images"),
        ({"name": "fashion_mnist_subset", "args": {"mena": [0.5]}}, "Did you mean `mean`"),
        ({"name": "fashion_mnist_subset", "args": {"mean": [0.5]}}, "both or none"),
        (
            {"name": "fashion_mnist_subset", "args": {"mean": [0.5] * 3, "std": [0.5] * 3}},
            "3 values for images with 1 channels",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(DataConfig(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": "128"},
        {"workers": -1},
        {"train_fraction": 0.0},
        {"train_fraction": 1.5},
        {"image_size": 0},
        {"validation_size": 0},
        {"augument": True},
    ],
)
def test_the_data_section_is_validated(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        validate(DataConfig, {"name": "fashion_mnist", **wrong}, "run.yaml")
    assert next(iter(wrong)) in caught.value.field


def test_reading_a_run_files_data_section_does_not_import_torch() -> None:
    code = "import sys, epim_nas.data.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_is_listed() -> None:
    assert data_names() == [
        "fashion_mnist_subset",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "imagefolder",
    ]
