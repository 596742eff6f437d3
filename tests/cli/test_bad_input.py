"""Everything that a user can get wrong: exit code 2, one message that names the field."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from epim_nas.cli.app import run_command
from epim_nas.data.registry import data_names
from epim_nas.models.weights import save_weights
from tests.hardware.reference import whole_ini
from tests.pipeline import command
from tests.pipeline.tiny import tiny_net, tiny_run, write_run

NETWORK = """\
schema: epim-nas/network@1
name: small
layers:
  - {name: c1, type: conv, inputs: [input], in_channels: 3, out_channels: 64, kernel: 3,
     padding: 1, input_size: [8, 8]}
  - {name: f1, type: fc, inputs: [c1], in_features: 4096, out_features: 10}
"""

GROWING = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 40)
)

DESIGN = """\
schema: epim-nas/design@1
network: small
layers:
  c1: {epitome: {out_channels: 32, in_channels: 3, height: 3, width: 3}, weight_bits: 3}
  f1: {dense: true, weight_bits: 9, activation_bits: 9}
"""


@dataclass(frozen=True)
class Place:
    """Where a case writes its files.

    Attributes:
        path: an empty folder.
        stored: a finished run, not to be changed.
    """

    path: Path
    stored: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def search(self, *overrides: str, **changes: Any) -> list[object]:
        arguments: list[object] = ["search", write_run(self.path, **changes)]
        for override in overrides:
            arguments += ["--set", override]
        return [*arguments, "--out", self.path / "run"]

    def cost(self, *arguments: object, network: str = NETWORK) -> list[object]:
        path = self.file("network.yaml", network)
        return ["cost", "--network", path, "--hardware", "xbar_64", *arguments]

    def chip(self, *overrides: str) -> list[object]:
        return self.cost(*(part for text in overrides for part in ("--set", text)))

    def design(self, old: str, new: str) -> list[object]:
        assert old in DESIGN
        return self.cost("--design", self.file("design.yaml", DESIGN.replace(old, new)))

    def network(self, old: str, new: str) -> list[object]:
        assert old in NETWORK
        return self.cost(network=NETWORK.replace(old, new))

    def ini(self, content: str) -> list[object]:
        network = self.file("network.yaml", NETWORK)
        return ["cost", "--network", network, "--hardware", self.file("chip.ini", content)]

    def space(self, **changes: Any) -> list[object]:
        return self.search(space={**tiny_run()["space"], **changes})

    def weights(self, **tensors: torch.Tensor) -> list[object]:
        """A search from a checkpoint of the network with some tensors replaced."""
        state = {**tiny_net().state_dict(), **tensors}
        save_file(state, self.path / "weights.safetensors")
        return self.search(f"model.weights={self.path / 'weights.safetensors'}")

    def images(self, *names: str) -> list[object]:
        """A search on a folder with such image files."""
        root = self.path / "images"
        root.mkdir()
        for name in names:
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(b"")
        return self.search(data={"name": "imagefolder", "root": str(root)})

    def of_model(self, *shape: int) -> list[object]:
        """A search from a checkpoint of another network."""
        save_weights(tiny_net(*shape), self.path / "weights.safetensors")
        return self.search(f"model.weights={self.path / 'weights.safetensors'}")

    def on_run(self, name: str, *arguments: object) -> list[object]:
        return [name, self.stored, *arguments]

    def on_design(self, name: str, *arguments: object) -> list[object]:
        out = ["--out", self.path / "tuned"] if name == "finetune" else []
        run = self.stored / "run.yaml"
        return [name, self.stored / "best.yaml", "--run", run, *out, *arguments]

    def damaged(self, name: str, content: str, reader: str = "pareto") -> list[object]:
        """A command that reads a run folder, one file of which is damaged."""
        folder = shutil.copytree(self.stored, self.path / "damaged")
        (folder / name).write_bytes(content.encode("latin-1"))
        if reader == "search":
            return ["search", self.stored / "run.yaml", "--out", folder]
        if reader == "export":
            return ["export", folder, "--out", self.path / "out"]
        return [reader, folder, "--json"]

    def below_a_file(self) -> Path:
        return self.file("file", "") / "folder"

    def untuned(self) -> int:
        """A trial of the finished run that was not fine-tuned."""
        tuned = {int(path.stem[-4:]) for path in (self.stored / "finalists").glob("*.json")}
        return next(n for n in range(len(command.trials_of(self.stored))) if n not in tuned)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search as short as it can be."""
    base = tmp_path_factory.mktemp("stored")
    run = write_run(
        base, baseline__steps=2, supernet__steps=0, search__trials=5, search__seeds=3,
        finalists={"count": 1, "steps": 1}, search__validation_images=50,
    )  # fmt: skip
    assert run_command(["--quiet", "search", str(run), "--out", str(base / "run")]) == 0
    return base / "run"


