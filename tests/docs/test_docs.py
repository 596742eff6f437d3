"""The documentation keeps up with the code: keys and defaults, links, YAML and Python blocks."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from epim_nas import presets
from epim_nas.data.config import DataConfig
from epim_nas.hardware import load_chip
from epim_nas.hardware.components import Components
from epim_nas.pipeline import config as c
from epim_nas.space.config import EpitomeChoices, LayerChoices, Rule, SpaceConfig
from epim_nas.study.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ROW = re.compile(r"^\| (.+?) \|$", re.MULTILINE)


def _rows(text: str) -> dict[str, list[str]]:
    """First cell (one key in backticks) -> the other cells."""
    found = {}
    for match in ROW.finditer(text):
        cells = [cell.strip() for cell in match[1].split(" | ")]
        for key in re.findall(r"`([a-z0-9_.]+)`", cells[0]):
            found[key] = cells[1:]
    return found


def _section(name: str, page: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return next(part for part in parts if part.splitlines()[0].startswith(name))


def _default(model: type[pydantic.BaseModel], name: str) -> Any:
    return model.model_fields[name].get_default(call_default_factory=True)


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("Top level", c.RunConfig),
        ("`model`", c.ModelConfig),
        ("`data`", DataConfig),
        ("`hardware`", c.HardwareConfig),
        ("`budget`", c.BudgetConfig),
        ("`quantization`", c.QuantizationConfig),
        ("`projection`", c.ProjectionConfig),
        ("`sensitivity`", c.SensitivityConfig),
        ("`search`", c.SearchConfig),
        ("`executor`", c.ExecutorConfig),
    ],
)
def test_run_file_page_has_every_key_with_its_default(
    title: str, model: type[pydantic.BaseModel]
) -> None:
    rows = _rows(_section(title, "run_file.md").replace("`epim-nas/run@1`", "text"))
    for name, field in model.model_fields.items():
        key = field.alias or name
        assert key in rows, key
        stated = rows[key][1]
        if field.is_required():
            assert stated == "required", key
        elif stated not in ("below", "none"):
            assert yaml.safe_load(stated.strip("`")) == _default(model, name), key


def test_run_file_page_has_the_trainings() -> None:
    rows = _rows(_section("Trainings", "run_file.md"))
    groups = {"baseline": c.BaselineConfig, "supernet": c.SupernetConfig,
              "finalists": c.FinalistsConfig, "finetune": c.FinetuneConfig}  # fmt: skip
    run = {name: _default(c.RunConfig, name) for name in groups}
    for key in c.TrainingConfig.model_fields:
        for column, group in enumerate(groups, 1):
            assert yaml.safe_load(rows[key][column].strip("`")) == getattr(run[group], key), key
    for group, model in groups.items():
        for key in set(model.model_fields) - set(c.TrainingConfig.model_fields):
            stated = rows[f"{group}.{key}"][1]
            assert yaml.safe_load(stated.strip("`")) == getattr(run[group], key)


def test_search_space_page_has_every_key() -> None:
    text = (ROOT / "docs" / "search_space.md").read_text()
    rows = _rows(text)
    for model in (SpaceConfig, LayerChoices, EpitomeChoices, Rule):
        for name, field in model.model_fields.items():
            assert (field.alias or name) in rows, name


def test_chips_are_listed_with_what_they_are() -> None:
    rows = _rows(_section("`hardware`", "run_file.md"))
    for name in presets.names("cost_models"):
        chip = load_chip(name)
        assert rows[name][1:] == [
            f"{chip.crossbar.rows}x{chip.crossbar.columns}, {chip.mapping.packing}",
            f"{chip.mapping.cell_bits} bit{'s' if chip.mapping.cell_bits > 1 else ''}",
            "pairs" if chip.mapping.polarity == 2 else "a bit",
            f"{Components.of(chip).adc.bits} bits",
        ]


def test_strategies_are_listed() -> None:
    assert set(STRATEGIES) <= set(_rows(_section("`search`", "run_file.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if file.name == "front.png":
            continue  # drawn by the demo
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, (target, slugs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_parse(page: Path) -> None:
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "python":
            ast.parse(block)
        elif language == "yaml":
            yaml.safe_load(block)
