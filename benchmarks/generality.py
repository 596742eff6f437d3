"""The same three commands on other networks: search, export, verify; a table and a figure.

Every run file in `benchmarks/generality` names a network that the package was not made for. Each
goes through the installed `epim-nas` command in processes of their own, as a user would type it,
and at the end a few images through the crossbar simulator. What is done is not done again, unless
the run file was edited since; `--report` prints what is stored.

    OMP_NUM_THREADS=1 python benchmarks/generality.py [--only odd vgg16] [--out runs/generality]
    python benchmarks/generality.py --report
    OMP_NUM_THREADS=1 python benchmarks/generality.py --trace timm:convnext_atto ...

`--trace` says what becomes of networks by name: their layers, or why they are refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import LogLocator, NullFormatter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epim_nas import Choice, EpitomeShape, InputError, LayerSpec, Network, apply_design, trace
from epim_nas.epitome.design import Design
from epim_nas.files import atomic_path, digest, file_digest, write_json
from epim_nas.hardware import load_chip, map_layer
from epim_nas.models.registry import build_model
from epim_nas.network.yaml_io import load_network
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import finalist_of, load_result
from epim_nas.records import Finalist, RunResult
from epim_nas.report import figures
from epim_nas.solver.pareto import non_dominated
from epim_nas.space.space import SearchSpace

HERE = Path(__file__).parent
RUNS = HERE / "generality"
SIMULATED = 64
"""Test images that go through the crossbar simulator."""

NAMES = ("mobilenet_v2", "vgg16", "regnety_002", "shufflenet_v2", "odd")
"""Run files, in the order of the table."""

TRACED = (
    "torchvision:alexnet", "torchvision:densenet121", "torchvision:efficientnet_b0",
    "torchvision:googlenet", "torchvision:inception_v3", "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v3_small", "torchvision:resnext50_32x4d", "torchvision:squeezenet1_1",
    "torchvision:swin_t", "torchvision:convnext_tiny",
    "timm:cspdarknet53", "timm:convnext_atto", "timm:dla34", "timm:dpn48b", "timm:ecaresnet26t",
    "timm:efficientnet_lite0", "timm:fasternet_t0", "timm:ghostnet_100", "timm:hrnet_w18_small",
    "timm:lcnet_050", "timm:mixnet_s", "timm:mobilenetv4_conv_small", "timm:mobileone_s0",
    "timm:nf_regnet_b0", "timm:regnetx_002", "timm:repvgg_a0", "timm:res2net50_14w_8s",
    "timm:resnest14d", "timm:rexnet_100", "timm:skresnet18", "timm:starnet_s1",
    "timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224", "timm:xception41",
)  # fmt: skip
"""Networks that `--trace` tries by default."""


@dataclass(frozen=True)
class Study:
    """One network: its run folder, its export, and what each command printed.

    Attributes:
        name: name of the run file.
        out: folder of all studies.
    """

    name: str
    out: Path

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.out / self.name)

    @property
    def export(self) -> Path:
        """Where the design of the knee is exported."""
        return self.out / f"{self.name}-export"

    @property
    def record(self) -> Path:
        """File of what is done: the digest of the run file, and what each command printed."""
        return self.out / f"{self.name}.json"

    @cached_property
    def identity(self) -> str:
        """Digest of the run file, with the module of its name."""
        files = RUNS / f"{self.name}.yaml", RUNS / f"{self.name}.py"
        return digest([file_digest(file) for file in files if file.exists()])

    def done(self) -> dict[str, str]:
        """Command -> what it printed; of the run file as it is."""
        found = self._recorded()
        return dict(found["printed"]) if found["run"] == self.identity else {}

    def _recorded(self) -> dict[str, Any]:
        """The content of :attr:`record`, of no run file where there is none or it is damaged."""
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            return {"run": str(found["run"]), "printed": dict(found["printed"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"run": None, "printed": {}}

    def run(self) -> None:
        """Type the three commands and a simulation, each once."""
        recorded = self._recorded()
        if recorded["run"] not in (None, self.identity):
            print(f"{self.name}.yaml was edited: measured again", flush=True)
            shutil.rmtree(self.folder.path, ignore_errors=True)
        if recorded["run"] != self.identity:
            # Before the search: if it is interrupted, this says of what the folder is.
            write_json(self.record, {"run": self.identity, "printed": {}})
        if "export" not in self.done():
            shutil.rmtree(self.export, ignore_errors=True)  # of a call that was cut off
        commands = {
            "search": ("search", f"{self.name}.yaml", "--out", self.folder.path),
            "export": ("export", self.folder.path, "--select", "knee", "--to", "all",
                       "--out", self.export),
            "verify": ("verify", self.export, "--json"),
            "simulate": ("evaluate", self.export / "design.yaml", "--run", self.folder.config,
                         "--weights", self.export / "epitomes.safetensors", "--simulate",
                         "--images", SIMULATED, "--adc-bits", "6,9", "--variation", 0,
                         "--out", self.out / f"{self.name}-simulated", "--json"),
        }  # fmt: skip
        for step, command in commands.items():
            done = self.done()
            if step not in done:
                printed = {**done, step: _run(*command)}
                write_json(self.record, {"run": self.identity, "printed": printed})

    @cached_property
    def result(self) -> RunResult:
        """What the search found."""
        return load_result(self.folder)

    @cached_property
    def network(self) -> Network:
        """The network's layers."""
        return load_network(self.folder.network)

    @cached_property
    def space(self) -> SearchSpace:
        """The choices of its layers."""
        return SearchSpace.from_dict(json.loads(self.folder.space.read_text()))

    @cached_property
    def without_zeros(self) -> int:
        """Crossbars of the dense network at 32 bits, its grouped layers stored without zeros."""
        chip, total = load_chip(self.folder.chip), 0
        for layer in self.network.weighted:
            whole = EpitomeShape.dense(layer.weight_shape) if layer.groups > 1 else None
            total += map_layer(layer, Choice(whole, weight_bits=32), chip).crossbars
        return total

    def finalist(self, which: str) -> Finalist:
        """The trained design of a selection."""
        found = finalist_of(self.result, self.result.selected[which])
        assert found is not None, "its weights were exported"
        return found


