"""Reading a run folder back, offline, and writing its results."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from epim_nas._version import __version__
from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.extensions import load_extension
from epim_nas.files import write_text
from epim_nas.hardware import CostModel, load_chip
from epim_nas.imports import warn_of_import
from epim_nas.network.spec import Network
from epim_nas.network.yaml_io import load_network
from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.stages.finalists import load_finalists
from epim_nas.records import Baseline, Finalist, RunResult, TrialRecord
from epim_nas.report.html import render_report
from epim_nas.report.summary import latex_table, markdown_summary
from epim_nas.report.tables import write_front_csv
from epim_nas.schema import Number
from epim_nas.solver.metrics import METRICS, metric_of, own_metrics, own_texts, parse_objective
from epim_nas.solver.pareto import BEST_IN, SELECTIONS, best_finalist, front_numbers, select
from epim_nas.space.space import SearchSpace
from epim_nas.stored import store_json
from epim_nas.study.store import STUDY_NAME, TrialStore

log = logging.getLogger(__name__)

_DESIGN_NAME = re.compile(r"trial-([0-9]{4,})\.yaml")
"""Of the design files that a run writes; others in their folder are the user's."""

MEASURED = {
    "supernet_top1": "search-validation images, shared weights, batch norm recalibrated",
    "validation_top1": "search-validation images, after stand-alone fine-tuning",
    "test_top1": "test images, after stand-alone fine-tuning, once",
    "latency_ns": "hardware model, pipelined, one inference",
    "energy_nj": "hardware model, one inference",
}


def load_result(folder: RunFolder, store: TrialStore | None = None) -> RunResult:
    """Everything that a run folder stores, whether the run has ended or not.

    Args:
        folder: the run folder.
        store: its trials, where they are open already: reading them again takes long.

    Raises:
        InputError: this is not the folder of a run, or nothing was scored yet.
    """
    config = folder.load_config()
    if not {metric_of(objective) for objective in config.objectives} <= METRICS.keys():
        _import_parts(folder, config)
    if not (folder.journal.is_file() or folder.study.is_file()):
        raise InputError(
            str(folder.path),
            "no design was scored yet",
            hint="Go on with `epim-nas search "
            f"{shlex.quote(str(folder.config))} --out {shlex.quote(str(folder.path))}`.",
        )
    space = folder.parse(folder.space, SearchSpace.from_dict)
    store = store or open_store(folder, config, space)
    # Also costs that a module replaces: reports name what computes them.
    if not {metric.name for metric in own_metrics()} >= store.own_metrics:
        _import_parts(folder, config)
    records = store.records()
    front = front_numbers(records, config.objectives)
    by_number = {record.number: record for record in records}
    on_front = [by_number[number] for number in front]
    selected = {
        which: select(on_front, which, config.objectives).number
        for which in SELECTIONS
        if on_front and _selectable(which, config)
    }
    finalists = load_finalists(folder, records)
    if finalists:
        selected["best-accuracy"] = best_finalist(finalists, config.objectives).number
    return RunResult(
        name=config.name,
        config=config.model_dump(mode="json", by_alias=True),
        objectives=tuple(config.objectives),
        budget=folder.load(folder.budget, dict[str, Number]),
        baseline=folder.parse(folder.baseline, lambda data: Baseline(**data)),
        trials=tuple(records),
        front=front,
        finalists=tuple(finalists),
        selected=selected,
        supernet_curve=folder.load(folder.supernet, tuple[tuple[int, float], ...])
        if folder.supernet.exists()
        else (),
        versions=folder.stored_versions(),
        seconds=folder.stored_seconds(),
    )


def _import_parts(folder: RunFolder, config: RunConfig) -> None:
    """Import the extensions of a stored run file, whose metrics cannot be read without.

    Raises:
        InputError: importing fails, or an objective is unknown all the same.
    """
    for module in config.extensions:
        warn_of_import(module, folder.config)
        load_extension(module)
    for objective in config.objectives:
        parse_objective(objective, f"{folder.config}: objectives")


