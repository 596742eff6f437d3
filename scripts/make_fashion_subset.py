"""Build the Fashion-MNIST subset that ships with epim_nas from the original idx files.

The choice is seeded and has the same number of images of each class in each split:

- validation: 2,000 images of the original training set,
- train: 10,000 of its other 58,000 images,
- test: 2,000 images of the original test set.

The places of all images in the original files are recorded, so that a training on the full set can
leave the validation images out. Run it as

    python scripts/make_fashion_subset.py [--root FOLDER] [--out FILE]

The arrays are the same each time; the compressed bytes may depend on the versions of NumPy and
liblzma, so the SHA-256 in epim_nas/data/fashion_mnist.py has to be updated with the file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.data.arrays import balanced_indices
from epim_nas.data.fashion_mnist import IDX_FILES, find_idx_files, subset_path
from epim_nas.data.idx import read_idx
from epim_nas.files import atomic_path

SEED = 0
SIZES = {"train": 10_000, "validation": 2_000, "test": 2_000}


def build(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of the subset, from the idx files in ``folder``."""
    idx = {}
    for name in IDX_FILES:
        path = folder / name
        idx[name] = read_idx(path if path.is_file() else folder / f"{name}.gz")
    train_labels, test_labels = idx["train-labels-idx1-ubyte"], idx["t10k-labels-idx1-ubyte"]
    validation = balanced_indices(train_labels, SIZES["validation"], SEED, "validation")
    rest = np.setdiff1d(np.arange(len(train_labels)), validation)
    train = rest[balanced_indices(train_labels[rest], SIZES["train"], SEED, "train")]
    test = balanced_indices(test_labels, SIZES["test"], SEED, "test")
    arrays = {}
    for split, source, indices in (
        ("train", "train", train),
        ("validation", "train", validation),
        ("test", "t10k", test),
    ):
        arrays[f"{split}_images"] = idx[f"{source}-images-idx3-ubyte"][indices]
        arrays[f"{split}_labels"] = idx[f"{source}-labels-idx1-ubyte"][indices]
        arrays[f"{split}_indices"] = indices.astype(np.uint16)
    return arrays


def main() -> None:
    """Write the file and print its size and SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, help="folder with the idx files (default: system's)")
    parser.add_argument("--out", type=Path, default=subset_path())
    arguments = parser.parse_args()
    folder = find_idx_files(arguments.root)
    if folder is None:
        parser.error(f"no idx files in {arguments.root or 'the system folders'}; give --root")
    buffer = io.BytesIO()
    np.savez(buffer, **build(folder))
    # xz is 14 % smaller than the deflate of a compressed npz on these images.
    content = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    with atomic_path(arguments.out) as temporary:
        temporary.write_bytes(content)
    print(f"{arguments.out}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
