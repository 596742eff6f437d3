from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.data.arrays import ArrayData, Images, balanced_indices, crop_and_flip, limited, resize
from epim_nas.data.base import generator, seed_of, shuffled_indices
from epim_nas.errors import InputError


def images(n: int, channels: int = 3, size: int = 8, classes: int = 4, seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    return Images(
        random.integers(0, 256, (n, channels, size, size), dtype=np.uint8),
        np.arange(n, dtype=np.int64) % classes,
    )


def array_data(n_train: int = 50, channels: int = 3, augment: bool = True) -> ArrayData:
    splits = {
        "train": images(n_train, channels),
        "validation": images(10, channels, seed=1),
        "test": images(7, channels, seed=2),
    }
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.3][:channels]
    return ArrayData("made", splits, num_classes=4, mean=mean, std=std, augment=augment)


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 3))
def test_a_batch_depends_on_seed_and_step_alone(batch_size: int, start: int, seed: int) -> None:
    data = array_data(60)
    whole = list(islice(data.train_batches(batch_size, seed), start + 3))
    rest = list(islice(data.train_batches(batch_size, seed, start), 3))
    for (image_a, label_a), (image_b, label_b) in zip(whole[start:], rest, strict=True):
        assert torch.equal(image_a, image_b)
        assert torch.equal(label_a, label_b)


def test_batches_differ_between_seeds_steps_and_epochs() -> None:
    data = array_data(16)
    first, second = islice(data.train_batches(16, 0), 2)
    other = next(data.train_batches(16, 1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_each_epoch_is_a_permutation(n: int, batch_size: int, seed: int) -> None:
    if batch_size > n:
        with pytest.raises(InputError, match="training images"):
            next(shuffled_indices(n, batch_size, seed))
        return
    steps = n // batch_size
    for epoch in islice(zip(*[shuffled_indices(n, batch_size, seed)] * steps, strict=True), 2):
        seen = torch.cat(epoch).tolist()
        assert len(set(seen)) == steps * batch_size
        assert set(seen) <= set(range(n))


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 1000))
def test_crop_and_flip_equals_one_image_at_a_time(n: int, padding: int, seed: int) -> None:
    batch = torch.from_numpy(images(n, size=6, seed=seed).images)
    got = crop_and_flip(batch, padding, generator(seed))
    # The same random numbers, applied by plain indexing.
    random = generator(seed)
    flips = torch.rand(n, generator=random) < 0.5
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, n), generator=random)
    for i in range(n):
        padded = np.pad(batch[i].numpy(), ((0, 0), (padding, padding), (padding, padding)))
        window = padded[:, tops[i] : tops[i] + 6, lefts[i] : lefts[i] + 6]
        expected = window[:, :, ::-1] if flips[i] else window
        np.testing.assert_array_equal(got[i].numpy(), expected)


def test_augmentation_reaches_every_shift_and_both_flips() -> None:
    # One bright pixel at the centre shows where an image went.
    batch = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    batch[:, :, 2, 1] = 255
    got = crop_and_flip(batch, 1, generator(0))
    rows, columns = got[:, 0].flatten(1).argmax(1) // 5, got[:, 0].flatten(1).argmax(1) % 5
    counts = torch.bincount(rows * 5 + columns, minlength=25).view(5, 5)
    # Unflipped the pixel moves over columns 0..2, flipped over 2..4; rows 1..3 either way.
    expected = torch.zeros(5, 5)
    expected[1:4, :] = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]) * 4000 / 18
    assert (counts[expected == 0] == 0).all()
    assert ((counts - expected).abs() < 5 * expected.clamp(min=1).sqrt()).all()


def test_padding_is_black_and_not_the_mean_colour() -> None:
    white = Images(np.full((64, 1, 16, 16), 255, np.uint8), np.arange(64) % 2)
    data = ArrayData(
        "white",
        {"train": white, "validation": white, "test": white},
        num_classes=2,
        mean=[0.5],
        std=[0.25],
    )
    values = next(data.train_batches(64, 0))[0].unique()
    assert values.tolist() == pytest.approx([-2.0, 2.0])  # (0 - .5) / .25 and (1 - .5) / .25


