"""How fast images of a folder arrive, against torchvision's own input.

The peer is `torchvision.datasets.ImageFolder` with the same transforms, read by a `DataLoader` with
as many workers. Both read the same JPEG files, in turn within a round; printed are ratios of images
a second (ours to the peer's; above 1 is faster), the median over the rounds and their range.

    train        the augmented training stream
    first pass   the validation images, centre-cropped, workers starting
    next passes  the same again, as a search does for every design

    OMP_NUM_THREADS=1 python benchmarks/data_input.py [--root FOLDER] [--workers 1]

Without `--root`, it makes JPEG files of 500x375 pixels from the images that ship with the package,
coloured and with texture, since flat ones would be decoded too fast.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from epim_nas.data.arrays import ArrayData
from epim_nas.data.base import Batch, Data
from epim_nas.data.config import DataConfig
from epim_nas.data.registry import load_data
from epim_nas.data.torchvision_data import IMAGENET_MEAN, IMAGENET_STD
from epim_nas.models._torchvision import import_torchvision

BATCH = 32


def make_tree(root: Path, images: int) -> None:
    """Photo-like JPEG files of the shipped images."""
    from PIL import Image

    data = load_data(DataConfig(name="fashion_mnist_subset"))
    assert isinstance(data, ArrayData)
    random = np.random.default_rng(0)
    for split, part in (("train", "train"), ("val", "validation"), ("test", "test")):
        source = data.splits[part]
        for number in range(images):
            grey = Image.fromarray(source.images[number, 0]).resize((500, 375))
            tint = random.uniform(0.3, 1.0, 3)
            noise = random.normal(0, 12, (375, 500, 3))
            pixels = np.clip(np.asarray(grey)[..., None] * tint + noise, 0, 255)
            folder = root / split / str(source.labels[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def rate(batches: Iterable[Batch], images: int) -> float:
    """Images a second over the first so many images."""
    started, seen = time.perf_counter(), 0
    for x, _ in batches:
        seen += len(x)
        if seen >= images:
            break
    return seen / (time.perf_counter() - started)


def peer(root: Path, split: str, workers: int) -> Iterable[Batch]:
    """torchvision's way."""
    vision = import_torchvision("the comparison")
    transforms, train = vision.transforms, split == "train"
    steps = (
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        if train
        else [transforms.Resize(256), transforms.CenterCrop(224)]
    )
    ending = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    folder = vision.datasets.ImageFolder(root / split, transforms.Compose([*steps, *ending]))
    loader: Iterable[Batch] = torch.utils.data.DataLoader(
        folder, BATCH, shuffle=train, num_workers=workers
    )
    return loader


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    """One line."""
    ratios = [ours / theirs for ours, theirs in pairs]
    print(
        f"{name:12} {np.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True
    )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description="Speed of reading image folders.")
    parser.add_argument("--root", type=Path, help="folder with train/, val/ and test/")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--images", type=int, default=320, help="images of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary)
        if arguments.root is None:
            make_tree(root, arguments.images)
        workers, images = arguments.workers, arguments.images

        def fresh() -> Data:
            config = DataConfig(
                name="imagefolder", root=str(root), workers=workers, batch_size=BATCH,
                validation_size=1,
            )  # fmt: skip
            return load_data(config)

        def validation(data: Data) -> Iterable[Batch]:
            return data.batches("validation", BATCH, images)

        found: dict[str, list[tuple[float, float]]] = {"train": [], "first pass": [], "next": []}
        kinds: list[tuple[str, str, Callable[[Data], Iterable[Batch]]]] = [
            ("train", "train", lambda data: islice(data.train_batches(BATCH, 0), 10**6)),
            ("first pass", "val", validation),
        ]
        for _ in range(arguments.rounds):
            gc.collect()  # abandoned readers, before new worker processes inherit them
            data = fresh()
            for name, split, stream in kinds:
                theirs = rate(peer(root, split, workers), images)
                found[name].append((rate(stream(data), images), theirs))
            found["next"].append((rate(validation(data), images), found["first pass"][-1][1]))
        print(f"{workers} workers, {images} images, ours / torchvision's")
        for name, pairs in found.items():
            report(name, pairs)


if __name__ == "__main__":
    main()
