"""The sensitivity table."""

from __future__ import annotations

from pathlib import Path

from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.space.space import SearchSpace
from epim_nas.supernet.evaluation import resolve_device
from epim_nas.supernet.sensitivity import Table, find_method, measure_table
from epim_nas.supernet.supernet import Supernet


def measure_sensitivity(run: Run, supernet: Supernet) -> Table:
    """The sensitivity table, from the folder if it is there."""
    config = run.config
    settings = config.sensitivity
    size = min(settings.batch_size, settings.images)
    batches = run.data.calibration_batches(settings.images, size, config.seed + 1)
    total = len(batches) * len(supernet.layers)
    with run.stage("sensitivity", "Sensitivity", total) as advance:
        return measure_table(
            supernet,
            batches,
            find_method(settings.method),
            draws=settings.draws,
            device=resolve_device(config.device),
            seed=config.seed,
            checkpoint=sensitivity_file(run.folder, settings.method, supernet.space),
            progress=lambda done, _: advance(done, ""),
        )


def sensitivity_file(folder: RunFolder, method: str, space: SearchSpace) -> Path:
    """Where the table of a space is kept; it serves every budget."""
    return folder.checkpoints / f"sensitivity-{method}-{space.digest[:12]}.npz"