MODEL = ["cost", "--hardware", "xbar_64", "--model", "resnet20"]
Case = tuple[str, Callable[[Place], list[object]], tuple[str, ...]]
NAN = torch.full((10,), float("nan"))
INFINITE = torch.full((10,), float("-inf"))

# What is wrong, the command, and words that the message must have: the field, what helps.
CASES: list[Case] = [
    # The run file
    ("unknown key", lambda p: p.search(modle={}), ("modle", "unknown key", "`model`?")),
    ("unknown key below", lambda p: p.search("model.wieghts=x"), ("model.wieghts", "`weights`?")),
    ("word for a number", lambda p: p.search("seed=abc"), ("seed", "abc", "integer")),
    ("fraction of a trial", lambda p: p.search("search.trials=2.5"), ("search.trials", "2.5")),
    ("truth for a number", lambda p: p.search("search.trials=true"), ("search.trials", "True")),
    ("no trials", lambda p: p.search("search.trials=0"), ("search.trials", "`0`", "1")),
    ("negative seed", lambda p: p.search("seed=-1"), ("seed", "-1", "0")),
    ("lr too large", lambda p: p.search("baseline.lr=50"), ("baseline.lr", "50", "10")),
    (
        "sensitivity method",
        lambda p: p.search("sensitivity.method=fisher"),
        ("sensitivity.method", "`fisher`", "output_fisher"),
    ),
    ("a folder to reuse", lambda p: p.search("reuse=nowhere"), ("reuse", "not a run folder")),
    ("an empty folder", lambda p: p.images(), ("data.root", "no folder `train`")),
    ("no labels", lambda p: p.images("train/a.png"), ("data.root", "no labels", "class")),
    ("one class", lambda p: p.images("train/a/a.png"), ("data.root", "1 class folder", "2")),
    ("lr is NaN", lambda p: p.search("baseline.lr=.nan"), ("baseline.lr", "finite")),
    (
        "granularity",
        lambda p: p.search("quantization.granularity=row"),
        ("quantization.granularity", "row", "crossbar"),
    ),
    (
        "two ways to count",
        lambda p: p.search(quantization={"by_repeats": True, "overlap_weights": [0.7, 0.3]}),
        ("quantization", "`overlap_weights`", "`by_repeats`"),
    ),
    (
        "one overlap weight",
        lambda p: p.search("quantization.overlap_weights=[1]"),
        ("quantization.overlap_weights", "2"),
    ),
    ("too much distillation", lambda p: p.search("supernet.distillation=1.5"), ("distillation",)),
    ("no such file", lambda p: ["search", "no.yaml"], ("no.yaml", "no such file")),
    ("a folder", lambda p: ["search", p.path], ("RUN", "is a folder")),
    ("no such preset", lambda p: ["search", "demoo"], ("RUN", "demoo", "`demo`?")),
    (
        "not YAML",
        lambda p: ["search", p.file("a.yaml", "a: [1\nb: 2")],
        ("a.yaml", "not valid YAML", "line 2"),
    ),
    (
        "key given twice",
        lambda p: ["search", p.file("a.yaml", "name: a\nname: b\n")],
        ("a.yaml", "`name`", "twice"),
    ),
    ("a list", lambda p: ["search", p.file("a.yaml", "- a")], ("a.yaml", "not a run file")),
    ("empty file", lambda p: ["search", p.file("a.yaml", "")], ("a.yaml", "not a run file")),
    ("not text", lambda p: ["search", p.file("a.yaml", b"\xff\xfe\x80")], ("a.yaml", "UTF-8")),
    ("wrong schema", lambda p: p.search("schema=epim-nas/run@2"), ("schema", "epim-nas/run@1")),
    ("name with a slash", lambda p: p.search("name=a/b"), ("name", "a/b")),
    ("both budgets", lambda p: p.search("budget.crossbars=50"), ("budget", "either")),
    ("no budget", lambda p: p.search("budget={}"), ("budget", "either")),
    (
        "budget out of reach",
        lambda p: p.search("budget={crossbars: 5}"),
        ("budget.crossbars", "has 12", "at least 12 crossbars", "compression of at most 28.00"),
    ),
    (
        "compression out of reach",
        lambda p: p.search("budget.compression=1000"),
        ("budget.compression", "at least 12 crossbars", "compression of at most 28.00"),
    ),
    ("strategy", lambda p: p.search("search.strategy=epitom"), ("search.strategy", "`epitome`?")),
    ("objective", lambda p: p.search("objectives=[accuracy, power]"), ("objectives.1", "power")),
    (
        "direction",
        lambda p: p.search("objectives=[accuracy, most rounds]"),
        ("objectives.1", "`most rounds`", "`min` or `max`"),
    ),
    (
        "metric twice",
        lambda p: p.search("objectives=[rounds, max rounds]"),
        ("objectives", "twice"),
    ),
    (
        "several budgets out of reach",
        lambda p: p.search("budget={crossbars: 20, energy_nj: 1}"),
        ("budget.energy_nj", "nearest has", "alone, each is reachable from", "nearest.yaml"),
    ),
    ("fitness", lambda p: p.search("search.fitness=power"), ("search.fitness", "'edp_nj_ns'")),
    ("objective twice", lambda p: p.search("objectives=[accuracy, accuracy]"), ("objectives",)),
    ("executor", lambda p: p.search("executor.kind=dask"), ("executor.kind", "dask", "`ray`")),
    ("device", lambda p: p.search("device=gpu"), ("device", "gpu", "cpu")),
    ("device without numbers", lambda p: p.search("device=meta"), ("device", "meta", "cuda:N")),
    (
        "a teacher of the teacher",
        lambda p: p.search("baseline.distillation=0.5"),
        ("baseline.distillation", "0.5", "`supernet`"),
    ),
    (
        "more parts than images",
        lambda p: p.search("supernet.accumulation=5000"),
        ("supernet.accumulation", "5000", "1 to "),
    ),
    ("a text key", lambda p: p.search("model={1: 2}"), ("model", "the key `1`", "quotes")),
    ("aliases", lambda p: ["search", p.file("a.yaml", GROWING)], ("a.yaml", "aliases")),
    ("precision", lambda p: p.search("precision=float16"), ("precision", "bfloat16")),
    ("--set without =", lambda p: p.search("seed"), ("--set", "`seed`", "key=value")),
    ("--set through a value", lambda p: p.search("name.x=1"), ("--set", "name.x", "not a group")),
    # The model
    ("model", lambda p: p.search("model.name=resnet21"), ("model", "resnet21", "`resnet20`")),
    ("no module", lambda p: p.search("model.name=nothing:f"), ("model", "no module `nothing`")),
    (
        "no function",
        lambda p: p.search("model.name=tests.pipeline.tiny:tiny_nett"),
        ("model", "tiny_nett", "`tiny_net`?"),
    ),
    ("argument", lambda p: p.search("model.args={widht: 3}"), ("model.args.widht", "`width`?")),
    ("argument value", lambda p: p.search("model.args={width: -1}"), ("model", "args", "-1")),
    ("weights file", lambda p: p.search("model.weights=no.pt"), ("model.weights", "no.pt")),
    ("weights name", lambda p: p.search("model.weights=rsenet"), ("model.weights", "rsenet")),
    (
        "weights are text",
        lambda p: p.search(f"model.weights={p.file('w.pt', 'text')}"),
        ("model.weights", "w.pt", "not a checkpoint"),
    ),
    ("NaN in weights", lambda p: p.weights(**{"fc.bias": NAN}), ("fc.bias", "NaN", "finite")),
    ("infinite weights", lambda p: p.weights(**{"fc.bias": INFINITE}), ("fc.",)),
    ("other classes", lambda p: p.of_model(1, 7), ("model.weights", "(7,)", "(10,)", "classes")),
    (
        "grey images",
        lambda p: p.of_model(3),
        ("model.weights", "stem.weight", "grey images (1)", "data.args.mode"),
    ),
    ("other width", lambda p: p.of_model(1, 10, 8), ("model.weights", "shape")),
    (
        "other architecture",
        lambda p: [*p.weights(), "--set", "model.name=resnet20"],
        ("model.weights", "missing", "conv1.weight"),
    ),
    # The data
    ("data", lambda p: p.search("data.name=fashion"), ("data.name", "fashion", *data_names())),
    ("no root", lambda p: p.search("data={name: cifar10}"), ("data.root", "missing")),
    ("root", lambda p: p.search("data={name: cifar10, root: /no}"), ("data.root", "/no")),
    ("batch", lambda p: p.search("data.batch_size=501"), ("data.batch_size", "501", "500")),
    ("image size", lambda p: p.search("data.image_size=0"), ("data.image_size", "`0`")),
    ("fraction", lambda p: p.search("data.train_fraction=1.1"), ("data.train_fraction", "1.1")),
    (
        "channels of mean",
        lambda p: p.search("data.args={mean: [0, 0, 0], std: [1, 1, 1]}"),
        ("mean",),
    ),
    # The search space
    ("space", lambda p: p.search("space=naroww"), ("space", "naroww", "`narrow`?")),
    (
        "pattern",
        lambda p: p.space(rules=[{"layers": "layer9.*", "dense": False}]),
        ("rules.0.layers", "layer9.*", "no layer", "`stem`"),
    ),
    ("tie", lambda p: p.space(ties=[["left", "rigth"]]), ("ties.0", "rigth", "`right`?")),
    ("two ties", lambda p: p.space(ties=[["left"], ["le*"]]), ("ties.1", "`left`")),
    ("rule", lambda p: p.space(rules=[{"layres": "a"}]), ("space.rules.0.layres", "`layers`?")),
    ("bits", lambda p: p.space(defaults={"weight_bits": [1]}), ("weight_bits.0", "2")),
    ("no bits", lambda p: p.space(defaults={"weight_bits": []}), ("defaults.weight_bits", "[]")),
    (
        "size",
        lambda p: p.space(defaults={"epitome": {"out_channels": ["3/2"]}}),
        ("defaults.epitome.out_channels.0", "3/2", "at most 1"),
    ),
    ("nothing left", lambda p: p.space(defaults={"dense": False}), ("stem", "neither dense")),
    # The chip
    ("chip", lambda p: p.search("hardware.chip=xbar64"), ("hardware.chip", "`xbar_64`?")),
    (
        "chip key in a run",
        lambda p: p.search("hardware.set={crossbar.rowz: 3}"),
        ("hardware.set", "crossbar.rowz", "`rows`?"),
    ),
    ("negative rows", lambda p: p.chip("crossbar.rows=-64"), ("crossbar.rows", "-64")),
    ("packing", lambda p: p.chip("mapping.packing=diced"), ("mapping.packing", "'sliced'")),
    ("no cell bits", lambda p: p.chip("mapping.cell_bits=0"), ("mapping.cell_bits", "1")),
    ("subarray", lambda p: p.chip("crossbar.rows=100"), ("crossbar", "subarray_rows", "100")),
    (
        "kernel larger than a crossbar",
        lambda p: p.chip("crossbar.rows=8", "crossbar.subarray_rows=8"),
        ("c1", "9 rows", "crossbar.rows"),
    ),
    ("chip too small", lambda p: p.chip("mesh.size=[1, 1]"), ("mesh.size", "room for 1 ")),
    ("--set of a chip", lambda p: p.chip("mapping"), ("--set", "mapping", "key=value")),
    ("no hardware", lambda p: ["cost", "--model", "resnet20"], ("--hardware",)),
    # MNSIM's configuration
    ("ini size", lambda p: p.ini("[Crossbar level]\nXbar_Size = 64\n"), ("xbar_size", "two")),
    (
        "ini key",
        lambda p: p.ini("[Crossbar level]\nXbar_Sise = 1\n"),
        ("xbar_sise", "`xbar_size`?"),
    ),
    ("ini section", lambda p: p.ini("[Crossbars]\n"), ("[Crossbars]", "unknown section")),
    ("ini words", lambda p: p.ini("[Crossbar level]\nXbar_Size = a,b\n"), ("xbar_size", "a,b")),
    ("ini without section", lambda p: p.ini("a = b"), ("chip.ini", "section")),
    ("ini ADC", lambda p: p.ini(whole_ini(adc_choice="99")), ("adc", "99", "9")),
    ("empty ini", lambda p: p.ini(""), ("chip.ini", "lacks", "[crossbar level]")),
    # The network YAML
    ("layer key", lambda p: p.network("kernel:", "kernal:"), ("(c1)", "kernal", "`kernel`?")),
    ("kernel", lambda p: p.network("kernel: 3", "kernel: 11"), ("(c1)", "kernel", "at most 10")),
    ("stride", lambda p: p.network("padding: 1", "stride: 0"), ("(c1)", "stride", "from 1")),
    ("input", lambda p: p.network("[c1]", "[c2]"), ("(f1)", "inputs", "`c2`", "`c1`?")),
    ("same name", lambda p: p.network("name: f1", "name: c1"), ("name", "`c1`", "twice")),
    ("type", lambda p: p.network("type: fc", "type: linear"), ("(f1)", "type", "linear")),
    ("features", lambda p: p.network("4096", "4097"), ("(f1)", "in_features", "4096")),
    ("network schema", lambda p: p.network("network@1", "network@2"), ("schema", "network@1")),
    (
        "no layers",
        lambda p: p.network(NETWORK[NETWORK.index("layers") :], ""),
        ("layers", "missing"),
    ),
    ("neither", lambda p: ["cost", "--hardware", "xbar_64"], ("--network", "--model", "neither")),
    ("both", lambda p: p.cost("--model", "resnet20"), ("--network", "--model", "both")),
    ("weight bits", lambda p: p.cost("--weight-bits", 0), ("--weight-bits", "`0`")),
    ("compare", lambda p: p.cost("--compare", "xbar64"), ("--compare", "xbar64", "`xbar_64`?")),
    ("compared bits", lambda p: p.cost("--compare", "w0a9"), ("--compare w0a9", "`0`", "2 to 32")),
    (
        "input shape",
        lambda p: ["cost", "--model", "resnet20", "--hardware", "xbar_64", "--input-shape", "3x3"],
        ("--input-shape", "3x3", "C,H,W"),
    ),
    # The design file
    (
        "epitome too large",
        lambda p: p.design("out_channels: 32", "out_channels: 128"),
        ("design.yaml", "c1", "out_channels", "128", "at most 64"),
    ),
    (
        "more elements than the convolution",
        lambda p: p.design(
            "out_channels: 32, in_channels: 3, height: 3",
            "out_channels: 64, in_channels: 3, height: 4",
        ),
        ("c1", "2304", "1728"),
    ),
    ("epitome below the kernel", lambda p: p.design("height: 3", "height: 2"), ("c1", "height")),
    ("layer missing", lambda p: p.design(DESIGN[DESIGN.index("  f1") :], ""), ("f1", "missing")),
    ("layer unknown", lambda p: p.design("f1:", "f2:"), ("layers.f2", "`f1`?")),
    ("design key", lambda p: p.design("dense:", "dens:"), ("layers.f1.dens", "`dense`?")),
    ("design bits", lambda p: p.design("weight_bits: 3", "weight_bits: 64"), ("c1.weight_bits",)),
    ("dense and epitome", lambda p: p.design("{epitome", "{dense: true, epitome"), ("layers.c1",)),
    ("design schema", lambda p: p.design("design@1", "space@1"), ("schema", "design@1")),
    ("no design", lambda p: p.cost("--design", "no.yaml"), ("no.yaml", "no such file")),
    # Run folders
    ("no folder", lambda p: ["pareto", p.path / "no", "--json"], ("no", "no such folder")),
    ("not a run", lambda p: ["pareto", p.path], ("run.yaml", "epim-nas search")),
    ("dashboard of nothing", lambda p: ["dashboard", p.path], ("run.yaml", "epim-nas search")),
    ("port", lambda p: p.on_run("dashboard", "--port", 70000), ("--port", "70000", "65535")),
    ("journal", lambda p: p.damaged("study.journal", "no\n"), ("study.journal", "damaged")),
    ("stored space", lambda p: p.damaged("space.json", "{"), ("space.json", "damaged")),
    ("stored baseline", lambda p: p.damaged("baseline.json", "{}"), ("baseline.json", "damaged")),
    ("stored run file", lambda p: p.damaged("run.yaml", "a: 1"), ("run.yaml: a:", "unknown")),
    ("other run file", lambda p: [*p.search("seed=9")[:-1], p.stored], ("`seed`", "--out")),
    ("folder of files", lambda p: [*p.search()[:-1], p.path], ("--out", "not the folder of a run")),
    ("out below a file", lambda p: [*p.search()[:-1], p.below_a_file()], ("--out", "folder")),
    (
        "export below a file",
        lambda p: p.on_run("export", "--out", p.below_a_file()),
        ("--out", "folder"),
    ),
    (
        "selection",
        lambda p: p.on_run("export", "--out", p.path, "--select", "knees"),
        ("--select", "knees", "`knee`?"),
    ),
    (
        "trial",
        lambda p: p.on_run("export", "--out", p.path, "--select", 99),
        ("--select", "99", "0 to 4"),
    ),
    (
        "weights of a trial that was not fine-tuned",
        lambda p: p.on_run("export", "--out", p.path, "--to", "weights", "--select", p.untuned()),
        ("--select", "not fine-tuned", "epim-nas finetune"),
    ),
    ("artefact", lambda p: p.on_run("export", "--out", p.path, "--to", "onx"), ("--to", "onx")),
    ("export without out", lambda p: p.on_run("export"), ("--out",)),
    # One design
    (
        "training split",
        lambda p: p.on_design("evaluate", "--split", "train"),
        ("--split", "`train`", "validation, test"),
    ),
    ("split", lambda p: p.on_design("evaluate", "--split", "tset"), ("--split", "`test`?")),
    (
        "weights of a dense network",
        lambda p: p.on_design(
            "evaluate", "--weights", p.stored / "checkpoints" / "baseline.safetensors"
        ),
        ("--weights", "stem.epitome"),
    ),
    ("no weights", lambda p: p.on_design("evaluate", "--weights", "no.pt"), ("--weights", "no.pt")),
    ("epochs", lambda p: p.on_design("finetune", "--epochs", 0), ("--epochs", "1")),
    ("rate", lambda p: p.on_design("finetune", "--lr", 0), ("--lr", "0")),
    ("rate in words", lambda p: p.on_design("finetune", "--lr", "fast"), ("--lr", "fast", "auto")),
    ("average", lambda p: p.on_design("finetune", "--ema", 1.5), ("--ema", "1.5", "less than 1")),
    ("start", lambda p: p.on_design("finetune", "--weights", "no.st"), ("--weights", "no.st")),
    ("workers", lambda p: p.on_design("finetune", "--workers", 0), ("--workers", "1")),
    (
        "export of another network's weights",
        lambda p: p.on_run(
            "export",
            "--out",
            p.path / "out",
            "--to",
            "weights",
            "--weights",
            p.stored / "checkpoints" / "baseline.safetensors",
        ),
        ("--weights", "no such tensor", "epitome"),
    ),
    (
        "design of another network",
        lambda p: ["evaluate", p.stored / "best.yaml", "--run", "demo"],
        ("layers.stem", "resnet20"),
    ),
    (
        "run without weights",
        lambda p: [
            "finetune",
            p.stored / "best.yaml",
            "--run",
            write_run(p.path),
            "--out",
            p.path / "tuned",
        ],
        ("model.weights", "DIR/run.yaml"),
    ),
    # The command line
    ("option", lambda p: ["cost", "--wieght-bits", 3], ("--wieght-bits", "--weight-bits")),
    ("command", lambda p: ["serach"], ("serach", "search")),
    ("argument missing", lambda p: ["search"], ("RUN",)),
    ("number", lambda p: p.cost("--weight-bits", "two"), ("--weight-bits", "integer")),
    ("1 bit", lambda p: p.cost("--weight-bits", 1), ("--weight-bits", "`1`", "2 to 32")),
    ("33 bits", lambda p: p.cost("--weight-bits", 33), ("--weight-bits", "`33`", "2 to 32")),
    ("1 input bit", lambda p: p.cost("--activation-bits", 1), ("--activation-bits", "2 to 32")),
    ("many compared bits", lambda p: p.cost("--compare", "w" + "9" * 5000 + "a9"), ("--compare",)),
    (
        "empty shape",
        lambda p: [*MODEL, "--input-shape", ""],
        ("--input-shape", "''", "leave it out"),
    ),
    ("huge shape", lambda p: [*MODEL, "--input-shape", "3,99999,99999"], ("--input-shape",)),
    ("long shape", lambda p: [*MODEL, "--input-shape", "9" * 5000 + ",1,1"], ("--input-shape",)),
    ("many classes", lambda p: [*MODEL, "--classes", 10**12], ("--classes", "1 to 1048576")),
    ("no classes", lambda p: p.cost("--classes", 0), ("--classes", "has its own")),
    ("empty out", lambda p: [*p.search()[:-1], ""], ("--out", "''", "leave it out")),
    ("empty out after =", lambda p: [*p.search()[:-2], "--out="], ("--out", "''")),
    (
        "empty image",
        lambda p: ["launch", write_run(p.path), "--on", "kuberay", "--image", " "],
        ("--image", "leave it out"),
    ),
    ("NUL", lambda p: p.cost("--design", "a\0.yaml"), ("--design", "\\x00")),
    ("long name", lambda p: p.cost("--design", "a" * 5000), ("aaaa ... aaaa", "too long")),
    ("no such user", lambda p: p.search("data.root=~nobody_here/x"), ("data.root", "nobody_here")),
]


