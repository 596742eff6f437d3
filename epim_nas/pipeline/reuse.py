"""What a run takes from another run of the same network: another budget then costs little."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from epim_nas.errors import InputError
from epim_nas.files import user_path
from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.folder import RunFolder
from epim_nas.stored import check_stored, store_path

log = logging.getLogger(__name__)

_BASELINE_DEPENDS_ON = ("seed", "model", "data", "baseline", "precision")


def take_over(config: RunConfig, folder: RunFolder) -> list[str]:
    """Copy the finished stages of ``config.reuse`` that the run has not computed itself.

    These are the trained baseline, where it would be trained in the same way, the orders of aligned
    channels and the sensitivity tables. The latter two say what they belong to: a run measures
    again what does not fit it.

    Returns:
        The names of the files that were copied.

    Raises:
        InputError: ``config.reuse`` is not a run folder.
    """
    if config.reuse is None:
        return []
    source = RunFolder(user_path(config.reuse, "reuse"))
    if not source.config.is_file():
        raise InputError(
            "reuse", f"`{config.reuse}` is not a run folder", "the --out folder of another search"
        )
    patterns = ["alignment-*/*.npz", "sensitivity-*.npz"]
    other = source.load_config()
    if config.model.weights is None and all(
        getattr(other, name) == getattr(config, name) for name in _BASELINE_DEPENDS_ON
    ):
        patterns.append("baseline.safetensors")
    taken = []
    for pattern in patterns:
        for file in sorted(source.checkpoints.glob(pattern)):
            name = file.relative_to(source.checkpoints)
            target = folder.checkpoints / name
            if not target.exists() and _is_intact(file, source.path):
                with store_path(target) as temporary:
                    shutil.copyfile(file, temporary)
                taken.append(str(name))
    if taken:
        log.info("taken over from %s: %s", source.path, ", ".join(taken))
    return taken


def _is_intact(file: Path, folder: Path) -> bool:
    """Whether a file can be taken over; the run computes what cannot."""
    try:
        check_stored(file, folder=folder)
    except InputError as error:
        log.warning("not taken over: %s", error)
        return False
    return True
