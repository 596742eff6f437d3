from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from epim_nas.data.arrays import ArrayData
from epim_nas.data.base import Data
from epim_nas.data.config import DataConfig
from epim_nas.data.registry import load_data
from epim_nas.data.torchvision_data import FolderData
from epim_nas.errors import InputError

pytest.importorskip("PIL")
from PIL import Image


def colour(label: int, number: int) -> tuple[int, int, int]:
    """The colour of an image: tells which one it is."""
    return (label * 100, number * 3, 50)


def make_tree(
    root: Path,
    splits: dict[str, int],
    size: tuple[int, int] = (12, 12),
    classes: Sequence[str] = ("cat", "dog"),
    grey: bool = False,
) -> Path:
    for split, n in splits.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(n):
                image = Image.new("RGB", size, colour(label, number))
                (image.convert("L") if grey else image).save(folder / f"{number:03d}.png")
    return root


def load(root: Path, **options: object) -> Data:
    settings = {"batch_size": 4, "validation_size": 4, **options}
    return load_data(DataConfig(name="imagefolder", root=str(root), **settings))  # type: ignore[arg-type]


def colours(data: ArrayData, split: str) -> set[tuple[int, ...]]:
    return {tuple(image[:, 0, 0].tolist()) for image in data.splits[split].images}


def test_small_images_are_held_in_memory_with_their_own_splits(tmp_path: Path) -> None:
    data = load(make_tree(tmp_path, {"train": 6, "val": 3, "test": 2}))
    assert isinstance(data, ArrayData)
    assert data.sizes == {"train": 12, "validation": 6, "test": 4}
    assert data.input_shape == (3, 12, 12)
    assert data.num_classes == 2
    assert colours(data, "validation") == {colour(c, k) for c in range(2) for k in range(3)}
    for image, label in zip(
        data.splits["test"].images, data.splits["test"].labels.tolist(), strict=True
    ):
        assert image[0, 5, 5] == label * 100


@pytest.mark.parametrize(
    ("splits", "sizes", "source", "warning"),
    [
        ({"train": 6, "test": 6}, (12, 4, 8), "test", "no validation split"),
        ({"train": 6, "validation": 6}, (12, 4, 8), "validation", "no test split"),
        ({"train": 8}, (8, 4, 4), "train", "has seen them"),
    ],
)
def test_missing_splits_are_held_out_with_a_warning(
    tmp_path: Path, caplog, splits, sizes, source, warning
) -> None:
    data = load(make_tree(tmp_path, splits))
    assert isinstance(data, ArrayData)
    assert tuple(data.sizes.values()) == sizes
    assert warning in caplog.text
    assert f"{source} images" in caplog.text
    parts = [colours(data, split) for split in ("validation", "test")]
    if source == "train":
        parts.append(colours(data, "train"))
    # The parts share no image and are together all images of the split they came from.
    together = {colour(c, k) for c in range(2) for k in range(splits[source])}
    assert sum(len(part) for part in parts) == len(together)
    assert set().union(*parts) == together
    assert np.bincount(data.splits["validation"].labels).tolist() == [2, 2]


def test_the_held_out_images_depend_on_the_seed(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 3, "test": 20})
    config = DataConfig(name="imagefolder", root=str(root), batch_size=2, validation_size=8)
    chosen = []
    for seed in (0, 0, 1):
        data = load_data(config, seed)
        assert isinstance(data, ArrayData)
        chosen.append(colours(data, "validation"))
    assert chosen[0] == chosen[1] != chosen[2]


def test_grey_images_get_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    grey = load(make_tree(tmp_path / "grey", {"train": 4, "test": 4}, grey=True))
    assert grey.input_shape == (1, 12, 12)
    root = make_tree(tmp_path / "mixed", {"train": 4, "test": 4})
    first = root / "train" / "cat" / "000.png"
    Image.open(first).convert("L").save(first)
    assert load(root).input_shape == (3, 12, 12)


