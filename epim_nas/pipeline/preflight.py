"""What a run needs later, checked before its first training, which may take hours."""

from __future__ import annotations

from epim_nas.cluster.connection import probe
from epim_nas.errors import InputError
from epim_nas.models.prepare import trains_on_one_image
from epim_nas.network.batch_norm import following_batch_norms
from epim_nas.pipeline.config import RunConfig, TrainingConfig
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.stages.supernet import needs_workers
from epim_nas.pipeline.workers import check_shares
from epim_nas.supernet.sensitivity import find_method
from epim_nas.supernet.sensitivity.capture import check_batch


def check_trainings(run: Run) -> None:
    """Check the batches of every stage of a search.

    Raises:
        InputError: a stage's batches are too large, too small, or cannot be split.
    """
    config = run.config
    check_single_images(run)
    if config.model.weights is None:
        check_training(run, config.baseline, "baseline")
    if find_method(config.sensitivity.method).normalises and following_batch_norms(run.model):
        check_batch(min(config.sensitivity.batch_size, config.sensitivity.images))
    if config.supernet.steps:
        check_training(run, config.supernet, "supernet")
    if config.finalists.count:
        check_training(run, config.finalists, "finalists")


def check_single_images(run: Run) -> None:
    """Refuse batches of one image for a network whose batch norms cannot be trained on them.

    Raises:
        InputError: naming the batch size.
    """
    config = run.config
    sizes = {
        "data.batch_size": config.data.batch_size,
        "search.batch_size": min(config.search.batch_size, config.search.calibration_images),
        "sensitivity.batch_size": min(config.sensitivity.batch_size, config.sensitivity.images),
    }
    for group in ("baseline", "supernet", "finalists", "finetune"):
        training: TrainingConfig = getattr(config, group)
        size = training.batch_size or config.data.batch_size
        sizes[f"{group}.batch_size"] = size // getattr(training, "accumulation", 1)
    alone = [key for key, size in sizes.items() if size <= 1]
    if alone and not trains_on_one_image(run.model, run.data.input_shape):
        raise InputError(
            alone[0],
            "gives batches of one image, and a batch norm of this network needs more than one "
            "value a channel",
            "at least 2 images",
        )


def check_training(run: Run, training: TrainingConfig, group: str) -> None:
    """Check that a training's batches can be made.

    Args:
        run: the run.
        training: what the run file says.
        group: its key in the run file, for messages.

    Raises:
        InputError: a batch has more images than there are, or fewer than the parts it is split
            into.
    """
    size, images = training.batch_size, run.data.sizes["train"]
    if size is not None and size > images:
        raise InputError(
            f"{group}.batch_size",
            f"got {size}, but there are only {images} training images",
            f"1 to {images}",
            "Use a smaller batch, more images or a larger data.train_fraction.",
        )
    try:
        training.train_config(1, run.config.data.batch_size)
    except InputError as error:
        field = error.field.replace("training.", f"{group}.", 1)
        raise InputError(field, error.problem, error.allowed, error.hint) from None


def check_cluster(config: RunConfig, folder: RunFolder) -> None:
    """Check that a run which needs Ray will have it; nothing is started.

    Raises:
        InputError: Ray is not installed, nothing answers at its address, or the supernet's workers
            cannot share its batches.
    """
    if needs_workers(config.supernet, folder):
        check_workers(config, config.supernet, config.supernet.workers, "supernet.workers")
    if config.executor.kind == "ray":  # the finalists as well
        probe(config.executor.address, "the Ray executor")


def check_workers(config: RunConfig, training: TrainingConfig, workers: int, field: str) -> None:
    """Check that several workers can be had for a training, and can share its batches.

    Args:
        config: the run file.
        training: its group for the training.
        workers: how many.
        field: what sets their number, for messages.

    Raises:
        InputError: not evenly; or Ray is not installed, or nothing answers at its address.
    """
    check_shares(training.batch_size or config.data.batch_size, workers, field)
    probe(config.executor.address, "training on several workers")
