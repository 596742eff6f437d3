"""The published JSON Schemas: they are those of the models, and real files keep them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from epim_nas import InputError
from epim_nas.json_schemas import json_schema, models

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs/schemas"


@pytest.mark.parametrize("kind", sorted(models()))
def test_published_schemas_are_those_of_the_models(kind: str) -> None:
    published = json.loads((PUBLISHED / f"{kind}.json").read_text())
    assert published == json_schema(kind), f"epim-nas schema {kind} > docs/schemas/{kind}.json"
    jsonschema.Draft202012Validator.check_schema(published)


@pytest.mark.parametrize(
    ("kind", "path"),
    [("run", path) for path in sorted((ROOT / "runs").glob("*.yaml"))]
    + [("space", path) for path in sorted((ROOT / "search_spaces").glob("*.yaml"))]
    + [("chip", path) for path in sorted((ROOT / "cost_models").glob("*.yaml"))],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_shipped_files_keep_them(kind: str, path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema(kind))


def test_designs_keep_theirs_and_wrong_ones_do_not() -> None:
    layer = {"epitome": {"out_channels": 16, "in_channels": 8, "height": 4, "width": 4},
             "wrap": True, "weight_bits": 3}  # fmt: skip
    design = {"schema": "epim-nas/design@1", "network": "tiny", "layers": {"a": layer}}
    jsonschema.validate(design, json_schema("design"))
    for changed in ({"weight_bits": 1}, {"bits": 3}, {"epitome": {"out_channels": 16}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {**design, "layers": {"a": {**layer, **changed}}}, json_schema("design")
            )


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(InputError, match="designs"):
        json_schema("designs")
