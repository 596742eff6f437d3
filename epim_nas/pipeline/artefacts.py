"""The artefacts of one design of a run."""

from __future__ import annotations

from pathlib import Path

from epim_nas.datapath.stored import stored_layers
from epim_nas.errors import InputError
from epim_nas.export.datapath import export_datapath
from epim_nas.export.design import export_design
from epim_nas.export.manifest import write_manifest
from epim_nas.export.verification import DATAPATH, WEIGHTS, check_epitomes
from epim_nas.export.weights import export_weights
from epim_nas.files import make_folder
from epim_nas.models.weights import read_state
from epim_nas.network.yaml_io import load_network
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import find_trial, full_design, load_cost_model, load_result


def export_trial(
    folder: RunFolder, which: str, what: str, out: Path, weights: Path | None = None
) -> list[Path]:
    """Write the artefacts of one design into a folder, offline, from what is stored.

    Args:
        folder: the run.
        which: a selection's name or a trial's number.
        what: ``design``, ``weights``, ``datapath`` or ``all``.
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
    finalist = next((f for f in result.finalists if f.number == record.number), None)
    if what in ("weights", "all") and finalist is None and weights is None:
        tuned = ", ".join(str(f.number) for f in result.finalists) or "none"
        raise InputError(
            f"--select {which}",
            f"trial {record.number} was not fine-tuned, so there are no weights of its own",
            f"a fine-tuned trial: {tuned}; or `--to design` or `--to datapath`",
            f"Train it with `epim-nas finetune {folder.designs}/trial-{record.number:04d}.yaml "
            f"--run {folder.config}`.",
        )
    network = load_network(folder.network)
    state = None if finalist is None else read_state(folder.path / finalist.weights)
    if weights is not None:
        state = read_state(weights)
        check_epitomes(state, design, f"--weights {weights}")
    make_folder(out, "--out")
    files: list[Path] = []
    if what in ("design", "all"):
        files += export_design(design, out, network, cost=cost.evaluate(record.design))
    if state is not None and what in ("weights", "all"):
        path = out / WEIGHTS
        export_weights(state, path, metadata={"run": result.name, "trial": str(record.number)})
        files.append(path)
    if what in ("datapath", "all"):
        quantization = folder.load_config().quantization.on(cost.chip)
        stored = None if state is None else stored_layers(network, design, state, quantization)
        # Of the many files the index stands for all.
        files += export_datapath(design, network, cost.chip, out / DATAPATH, stored)[:1]
    details = {"run": result.name, "trial": record.number}
    files.append(write_manifest(out, design, details))
    return files