def check(code: int, stdout: str, stderr: str, words: tuple[str, ...]) -> None:
    messages = [line for line in stderr.splitlines() if line.startswith("epim-nas: ")]
    others = [line for line in stderr.splitlines() if not line.startswith("epim-nas: ")]
    assert code == 2, stderr
    assert len(messages) == 1, stderr
    # Besides the message only the log, whose lines begin with their level.
    assert all(re.match(r"[IW] ", line) for line in others), stderr
    assert "Traceback" not in stderr
    assert "This is a bug" not in stderr
    for word in words:
        assert word in messages[0], messages[0]
    assert stdout == ""


@pytest.mark.parametrize(("arguments", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_message_names_the_field(
    arguments: Callable[[Place], list[object]],
    words: tuple[str, ...],
    tmp_path: Path,
    stored: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(part) for part in arguments(Place(tmp_path, stored))]
    capsys.readouterr()
    code = run_command(given)
    captured = capsys.readouterr()
    check(code, captured.out, captured.err, words)


DAMAGED = [
    ("supernet.json", "[[1, 2.3]", ("pareto", "export"), "EOF"),
    ("supernet.json", "{}", ("pareto", "export"), "array"),
    ("supernet.json", "[[1]]", ("pareto", "export"), "0.1: "),
    ("supernet.json", '[[1, "high"]]', ("pareto", "export"), "0.1: "),
    ("stages.json", "{", ("pareto", "export", "search"), "EOF"),
    ("stages.json", "[]", ("pareto", "export", "search"), "object"),
    ("stages.json", '{"baseline": "long"}', ("pareto", "export", "search"), "baseline: "),
    ("versions.json", "", ("pareto", "export", "search"), "EOF"),
    ("versions.json", '{"torch": "\xff"}', ("pareto", "export", "search"), "unicode"),
    ("versions.json", '"torch"', ("pareto", "export", "search"), "object"),
    ("versions.json", '{"torch": 2}', ("pareto", "export", "search"), "torch: "),
    ("budget.json", '{"crossbars": "few"}', ("pareto", "export"), "crossbars"),
]
"""File of a run folder, its content, the commands that read it, and what one says of it."""


@pytest.mark.parametrize(
    ("name", "content", "reader", "reason"),
    [
        (name, content, reader, reason)
        for name, content, readers, reason in DAMAGED
        for reader in readers
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_its_fault(
    name: str,
    content: str,
    reader: str,
    reason: str,
    tmp_path: Path,
    stored: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(part) for part in Place(tmp_path, stored).damaged(name, content, reader)]
    capsys.readouterr()
    code = run_command(given)
    captured = capsys.readouterr()
    words = (str(tmp_path / "damaged" / name), "damaged", reason, "Delete it and run the search")
    check(code, captured.out, captured.err, words)


def test_there_are_enough_different_cases() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 45


@pytest.mark.parametrize(
    "name", ["unknown key", "not YAML", "budget out of reach", "artefact", "command"]
)
def test_the_same_in_a_process_of_its_own(name: str, tmp_path: Path, stored: Path) -> None:
    _, arguments, words = next(case for case in CASES if case[0] == name)
    done = command.run(*arguments(Place(tmp_path, stored)))
    check(done.returncode, done.stdout, done.stderr, words)


def test_a_loss_that_is_not_finite_is_one_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    place = Place(tmp_path, stored)
    # A decay of more than 1 a step makes the weights grow without bound.
    code = run_command(
        [
            str(part)
            for part in place.search(
                "baseline.lr=9.9", "baseline.weight_decay=0.99", "baseline.steps=100"
            )
        ]
    )
    captured = capsys.readouterr()
    assert code == 2
    messages = [line for line in captured.err.splitlines() if line.startswith("epim-nas: ")]
    assert len(messages) == 1
    assert "learning rate" in messages[0]
    assert "nan" in messages[0] or "inf" in messages[0]
    assert "bug" not in captured.err
    assert captured.out == ""


def test_numbers_in_scientific_notation_are_numbers(
    tmp_path: Path, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # YAML 1.1 takes `1e-3` for text. The next error shows that it was taken for a number.
    place = Place(tmp_path, stored)
    path = write_run(tmp_path, budget={"crossbars": 5})
    path.write_text(re.sub(r"lr: 0\.1\b", "lr: 1e-1", path.read_text()))
    assert yaml.safe_load(path.read_text())["baseline"]["lr"] == "1e-1"
    code = run_command(
        ["search", str(path), "--set", "supernet.lr=5E-3", "--out", str(place.path / "run")]
    )
    assert code == 2
    assert "budget.crossbars" in capsys.readouterr().err
    written = yaml.safe_load((place.path / "run" / "run.yaml").read_text())
    assert written["baseline"]["lr"] == 0.1
    assert written["supernet"]["lr"] == 0.005
