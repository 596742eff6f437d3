from __future__ import annotations

import gzip
import importlib.util
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from epim_nas.data import fashion_mnist as module
from epim_nas.data.fashion_mnist import (
    IDX_FILES,
    SYSTEM_FOLDERS,
    fashion_mnist,
    fashion_mnist_subset,
    find_idx_files,
    load_subset,
    subset_path,
)
from epim_nas.data.idx import read_idx
from epim_nas.errors import InputError

FULL = next((f for f in SYSTEM_FOLDERS if f.is_dir()), None)
needs_full_set = pytest.mark.skipif(FULL is None, reason="the full Fashion-MNIST is not installed")


def test_the_shipped_subset_is_balanced_and_its_splits_are_disjoint(caplog) -> None:
    caplog.set_level("INFO")
    data = fashion_mnist_subset()
    assert data.sizes == {"train": 10_000, "validation": 2_000, "test": 2_000}
    assert data.input_shape == (1, 28, 28)
    assert "subset that ships with epim_nas" in caplog.text
    for split, n in data.sizes.items():
        assert np.bincount(data.splits[split].labels).tolist() == [n // 10] * 10
    arrays = load_subset(str(subset_path()))
    train, validation = arrays["train_indices"], arrays["validation_indices"]
    assert not set(train.tolist()) & set(validation.tolist())
    assert len(set(train.tolist())) == 10_000
    assert validation.max() < 60_000
    assert arrays["test_indices"].max() < 10_000


def test_subset_images_are_normalised_to_about_zero_mean_and_unit_variance() -> None:
    images = torch.cat([x for x, _ in fashion_mnist_subset().batches("train", 1000)])
    assert abs(images.mean().item()) < 0.02
    assert abs(images.std().item() - 1) < 0.02


def test_a_damaged_shipped_file_is_noticed(tmp_path: Path) -> None:
    damaged = bytearray(subset_path().read_bytes())
    damaged[1000] ^= 1
    copy = tmp_path / "subset.npz.xz"
    copy.write_bytes(damaged)
    with pytest.raises(InputError, match=r"is damaged: its SHA-256"):
        load_subset(str(copy))
    with pytest.raises(InputError, match="cannot be read"):
        load_subset(str(tmp_path / "absent"))


@needs_full_set
def test_the_full_set_keeps_the_subsets_validation_images_out_of_training() -> None:
    data = fashion_mnist()
    assert data.sizes == {"train": 58_000, "validation": 2_000, "test": 10_000}
    arrays = load_subset(str(subset_path()))
    np.testing.assert_array_equal(
        data.splits["validation"].images[:, 0], arrays["validation_images"]
    )
    assert FULL is not None
    original = read_idx(FULL / "train-labels-idx1-ubyte.gz")
    rest = np.delete(original, arrays["validation_indices"])
    np.testing.assert_array_equal(data.splits["train"].labels, rest)


@needs_full_set
def test_the_script_rebuilds_the_shipped_subset() -> None:
    path = Path(__file__).parents[2] / "scripts" / "make_fashion_subset.py"
    spec = importlib.util.spec_from_file_location("make_fashion_subset", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    built, shipped = script.build(FULL), load_subset(str(subset_path()))
    assert set(built) == set(shipped)
    for name, array in built.items():
        np.testing.assert_array_equal(array, shipped[name], err_msg=name)
        assert array.dtype == shipped[name].dtype


@needs_full_set
def test_idx_files_are_found_plain_and_compressed_and_in_torchvisions_folder(tmp_path) -> None:
    assert find_idx_files(tmp_path) is None
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for number, name in enumerate(IDX_FILES):
        source = FULL / f"{name}.gz"
        if number % 2:
            shutil.copy(source, raw)
        else:
            (raw / name).write_bytes(gzip.decompress(source.read_bytes()))
    assert find_idx_files(tmp_path) == raw
    assert fashion_mnist(tmp_path).sizes["train"] == 58_000


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_another_data_set_in_idx_files_is_refused(tmp_path: Path) -> None:
    for name in IDX_FILES:
        n = 60_000 if name.startswith("train") else 100
        shape = (n, 28, 28) if "images" in name else (n,)
        write_idx(tmp_path / name, np.zeros(shape))
    with pytest.raises(InputError, match="not those of Fashion-MNIST"):
        fashion_mnist(tmp_path)


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match=r"cannot be downloaded.*fashion_mnist_subset"):
        fashion_mnist(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        fashion_mnist(tmp_path / "file")


def test_a_download_with_the_wrong_checksum_is_refused(tmp_path: Path, monkeypatch) -> None:
    class Response:
        def __enter__(self) -> Response:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self) -> bytes:
            return b"not the file"

    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: Response())
    with pytest.raises(InputError, match="what came has the MD5"):
        fashion_mnist(tmp_path)
    assert not list(tmp_path.iterdir())


def test_idx_files_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "a"
    write_idx(path, array)
    np.testing.assert_array_equal(read_idx(path), array)
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_idx(packed), array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        read_idx(path)
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match="not an idx file"):
        read_idx(path)
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(packed)
    with pytest.raises(InputError, match="no such file"):
        read_idx(tmp_path / "absent")
