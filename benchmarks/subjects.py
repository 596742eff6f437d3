"""The trained networks and the images that the studies here look at."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from epim_nas.data.base import Data
from epim_nas.data.config import DataConfig
from epim_nas.data.registry import load_data
from epim_nas.files import digest, file_digest
from epim_nas.models.registry import build_model
from epim_nas.models.resnet_cifar import CifarResNet
from epim_nas.models.weights import load_weights, save_weights
from epim_nas.supernet.training import TrainConfig, train

SHIPPED = "fashion_mnist_subset"
DATA_SETS = (SHIPPED, "fashion_mnist")
"""Data sets that the shipped weights fit; the full one is downloaded unless it is there."""
_NORMALISATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Source:
    """Where images and weights come from.

    Attributes:
        images: folder with train/ and test/, or one of the package's data sets by name.
        weights: weights of a ResNet-20 for them, fine-tuned on them before anything is measured.
            The shipped ones for the data sets that they were trained for.
        cache: folder that keeps trained networks and results; one for each set of images.
    """

    images: str
    weights: Path | None
    cache: Path

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, cache: str) -> None:
        """The options of a script that takes a source."""
        parser.add_argument(
            "--images", default=SHIPPED, help="image folder with train/ and test/, or a data set"
        )
        parser.add_argument("--weights", type=Path, help="weights of a ResNet-20 for them")
        parser.add_argument("--cache", type=Path, default=Path(cache))

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Source:
        """The source that the options name."""
        images, name = arguments.images, arguments.images
        if images not in DATA_SETS:
            # Stored run files name it, and two folders may have one name.
            images = str(Path(images).resolve())
            name = f"{Path(images).name}-{digest(images)[:6]}"
        return cls(images, arguments.weights, arguments.cache / name)

    @property
    def config(self) -> DataConfig:
        """The data group of a run file."""
        if self.images in DATA_SETS:
            return DataConfig(name=self.images)
        return DataConfig(name="imagefolder", root=self.images, args=_NORMALISATION)

    def data(self) -> Data:
        """The images."""
        return load_data(self.config)

    def network(self, name: str, data: Data) -> nn.Module:
        """A trained network."""
        return NETWORKS[name](data, self).eval()


def resnet20(data: Data, source: Source) -> nn.Module:
    """The trained ResNet-20; beyond the shipped images, given weights are fine-tuned 1500 steps."""
    model = build_model("resnet20", in_channels=data.input_shape[0], num_classes=data.num_classes)
    if source.images in DATA_SETS:
        load_weights(model, "fashion_mnist_resnet20")
    if source.images == SHIPPED:
        return model
    file, config = source.cache / "resnet20.safetensors", TrainConfig(1500, 128, lr=0.01)
    if source.weights is not None:
        load_weights(model, source.weights)
        file = file.with_stem(f"resnet20-{file_digest(source.weights)[:8]}")
    elif source.images not in DATA_SETS:
        config = TrainConfig(6000, 128, lr=0.1, warmup=0.05)
    return _cached(model, data, config, file)


def resnet8_wide(data: Data, source: Source) -> nn.Module:
    """A ResNet-8 of 64, 128 and 256 channels, its first convolution with stride 2."""
    torch.manual_seed(0)
    model = CifarResNet(1, data.input_shape[0], data.num_classes, width=64)
    model.conv1.stride = (2, 2)
    config = TrainConfig(2400, 128, lr=0.1, warmup=0.05)
    return _cached(model, data, config, source.cache / "resnet8_wide.safetensors")


NETWORKS = {"resnet20": resnet20, "resnet8_wide": resnet8_wide}


def _cached(model: nn.Module, data: Data, config: TrainConfig, file: Path) -> nn.Module:
    """The model with the weights of a file, or trained and written to it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        train(model, data, config, device="cpu", checkpoint=file.with_suffix(".state"))
        save_weights(model, file)
    load_weights(model, file)
    return model