def open_store(
    folder: RunFolder,
    config: RunConfig,
    space: SearchSpace,
    settings: Mapping[str, Any] | None = None,
) -> TrialStore:
    """The trials of a run, in its folder or in the database that the run file names.

    Args:
        folder: the run folder.
        config: the run file.
        space: the search space.
        settings: what identifies the search; None only reads.

    Raises:
        InputError: the storage cannot be opened, or belongs to another search.
    """
    storage, name = config.search.storage, STUDY_NAME
    if storage is not None:
        # One database serves many runs: each has a study of its own, and knows its name.
        if settings is not None and not folder.study.exists():
            store_json(folder.study, {"study": f"{config.name}-{secrets.token_hex(4)}"})
        name = str(folder.parse(folder.study, lambda data: data["study"]))
    return TrialStore(
        folder.journal,
        config.objectives,
        space,
        settings,
        read_only=settings is None,
        storage=storage,
        study_name=name,
    )


def _selectable(which: str, config: RunConfig) -> bool:
    # Every trial has an accuracy, also where it is no objective.
    return BEST_IN.get(which, "accuracy") in ("accuracy", *config.objectives)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"epim_nas": __version__}
    for package in ("torch", "optuna", "numpy", "scipy", "ray"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def report_text(folder: RunFolder, form: str, out: Path | None = None) -> str:
    """The report of what a run folder stores.

    Args:
        folder: the run.
        form: ``html``, ``md`` or ``latex``.
        out: where it will be; the summary names the front's picture as seen from there.

    Raises:
        InputError: not a run folder, nothing was scored yet, or jinja2 or plotly is not installed.
    """
    result, cost = load_result(folder), load_cost_model(folder)
    if form == "html":
        return _page(result, folder, cost, folder.read(folder.network, load_network))
    if form == "latex":
        return latex_table(result, cost.chip.name)
    picture = folder.path / "front.png"
    beside = Path(os.path.relpath(picture, out.parent if out else Path())).as_posix()
    return markdown_summary(
        result, cost.chip.name, str(folder.path), beside if picture.exists() else None
    )


def _page(result: RunResult, folder: RunFolder, cost: CostModel, network: Network) -> str:
    """``report.html``, with the layers' costs of the front and of the finalists."""
    designs = {record.number: record.design for record in result.trials}
    return render_report(
        result,
        costs={number: cost.evaluate(designs[number]) for number in _shown(result)},
        network=network,
        run_folder=str(folder.path),
    )


def load_cost_model(folder: RunFolder) -> CostModel:
    """The cost model of a run, from the network and chip that its folder stores."""
    network = folder.read(folder.network, load_network)
    return CostModel(network, folder.read(folder.chip, load_chip))


def full_design(result: RunResult, record: TrialRecord | Finalist, cost: CostModel) -> Design:
    """A trial's design with its totals and provenance, as the design file holds it."""
    metrics: dict[str, Any] = {"supernet_top1": record.metrics["accuracy"]}
    finalist = finalist_of(result, record.number)
    if finalist is not None:
        metrics["validation_top1"] = finalist.validation_accuracy
        metrics["test_top1"] = finalist.test_accuracy
    metrics["latency_ns"] = record.metrics["latency_ns"]
    metrics["energy_nj"] = record.metrics["energy_nj"]
    own = own_texts()
    metrics |= {name: record.metrics[name] for name in own if name in record.metrics}
    metrics |= {
        name: round(record.metrics[name], 4)
        for name in ("compression", "shape_compression", "bits_compression")
    }
    return replace(
        record.design,
        hardware={"name": cost.chip.name, "digest": cost.chip.digest},
        totals=asdict(cost.evaluate(record.design).totals),
        provenance={
            "run": result.name,
            "trial": record.number,
            "seed": result.config["seed"],
            "version": __version__,
            "metrics": metrics,
            "measured": {name: text for name, text in (MEASURED | own).items() if name in metrics},
        },
    )


def best_number(result: RunResult) -> int | None:
    """The trial of ``best.yaml``; None where the front is empty."""
    return result.selected.get("best-accuracy")


def finalist_of(result: RunResult, number: int) -> Finalist | None:
    """The finalist of a trial, if it was fine-tuned."""
    return next((f for f in result.finalists if f.number == number), None)


def _shown(result: RunResult) -> list[int]:
    """Trials with a design file and layers in the report: the front and the finalists."""
    return list(dict.fromkeys([*result.front, *(f.number for f in result.finalists)]))


def find_trial(result: RunResult, which: str, field: str = "--select") -> TrialRecord:
    """The trial of a selection name or a number; ``field`` is where it was given.

    Raises:
        InputError: neither a selection of this run nor a stored trial.
    """
    if which.isdigit():
        for record in result.trials:
            if record.number == int(which):
                return record
        raise InputError(
            field,
            f"there is no finished trial {which}",
            f"0 to {max((r.number for r in result.trials), default=0)}, "
            f"on the front: {', '.join(map(str, result.front))}",
        )
    by_number = {record.number: record for record in result.trials}
    if which in result.selected:
        return by_number[result.selected[which]]
    on_front = [by_number[number] for number in result.front]
    try:
        return select(on_front, which, result.objectives)
    except InputError as error:
        raise InputError(field, error.problem, error.allowed, error.hint) from None


def write_results(result: RunResult, folder: RunFolder, cost: CostModel, network: Network) -> None:
    """Write ``front.csv``, ``designs/``, ``best.yaml``, ``front.png`` and ``report.html``.

    The report and the picture need the extra ``plot``; without it a warning says so.
    """
    by_number = {record.number: record for record in result.trials}
    write_front_csv(result, folder.path / "front.csv")
    shown = _shown(result)
    for stale in folder.designs.glob("trial-*.yaml"):
        written = _DESIGN_NAME.fullmatch(stale.name)
        if written and int(written[1]) not in shown:
            stale.unlink()  # left the front when the search went on
    for number in shown:
        design = full_design(result, by_number[number], cost)
        design.save(folder.designs / f"trial-{number:04d}.yaml")
    best = best_number(result)
    if best is not None:
        full_design(result, by_number[best], cost).save(folder.path / "best.yaml")
    try:
        from epim_nas.report.figures import save_front_png

        save_front_png(result, folder.path / "front.png")
        write_text(folder.report, _page(result, folder, cost, network))
    except InputError as error:
        if error.field not in ("matplotlib", "jinja2", "plotly"):
            raise
        log.warning("no report: %s", error)


def front_dict(result: RunResult) -> dict[str, Any]:
    """The front as plain data, the output of ``epim-nas pareto --json``."""
    by_number = {record.number: record for record in result.trials}
    finalists = {finalist.number: finalist for finalist in result.finalists}
    designs = []
    for number in result.front:
        record, finalist = by_number[number], finalists.get(number)
        designs.append(
            {
                "trial": number,
                "origin": record.origin,
                "metrics": dict(record.metrics),
                "validation_top1": finalist.validation_accuracy if finalist else None,
                "test_top1": finalist.test_accuracy if finalist else None,
                "layers": {name: str(choice) for name, choice in record.design.choices.items()},
            }
        )
    return {
        "schema": "epim-nas/front@1",
        "run": result.name,
        "objectives": list(result.objectives),
        "budget": dict(result.budget),
        "baseline": {
            "validation_top1": result.baseline.validation_accuracy,
            "test_top1": result.baseline.test_accuracy,
            "totals": dict(result.baseline.totals),
        },
        "trials": len(result.trials),
        "selected": dict(result.selected),
        "designs": designs,
    }


def relative(path: Path) -> str:
    """A path as people type it: relative to the current folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
