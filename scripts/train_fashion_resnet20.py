"""Train the checkpoint that ships with epim_nas: ResNet-20 on Fashion-MNIST.

It is trained on the 58,000 images that are left of the original training set without the 2,000
validation images of the shipped subset, with random crops and flips. The network of the last step
is taken, whatever its validation accuracy, so that the validation images stay unseen. Run it as

    python scripts/train_fashion_resnet20.py [--epochs N] [--root FOLDER] [--out FILE]

The same command goes on with an interrupted training. On a CPU the same seed, number of threads and
version of torch give the same weights.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch

from epim_nas.data.fashion_mnist import fashion_mnist, fashion_mnist_subset
from epim_nas.models.registry import build_model
from epim_nas.models.weights import save_weights
from epim_nas.supernet.evaluation import evaluate
from epim_nas.supernet.training import TrainConfig, train

NAME = "fashion_mnist_resnet20"
WEIGHTS = Path(__file__).parents[1] / "epim_nas" / "models" / "weights" / f"{NAME}.safetensors"


def main() -> None:
    """Train, evaluate, write the weights and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="folder with the idx files (default: system's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("runs") / NAME / "checkpoint.pt", help="to resume"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    data = fashion_mnist(arguments.root)
    torch.manual_seed(arguments.seed)
    model = build_model("resnet20", in_channels=1, num_classes=data.num_classes)
    batch_size = 128
    steps = arguments.epochs * (data.sizes["train"] // batch_size)
    config = TrainConfig(steps, batch_size, lr=0.1, weight_decay=5e-4, warmup=0.05)

    started = time.monotonic()
    first_step: list[int] = []

    def progress(step: int, loss: float) -> None:
        if not first_step:
            first_step.append(step)
        if step % 50 == 0 or step == steps:
            done = step - first_step[0] + 1
            ms_per_step = (time.monotonic() - started) / done * 1e3
            logging.info("step %d of %d: loss %.3f, %.0f ms/step", step, steps, loss, ms_per_step)

    result = train(
        model,
        data,
        config,
        seed=arguments.seed,
        device=arguments.device,
        precision="float32",
        checkpoint=arguments.checkpoint,
        checkpoint_every=100,
        progress=progress,
    )
    scores = {
        "validation": evaluate(
            model, data.batches("validation", 250), arguments.device, precision="float32"
        ),
        "test": evaluate(model, data.batches("test", 250), arguments.device, precision="float32"),
        "subset_test": evaluate(
            model,
            fashion_mnist_subset().batches("test", 250),
            arguments.device,
            precision="float32",
        ),
    }
    metadata = {
        "model": "resnet20",
        "in_channels": 1,
        "num_classes": data.num_classes,
        "data": "Fashion-MNIST: the 58,000 training images outside the subset's validation split",
        "script": "scripts/train_fashion_resnet20.py",
        "steps": result.steps,
        "batch_size": batch_size,
        "seed": arguments.seed,
        "torch": torch.__version__,
        **{f"{name}_accuracy": f"{score.accuracy:.4f}" for name, score in scores.items()},
    }
    save_weights(model, arguments.out, metadata)
    for name, score in scores.items():
        print(f"{name}: top-1 {score.accuracy:.2%} of {score.images} images")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