def _run(*command: object) -> str:
    """What a command of ``epim-nas`` prints; its messages go to the terminal."""
    program = Path(sys.executable).with_name("epim-nas")
    typed = [str(part) for part in command]
    print("$ epim-nas", *typed, flush=True)
    # In the folder of the run files: `odd.py` is imported from there.
    done = subprocess.run(
        [program, *typed], cwd=RUNS, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"epim-nas {typed[0]} ended with {done.returncode}")
    return done.stdout


def kinds(layers: tuple[LayerSpec, ...]) -> str:
    """How many layers there are of each kind."""
    return ", ".join(f"{count} {name}" for name, count in Counter(map(_kind, layers)).most_common())


def _kind(layer: LayerSpec) -> str:
    if layer.type == "fc":
        return "linear"
    height, width = layer.kernel
    size = f"{height}x{width}"
    if layer.groups > 1:
        kind = "depthwise" if layer.groups == layer.in_channels else "grouped"
        size = f"{kind} {size}"
    return f"{size} dilated" if layer.dilation != (1, 1) else size


def report(studies: list[Study], picture: Path) -> None:
    """Print the tables and draw the fronts."""
    console = Console(width=240)
    table = Table(
        "network", "images", "layers with weights", "chip", "space", "designs",
        "dense crossbars (without zeros)", "float top-1", "verified", box=box.MARKDOWN,
    )  # fmt: skip
    for study in studies:
        result = study.result
        checks = json.loads(study.done()["verify"])["checks"]
        table.add_row(
            study.name, "x".join(map(str, study.network.input_shape)),
            f"{len(study.network.weighted)}: {kinds(study.network.weighted)}",
            result.config["hardware"]["chip"], study.space.name, f"10^{study.space.log10_size:.0f}",
            f"{result.baseline.totals['crossbars']:.0f} ({study.without_zeros})",
            f"{100 * result.baseline.test_accuracy:.1f} %", f"{len(checks)} parts",
        )  # fmt: skip
    console.print(table)
    table = Table(
        "network", "design", "top-1", "crossbars", "compression", "shape part", "bits part",
        "compression without zeros", "latency (ms)", "energy (mJ)", box=box.MARKDOWN,
    )  # fmt: skip
    for study in studies:
        for cells in _design_rows(study):
            table.add_row(study.name, *cells)
    console.print(table)
    table = Table(
        "network", "PyTorch", "ADC of 9 bits", "ADC of 6 bits", "columns that can clip at 6",
        box=box.MARKDOWN,
    )  # fmt: skip
    for study in studies:
        found = json.loads(study.done()["simulate"])
        six, nine = found["rows"]
        accuracies = found["torch_accuracy"], nine["accuracy"], six["accuracy"]
        table.add_row(
            study.name, *(f"{100 * accuracy:.1f} %" for accuracy in accuracies),
            f"{100 * six['clipping_columns']:.0f} %",
        )  # fmt: skip
    console.print(table)
    with atomic_path(picture) as temporary:
        temporary.write_bytes(figures.png_bytes(fronts(studies), dpi=110))
    console.print(f"{picture} drawn")


