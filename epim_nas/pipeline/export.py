"""The artefacts of one design of a run."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from epim_nas.data.geometry import data_geometry
from epim_nas.data.registry import load_data
from epim_nas.datapath.stored import stored_layers
from epim_nas.epitome.convert import apply_design
from epim_nas.epitome.design import Design
from epim_nas.errors import Inexpressible, InputError
from epim_nas.export.datapath import export_datapath
from epim_nas.export.design import export_design
from epim_nas.export.manifest import (
    DESIGN_KEY,
    WEIGHTS_KEY,
    check_same_design,
    design_digest,
    write_manifest,
)
from epim_nas.export.mnsim import MNSIM_FILE, export_mnsim
from epim_nas.export.onnx import export_both_forms
from epim_nas.export.verification import DATAPATH, check_epitomes
from epim_nas.export.weights import WEIGHTS, export_weights, weights_digest
from epim_nas.files import make_folder
from epim_nas.hardware.chip import Chip
from epim_nas.imports import warn_of_import
from epim_nas.models.prepare import initialise
from epim_nas.models.registry import LIBRARIES, build_model, without_downloads
from epim_nas.models.weights import load_state, read_state
from epim_nas.network.spec import Network
from epim_nas.network.yaml_io import load_network
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import (
    best_number,
    finalist_of,
    find_trial,
    full_design,
    load_cost_model,
    load_result,
)

log = logging.getLogger(__name__)


def export_trial(
    folder: RunFolder, which: str, what: str, out: Path, weights: Path | None = None
) -> list[Path]:
    """Write the artefacts of one design into a folder, offline, from what is stored.

    Args:
        folder: the run.
        which: a selection's name or a trial's number.
        what: ``design``, ``weights``, ``onnx``, ``mnsim``, ``datapath`` or ``all``; of all, what
            cannot be written (a package is missing, or MNSIM has no such layers) is left out, with
            a warning.
        out: where to write.
        weights: epitomes of the design, such as ``epim-nas finetune`` writes; by default those of
            the finalist.

    Returns:
        The files (of the datapath its index), a manifest with the digests of all last. The
        datapath of a design that was not fine-tuned has no cells: it has no weights of its own.

    Raises:
        InputError: no such trial, weights of a design that was not fine-tuned, or of another
            design.
    """
    result = load_result(folder)
    record = find_trial(result, which)
    cost = load_cost_model(folder)
    design = full_design(result, record, cost)
    finalist = finalist_of(result, record.number)
    if what in ("weights", "onnx", "all") and finalist is None and weights is None:
        tuned = ", ".join(str(f.number) for f in result.finalists) or "none"
        file = folder.designs / f"trial-{record.number:04d}.yaml"
        raise InputError(
            f"--select {which}",
            f"trial {record.number} was not fine-tuned, so there are no weights of its own",
            f"a fine-tuned trial: {tuned}; or `--to design`, `mnsim` or `datapath`",
            f"Train it with `epim-nas finetune {shlex.quote(str(file))} "
            f"--run {shlex.quote(str(folder.config))}`.",
        )
    network = folder.read(folder.network, load_network)
    state = None if finalist is None else read_state(folder.path / finalist.weights)
    if weights is not None:
        state = read_state(weights)
        check_epitomes(state, design, f"--weights {weights}")
    make_folder(out, "--out")
    check_same_design(out, design, "--out")
    model = None
    if state is not None and (weights is not None or what in ("onnx", "all")):
        # Also where it is not exported: do all of the given weights fit?
        model = _trained(folder, network, cost.chip, design, state)
    made_of = {}
    if state is not None and what in ("onnx", "datapath", "all"):
        made_of[WEIGHTS_KEY] = weights_digest(state)
    files: list[Path] = []
    if what in ("design", "all"):
        files += export_design(design, out, network, cost=cost.evaluate(record.design))
    if state is not None and what in ("weights", "all"):
        path = out / WEIGHTS
        export_weights(state, path, metadata={"run": result.name, "trial": str(record.number)})
        files.append(path)
    if model is not None and what in ("onnx", "all"):
        kept = {DESIGN_KEY: design_digest(design), **made_of}
        files += _wanted(what, partial(export_both_forms, model, network.input_shape, out, kept))
    if what in ("mnsim", "all"):
        files += _wanted(what, lambda: [export_mnsim(design, network, cost.chip, out / MNSIM_FILE)])
    if what in ("datapath", "all"):
        quantization = folder.load_config().quantization.on(cost.chip)
        stored = None if state is None else stored_layers(network, design, state, quantization)
        # Of the many files the index stands for all.
        files += export_datapath(
            design, network, cost.chip, out / DATAPATH, stored, made_of.get(WEIGHTS_KEY)
        )[:1]
    details = {"run": result.name, "trial": record.number}
    files.append(write_manifest(out, design, details))
    return files


def trained_model(folder: str | Path, which: str | int | None = None) -> nn.Module:
    """The network of a fine-tuned design of a run, with its weights, on the CPU.

    Args:
        folder: the run folder.
        which: a selection's name or a trial's number; that of ``best.yaml`` by default
            (:func:`~epim_nas.solver.pareto.best_finalist`).

    Returns:
        The network in evaluation mode; its convolutions are epitomes.

    Raises:
        InputError: not a run folder, no such trial, or one that was not fine-tuned.
    """
    run = RunFolder(Path(folder))
    result = load_result(run)
    if which is None:
        which = best_number(result) if result.finalists else None
    if which is None:
        raise InputError("which", "no design of the run was fine-tuned", "finalists.count above 0")
    record = find_trial(result, str(which), "which")
    finalist = finalist_of(result, record.number)
    if finalist is None:
        tuned = ", ".join(str(f.number) for f in result.finalists) or "none"
        raise InputError(
            "which", f"trial {record.number} was not fine-tuned", f"a fine-tuned trial: {tuned}"
        )
    state = read_state(run.path / finalist.weights)
    network, chip = run.read(run.network, load_network), load_cost_model(run).chip
    return _trained(run, network, chip, record.design, state).eval()


def _wanted(what: str, write: Callable[[], list[Path]]) -> list[Path]:
    """What is written; nothing, with a warning, where it cannot be and everything was asked for."""
    try:
        return write()
    except InputError as error:
        # Anything else that is wrong, such as weights that are not finite, is not passed over.
        beyond = isinstance(error, Inexpressible) or error.field in ("onnx", "onnxscript")
        if what != "all" or not beyond:
            raise
        log.warning("left out: %s", error)
        return []


def _trained(
    folder: RunFolder, network: Network, chip: Chip, design: Design, state: dict[str, Tensor]
) -> nn.Module:
    """The network of a design with its weights, without the run's images where they say enough."""
    config = folder.load_config()
    for name in (config.model.name, config.data.name):
        module, colon, _ = name.partition(":")
        if colon and module not in LIBRARIES:
            warn_of_import(module, folder.config)
    data = data_geometry(config.data, config.seed) or load_data(config.data, config.seed)
    args = without_downloads(config.model.name, config.model.args)
    model = build_model(
        config.model.name,
        in_channels=network.input_shape[0],
        num_classes=data.num_classes,
        args=args,
    )
    initialise(model, config.model.name, network.input_shape)
    small = apply_design(model, design, quantization=config.quantization.on(chip))
    load_state(small, state, "--weights")
    return small
