"""What a reader has to know beside the numbers: how each was measured, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from epim_nas.files import dump_yaml
from epim_nas.hardware.chip import Chip
from epim_nas.records import RunResult
from epim_nas.report.escape import markdown_code, markdown_text
from epim_nas.report.tables import markdown_line, markdown_rule
from epim_nas.solver.metrics import own_texts
from epim_nas.space.space import SearchSpace

_MEASURED = (
    (
        "baseline top-1",
        "the trained network as it is, 32-bit weights; on the search-validation images and, "
        "separately, on the test images",
    ),
    (
        "top-1 supernet",
        "the design with the supernet's shared weights, after recalibrating its batch "
        "normalisation; on the search-validation images; this is what the search optimises",
    ),
    (
        "top-1 fine-tuned",
        "the design after its own brief fine-tuning; on the search-validation images",
    ),
    (
        "test top-1",
        "the fine-tuned design, measured once on test images that no step of the search has seen",
    ),
    (
        "crossbars",
        "counted from the mapping of every layer's epitome onto the chip's crossbars",
    ),
    (
        "compression",
        "crossbars of the dense network at 32-bit weights over those of the design, split into "
        "what the epitomes' shapes save and what fewer weight bits save",
    ),
    (
        "latency",
        "pipelined latency of one inference, computed by the behaviour-level hardware model "
        "(simulated, not measured on silicon)",
    ),
    (
        "energy",
        "energy of one inference, computed by the same hardware model",
    ),
    (
        "latency and energy of a layer",
        "the layer's busy time and its total energy; layers overlap in the pipeline, so their "
        "latencies do not add up to the network's",
    ),
)


def measured(result: RunResult) -> list[tuple[str, str]]:
    """(number, how it was measured) pairs."""
    own = own_texts()
    replaced = {"latency": "latency_ns", "energy": "energy_nj"}
    rows = [(name, own.get(replaced.get(name, ""), text)) for name, text in _MEASURED]
    shown = set(replaced.values())
    rows += [(name, text) for name, text in own.items() if name not in shown]
    rows.append(("baseline weights", result.baseline.weights))
    return rows


def commands(result: RunResult, folder: str | None = None) -> list[tuple[str, str]]:
    """(purpose, command) pairs: how to reproduce the run and what to do with it.

    Args:
        result: the run.
        folder: the run folder as it should be typed; ``runs/NAME`` by default.
    """
    folder = folder or f"runs/{result.name}"
    run_file = shlex.quote(f"{folder}/run.yaml")
    quoted = shlex.quote(folder)
    typed = [
        ("run the search again", f"epim-nas search {run_file} --out {quoted}-again"),
        ("print the front", f"epim-nas pareto {quoted} --json"),
        ("open the dashboard", f"epim-nas dashboard {quoted}"),
    ]
    if not result.selected:
        return typed  # no design to go on with
    selection = "knee" if "knee" in result.selected else "best-accuracy"
    # Only fine-tuned designs have weights of their own.
    tuned = {finalist.number for finalist in result.finalists}
    what = "all" if result.selected.get(selection) in tuned else "design"
    out = shlex.quote(f"{result.name}-{selection}")
    return [
        *typed,
        (
            "export the selected design",
            f"epim-nas export {quoted} --select {selection} --to {what} --out {out}",
        ),
        (
            "train the best design fully",
            f"epim-nas finetune {shlex.quote(f'{folder}/best.yaml')} --run {run_file}",
        ),
    ]


def chip_page(chip: Chip) -> str:
    """A chip as markdown: its name, its digest and all of its keys."""
    text = dump_yaml(chip.to_dict())
    heading = f"**{markdown_text(chip.name)}** (digest {chip.digest[:16]})"
    return f"{heading}\n\n{markdown_code(text)}\n"


def space_page(space: SearchSpace) -> str:
    """A search space as markdown: how large it is, and what each group of layers may become."""
    lines = [
        f"**{markdown_text(space.name)}** on {markdown_text(space.network)}: "
        f"10^{space.log10_size:.1f} designs, {space.dropped} choices dropped that another one "
        "beats\n",
        markdown_line(["layers", "choices", "the fewest crossbars", "the most crossbars"]),
        markdown_rule([":---", "---:", ":---", ":---"]),
    ]
    for group in space.groups:
        first, last = str(group.choices[0][0]), str(group.choices[-1][0])
        lines.append(markdown_line([", ".join(group.layers), str(len(group)), first, last]))
    return "\n".join(lines) + "\n"


def seeds(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every key named ``seed`` (or ending in ``_seed``) in a configuration, by dotted path."""
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += seeds(value, f"{path}.")
        elif str(key) == "seed" or str(key).endswith("_seed"):
            found.append((path, value))
    return found