def test_images_are_resized_where_asked(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 4, "test": 4})
    make_tree(tmp_path, {"val": 4}, size=(20, 10))
    with pytest.raises(InputError, match=r"20x10 pixels among images of|shape of the training"):
        load(root)
    data = load(root, image_size=16)
    assert isinstance(data, ArrayData)
    assert data.input_shape == (3, 16, 16)
    assert colours(data, "validation") == {colour(c, k) for c in range(2) for k in range(4)}


def test_large_images_are_streamed(tmp_path: Path) -> None:
    data = load(
        make_tree(tmp_path, {"train": 4, "val": 3, "test": 2}, size=(90, 70)), image_size=80
    )
    assert isinstance(data, FolderData)
    assert data.input_shape == (3, 80, 80)
    batches = list(data.batches("validation", 4))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 80, 80), (2, 3, 80, 80)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    # A flat image stays its colour, so its normalised value is known exactly.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor(colour(1, 2)) / 255 - mean) / std
    torch.testing.assert_close(batches[1][0][1, :, 40, 40], expected, atol=1e-5, rtol=1e-5)
    assert sum(len(labels) for _, labels in data.batches("validation", 4, limit=5)) == 5


def textured_tree(root: Path) -> Path:
    make_tree(root, {"train": 4, "test": 3}, size=(80, 80))
    random = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        Image.fromarray(random.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    return root


def test_streamed_training_batches_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    root = textured_tree(tmp_path)
    data = load(root, image_size=70)
    assert isinstance(data, FolderData)
    torch.manual_seed(1)
    whole = list(islice(data.train_batches(3, 7), 4))
    torch.manual_seed(2)
    for start in (1, 3):
        images, labels = next(data.train_batches(3, 7, start))
        assert torch.equal(images, whole[start][0])
        assert torch.equal(labels, whole[start][1])
    assert not torch.equal(whole[0][0], next(data.train_batches(3, 8))[0])
    with_workers = load(root, image_size=70, workers=2)
    for got, expected in zip(islice(with_workers.train_batches(3, 7), 3), whole, strict=False):
        assert torch.equal(got[0], expected[0])
    plain = load(root, image_size=70, augment=False)
    assert not torch.equal(next(plain.train_batches(3, 7))[0], whole[0][0])


def test_streaming_can_be_forced_and_survives_pickling(tmp_path: Path) -> None:
    data = load(
        make_tree(tmp_path, {"train": 4, "test": 4}), args={"in_memory": False}, image_size=12
    )
    assert isinstance(data, FolderData)
    expected = next(data.train_batches(4, 0))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(next(copy.train_batches(4, 0))[0], expected[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_also_by_a_worker_process(tmp_path: Path, workers: int) -> None:
    root = textured_tree(tmp_path)
    data = load(root, image_size=70, workers=workers)
    (root / "train" / "dog" / "003.png").write_bytes(b"\x89PNG no")
    with pytest.raises(InputError, match=r"003\.png: cannot be read as an image"):
        list(data.batches("train", 4))


def test_a_part_of_the_training_images_is_balanced(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 10, "test": 4})
    data = load(root, train_fraction=0.4)
    assert isinstance(data, ArrayData)
    assert np.bincount(data.splits["train"].labels).tolist() == [4, 4]


def test_mean_and_std_can_be_given(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 4, "test": 4})
    data = load(root, args={"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]})
    images, labels = next(iter(data.batches("train", 8)))
    assert images[:, 0, 0, 0].tolist() == pytest.approx([x * 100 / 255 for x in labels.tolist()])


def break_tree(root: Path, how: str) -> None:
    if how == "no train":
        (root / "train").rename(root / "training")
    elif how == "empty class":
        for path in (root / "train" / "dog").iterdir():
            path.unlink()
    elif how == "one class":
        for path in root.glob("*/dog"):
            path.rename(root / f"{path.parent.name}_dog")
    elif how == "other classes":
        (root / "test" / "dog").rename(root / "test" / "wolf")
    elif how == "damaged":
        (root / "train" / "cat" / "003.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no train", "no folder `train`"),
        ("empty class", r"dog` has no images"),
        ("one class", "has 1 class folder"),
        ("other classes", "other classes: `dog`, `wolf`"),
        ("damaged", r"003\.png: cannot be read as an image"),
    ],
)
def test_broken_trees_are_refused(tmp_path: Path, how: str, message: str) -> None:
    root = make_tree(tmp_path, {"train": 6, "test": 4})
    break_tree(root, how)
    with pytest.raises(InputError, match=message) as caught:
        load(root)
    assert caught.value.field.startswith("data.root")


def test_more_validation_images_than_there_are_is_refused(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 4, "test": 4})
    with pytest.raises(InputError, match=r"validation_size: got 8, but .* only 8 test images"):
        load(root, validation_size=8)