def test_evaluation_batches_are_plain_normalised_and_in_order() -> None:
    data = array_data()
    batches = list(data.batches("validation", 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    got = torch.cat([image for image, _ in batches]).numpy()
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    raw = images(10, seed=1).images / 255
    expected = (raw - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].dtype == torch.int64
    assert torch.cat([label for _, label in batches]).tolist() == [i % 4 for i in range(10)]
    assert sum(len(labels) for _, labels in data.batches("test", 4, limit=5)) == 5
    assert sum(len(labels) for _, labels in data.batches("test", 4, limit=500)) == 7


def test_a_limit_leaves_images_of_every_class() -> None:
    """Images are often in the order of their classes."""
    labels = np.repeat([0, 1, 2, 5], [50, 50, 50, 3])
    for limit in (4, 30, 152):
        chosen = limited(labels, limit)
        assert len(chosen) == limit
        assert (np.diff(chosen) > 0).all()
        counts = np.bincount(labels[chosen], minlength=6)[[0, 1, 2, 5]]
        assert counts[:3].max() - counts[:3].min() <= 1
        assert counts[3] in (min(3, counts[0]), min(3, counts[0] - 1))
        np.testing.assert_array_equal(chosen, limited(labels, limit))
    np.testing.assert_array_equal(limited(labels, 153), np.arange(153))
    data = array_data()
    ((images, classes),) = data.batches("validation", 100, limit=4)
    assert sorted(classes.tolist()) == [0, 1, 2, 3]
    ((everything, _),) = data.batches("validation", 100)
    assert all((everything == image).flatten(1).all(1).any() for image in images)


def test_calibration_batches_are_the_first_augmented_training_batches() -> None:
    data = array_data(50)
    got = data.calibration_batches(30, 12, seed=3)
    assert [len(labels) for _, labels in got] == [12, 12, 12]
    for (image, _), (expected, _) in zip(got, data.train_batches(12, 3), strict=False):
        assert torch.equal(image, expected)
    plain = array_data(50, augment=False)
    assert not torch.equal(got[0][0], plain.calibration_batches(30, 12, seed=3)[0][0])
    assert [len(y) for _, y in data.calibration_batches(10_000, 128)] == [50]
    with pytest.raises(InputError, match="n_images"):
        data.calibration_batches(0, 10)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_balanced_choice_is_as_even_as_the_labels_allow(labels: list[int], draw: st.DataObject):
    array = np.array(labels)
    n = draw.draw(st.integers(1, len(labels)))
    chosen = balanced_indices(array, n, 0, "test")
    assert len(set(chosen.tolist())) == n
    taken = np.bincount(array[chosen], minlength=5)
    available = np.bincount(array, minlength=5)
    # A class has fewer images than another only where it has no more (or by one, at the end).
    for a in range(5):
        assert taken[a] == available[a] or taken[a] >= taken.max() - 1
    again = balanced_indices(array, n, 0, "test")
    np.testing.assert_array_equal(chosen, again)


def test_train_fraction_normalisation_and_size_can_be_changed() -> None:
    data = array_data(40)
    half = data.with_train_fraction(0.5, seed=1)
    assert half.sizes == {"train": 20, "validation": 10, "test": 7}
    assert np.bincount(half.splits["train"].labels).tolist() == [5, 5, 5, 5]
    other = data.normalised_by([0, 0, 0], [1, 1, 1])
    assert next(iter(other.batches("test", 7)))[0].max() <= 1
    big = data.resized(16)
    assert big.input_shape == (3, 16, 16)
    assert big.crop_padding == 2


def test_resize_keeps_flat_images_and_means() -> None:
    flat = np.full((2, 1, 6, 6), 77, np.uint8)
    assert (resize(flat, 9) == 77).all()
    raw = images(5, size=8).images
    assert resize(raw, 8) is raw
    np.testing.assert_allclose(resize(raw, 4).mean((2, 3)), raw.mean((2, 3)), atol=6)


def test_streams_of_different_purpose_have_different_seeds() -> None:
    parts = [("order", 0, 1), ("augment", 0, 1), ("order", 1, 0), ("order", 0, 0), ("order", 0, 10)]
    assert len({seed_of(*part) for part in parts}) == len(parts)
    assert all(0 <= seed_of(*part) < 2**63 for part in parts)


BAD = [
    ({"train": Images(np.zeros((4, 3, 8, 8), np.float32), np.arange(4))}, {}, "uint8"),
    ({"test": images(0)}, {}, "no images"),
    ({"test": images(5, size=9)}, {}, "image_size"),
    ({"test": images(5, channels=1)}, {}, "shape of the training images"),
    ({"test": Images(images(5).images, np.arange(4))}, {}, "5 images but 4 labels"),
    ({}, {"num_classes": 3}, "labels from 0 to 3"),
    ({}, {"num_classes": 1}, "at least 2 classes"),
    ({}, {"mean": [0.5]}, "3 channels"),
    ({}, {"std": [0.5, 0.5, 0.0]}, "greater than 0"),
]


@pytest.mark.parametrize(("splits", "options", "message"), BAD)
def test_images_that_do_not_fit_are_refused(splits, options, message) -> None:
    good = {name: images(8) for name in ("train", "validation", "test")}
    arguments = {"num_classes": 4, "mean": [0.5] * 3, "std": [0.5] * 3, **options}
    with pytest.raises(InputError, match=message):
        ArrayData("bad", {**good, **splits}, **arguments)


def test_an_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean `validation`"):
        list(array_data().batches("validaton", 4))  # type: ignore[arg-type]