def _design_rows(study: Study) -> Iterator[tuple[str, ...]]:
    """Dense, the knee and the design of highest accuracy; top-1 of test images, after training."""
    dense = study.result.baseline
    rows = [("dense, 32 bits", dense.test_accuracy, {**dense.totals, "compression": 1.0})]
    for which in ("best-accuracy", "knee"):
        found = study.finalist(which)
        rows.append((which, found.test_accuracy, dict(found.metrics)))
    for name, accuracy, metrics in rows:
        yield (
            name, f"{100 * accuracy:.1f} %", f"{metrics['crossbars']:.0f}",
            f"{metrics['compression']:.1f}x", f"{metrics.get('shape_compression', 1):.2f}",
            f"{metrics.get('bits_compression', 1):.2f}",
            f"{study.without_zeros / metrics['crossbars']:.1f}x",
            f"{1e-6 * metrics['latency_ns']:.3g}", f"{1e-6 * metrics['energy_nj']:.3g}",
        )  # fmt: skip


def fronts(studies: list[Study]) -> Any:
    """Validation top-1 against latency and energy, relative to dense; a column for each network."""
    figure = figures.new_figure(3.1 * len(studies), 5.6)
    panels = figure.subplots(2, len(studies), squeeze=False, sharey="col")
    for column, study in enumerate(studies):
        result = study.result
        dense = 100 * result.baseline.validation_accuracy
        for row, (metric, label) in enumerate((("latency_ns", "latency"), ("energy_nj", "energy"))):
            panel, scale = panels[row, column], float(result.baseline.totals[metric])
            points = [
                (trial.metrics[metric] / scale, 100 * trial.metrics["accuracy"])
                for trial in result.trials
            ]
            keep = non_dominated(points, [False, True])
            front = sorted(point for point, kept in zip(points, keep, strict=True) if kept)
            panel.axhline(dense, color=figures.INK, linestyle="--", linewidth=1, label="dense")
            panel.plot(1, dense, "D", color=figures.INK, markersize=5)
            panel.scatter(*zip(*points, strict=True), s=14, c=figures.BLUE, alpha=0.6,
                          linewidths=0, label="scored with shared weights")  # fmt: skip
            panel.step(*zip(*front, strict=True), where="post", color=figures.BLUE, linewidth=1.2,
                       label="front of these")  # fmt: skip
            tuned = [
                (found.metrics[metric] / scale, 100 * found.validation_accuracy)
                for found in result.finalists
            ]
            panel.scatter(*zip(*tuned, strict=True), s=90, marker="*", c=figures.GREEN,
                          edgecolors="white", linewidths=0.5, zorder=5,
                          label="trained on its own")  # fmt: skip
            panel.set_xlabel(f"{label} / dense", fontsize=8)
            if metric == "energy_nj":
                panel.set_xscale("log")
                panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
                panel.xaxis.set_major_formatter("{x:g}")
                panel.xaxis.set_minor_formatter(NullFormatter())
            figures.style_panel(panel)
        panels[0, column].set_title(f"{study.name}", fontsize=10)
    for panel in panels[:, 0]:
        panel.set_ylabel("validation top-1 (%)", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, 2 * len(studies)),
        fontsize=9,
        frameon=False,
    )
    return figure


def try_traces(names: tuple[str, ...]) -> None:
    """What becomes of networks: traced, and equal to themselves under a design of dense layers."""
    table = Table("network", "input", "layers with weights", "difference at 24 bits, or why not",
                  box=box.MARKDOWN)  # fmt: skip
    for name in names:
        torch.manual_seed(0)
        shape = (3, 64, 64) if name not in _LARGE else (3, 224, 224)
        try:
            model = build_model(name, in_channels=3, num_classes=10).eval()
            network = trace(model, shape, name)
            choices = {layer.name: Choice(weight_bits=24) for layer in network.weighted}
            images = torch.randn(2, *shape)
            with torch.no_grad():
                wanted, found = model(images), apply_design(model, Design(name, choices))(images)
            error = float((wanted - found).norm() / wanted.norm())
            cells = f"{len(network.weighted)}: {kinds(network.weighted)}", f"{error:.0e}"
        except InputError as refused:
            cells = "refused", escape(f"{refused.field}: {refused.problem}")
        table.add_row(name, "x".join(map(str, shape)), *cells)
    Console(width=240).print(table)


_LARGE = {
    "torchvision:alexnet", "torchvision:inception_v3", "torchvision:swin_t",
    "timm:vit_tiny_patch16_224",
}  # fmt: skip
"""Networks that do not run on 64x64 images."""


def main() -> None:
    """Run and report, or trace."""
    parser = argparse.ArgumentParser(description="Search, export and verify other networks.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "generality")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--report", action="store_true", help="print and draw what is stored")
    parser.add_argument("--picture", type=Path, help="by default fronts.png in --out")
    parser.add_argument("--trace", nargs="*", metavar="NAME", help="only trace these networks")
    arguments = parser.parse_args()
    if arguments.trace is not None:
        try_traces(tuple(arguments.trace) or TRACED)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    studies = [Study(name, arguments.out.resolve()) for name in arguments.only]
    if not arguments.report:
        for study in studies:
            study.run()
    report(
        [study for study in studies if "simulate" in study.done()],
        arguments.picture or arguments.out / "fronts.png",
    )


if __name__ == "__main__":
    main()