def write_cifar10(root: Path) -> np.ndarray:
    """The standard archive's files, small."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (6, 20, 3072), dtype=np.uint8)
    labels = list(range(10)) * 2
    for name, part in zip(
        [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"], data, strict=True
    ):
        (folder / name).write_bytes(pickle.dumps({"data": part, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return data


def test_cifar10_is_read_from_its_archive(tmp_path: Path, monkeypatch) -> None:
    from epim_nas.models._torchvision import import_torchvision

    datasets = import_torchvision().datasets
    raw = write_cifar10(tmp_path)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        # Its checksums are those of the real images.
        monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        config = DataConfig(name="cifar10", root=str(root), batch_size=8, validation_size=10)
        data = load_data(config)
        assert isinstance(data, ArrayData)
        assert data.sizes == {"train": 100, "validation": 10, "test": 10}
        assert data.input_shape == (3, 32, 32)
        # Stored as rows of red, green and blue planes.
        np.testing.assert_array_equal(
            data.splits["train"].images[:20], raw[0].reshape(20, 3, 32, 32)
        )


def test_cifar_without_its_files_is_refused_and_a_tree_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not hold CIFAR100.*cifar-100-python"):
        load_data(DataConfig(name="cifar100", root=str(tmp_path)))
    write_cifar10(tmp_path)
    with pytest.raises(InputError, match="its files are damaged"):
        load_data(DataConfig(name="cifar10", root=str(tmp_path)))
    make_tree(tmp_path, {"train": 4, "test": 4})
    config = DataConfig(name="cifar10", root=str(tmp_path), batch_size=4, validation_size=4)
    assert load_data(config).sizes == {"train": 8, "validation": 4, "test": 4}


def test_evaluated_images_are_decoded_once_where_they_fit(tmp_path: Path) -> None:
    root = textured_tree(tmp_path)
    data = load(root, image_size=70)
    assert isinstance(data, FolderData)
    first = [images for images, _ in data.batches("validation", 2)]
    for path in (root / "test").rglob("*.png"):
        path.unlink()
    again = [images for images, _ in data.batches("validation", 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    part, labels = next(iter(data.batches("validation", 100, limit=4)))
    assert labels.tolist() == [0, 0, 1, 1]
    places = [int((torch.cat(first) == image).flatten(1).all(1).nonzero()) for image in part]
    assert places == sorted(set(places))


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_cache_they_are_read_again(tmp_path: Path, workers: int) -> None:
    root = textured_tree(tmp_path)
    data = load(root, image_size=70, workers=workers, args={"cache_mb": 0})
    first = [images for images, _ in data.batches("validation", 2)]
    part = [labels for _, labels in data.batches("validation", 2, limit=2)]
    assert torch.cat(part).tolist() == [0, 1]
    again = [images for images, _ in data.batches("validation", 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    next(iter(data.batches("validation", 2)))  # left before its end: the workers are not stuck
    assert len(list(data.batches("validation", 2))) == 2


def test_what_a_cache_holds_of_a_split_is_what_was_asked_for(tmp_path: Path) -> None:
    """A part does not stand for the whole, nor for another part; the whole serves every part."""
    root = textured_tree(tmp_path)
    plain = load(root, image_size=70, args={"cache_mb": 0})
    data = load(root, image_size=70)
    for limit in (2, 4, None, 4, 2, None):
        got, expected = (torch.cat([x for x, _ in d.batches("validation", 3, limit)])
                         for d in (data, plain))  # fmt: skip
        assert torch.equal(got, expected)


def test_images_and_workers_do_not_travel(tmp_path: Path) -> None:
    data = load(textured_tree(tmp_path), image_size=70, workers=1)
    images, _ = next(iter(data.batches("validation", 3)))
    size = len(pickle.dumps(data))
    list(data.batches("validation", 3))
    assert len(pickle.dumps(data)) == size
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(next(iter(copy.batches("validation", 3)))[0], images)


def test_a_cache_keeps_within_its_limit(tmp_path: Path) -> None:
    data = load(textured_tree(tmp_path), image_size=70)
    assert isinstance(data, FolderData)
    data._cache.limit = 4 * 3 * 70 * 70  # three images in each split: one split fits, not two
    for split in ("validation", "test"):
        list(data.batches(split, 2))
    assert list(data._cache._kept) == ["validation"]


def test_large_photographs_are_decoded_smaller(tmp_path: Path) -> None:
    """A JPEG four times as large as needed, decoded at half its size: nearly the same picture."""
    y, x = np.mgrid[0:1400, 0:1800]
    waves = [127 + 100 * np.sin(x / 90 + y / (70 + 30 * c)) for c in range(3)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            image.save(tmp_path / split / name / "0.jpg", quality=95)
    data = load(
        tmp_path, args={"mean": [0.0] * 3, "std": [1.0] * 3}, validation_size=1, batch_size=2
    )
    found = next(iter(data.batches("validation", 1)))[0]
    small = image.resize((329, 256), Image.Resampling.BILINEAR)
    box = ((329 - 224) // 2, 16, (329 - 224) // 2 + 224, 240)
    expected = torch.from_numpy(np.array(small.crop(box))).permute(2, 0, 1) / 255
    assert (found[0] - expected).abs().mean() < 0.02


def test_images_are_converted_where_asked(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 4, "test": 4}, grey=True)
    assert load(root).input_shape[0] == 1
    assert load(root, args={"mode": "RGB"}).input_shape[0] == 3


@pytest.mark.parametrize("side", [12, 96])
@pytest.mark.parametrize("kind", ["16 bits", "float"])
def test_deep_grey_images_keep_their_levels(tmp_path: Path, side: int, kind: str) -> None:
    root = make_tree(tmp_path, {"train": 2, "val": 2, "test": 2}, size=(side, side), grey=True)
    random = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        deep = random.integers(0, 65536, (side, side), dtype=np.uint16)
        path.unlink()
        if kind == "float":
            Image.fromarray((deep / 65535).astype(np.float32)).save(path.with_suffix(".tif"))
        else:
            Image.fromarray(deep).save(path)
    data = load(root, args={"mean": [0.0], "std": [1.0]}, validation_size=2)
    assert isinstance(data, ArrayData if side == 12 else FolderData)
    assert data.input_shape[0] == 1
    images, _ = next(iter(data.batches("validation", 4)))
    assert images.unique().numel() > 100
    assert abs(images.mean().item() - 0.5) < 0.1


def test_images_of_no_known_range_are_refused_before_anything_starts(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": 4, "test": 4}, size=(96, 96), grey=True)
    path = root / "train" / "dog" / "000.png"
    path.unlink()
    Image.new("I", (96, 96), 70000).save(path.with_suffix(".tif"))
    with pytest.raises(InputError, match=r"000\.tif: .*no range.*mode `I`.*Allowed: 8 or 16 bits"):
        load(root)


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "a.png")
    with pytest.raises(InputError, match=r"a\.png.*they have no labels.*one folder for each class"):
        load(tmp_path)
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(InputError, match="has 0 class folders"):
        load(tmp_path)
