"""What comes with the package: presets, networks, data sets, strategies."""

from __future__ import annotations

from pathlib import Path

from epim_nas import presets
from epim_nas.data.registry import data_names
from epim_nas.files import load_yaml
from epim_nas.models.registry import default_input_shape, model_names
from epim_nas.study.strategies import STRATEGIES


def catalogue() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line about it."""
    return {
        "run files": _presets("runs"),
        "search spaces": _presets("search_spaces"),
        "chips": _presets("cost_models"),
        "networks": {
            name: "x".join(map(str, default_input_shape(name))) + " input" for name in model_names()
        },
        "data sets": dict.fromkeys(data_names(), ""),
        "strategies": {name: strategy.summary for name, strategy in STRATEGIES.items()},
    }


def _presets(kind: presets.Kind) -> dict[str, str]:
    return {name: _summary(presets.find(kind, name, kind)) for name in presets.names(kind)}


def _summary(path: Path) -> str:
    """The description in the file, else the first sentence of its heading comment."""
    data = load_yaml(path)
    if isinstance(data, dict) and data.get("description"):
        return str(data["description"])
    sentence: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        sentence.append(line.lstrip("# "))
        if line.endswith((".", ":")):
            break
    return " ".join(sentence).rstrip(":")
