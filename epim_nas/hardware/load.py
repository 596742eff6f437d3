"""Reading chip descriptions: presets, YAML files, MNSIM 2.0 configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epim_nas import presets
from epim_nas.errors import InputError
from epim_nas.files import load_yaml, user_path
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.mnsim_ini import read_ini
from epim_nas.schema import apply_overrides, describe, validate


def load_chip(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    field: str = "--hardware",
    option: str = "--set",
) -> Chip:
    """The chip of a preset's name, a chip YAML, or an MNSIM 2.0 ``SimConfig.ini``.

    Args:
        name_or_path: e.g. ``epim_256``, ``chips/mine.yaml``, ``SimConfig.ini``.
        overrides: ``key.path=value`` changes to the keys of the chip YAML.
        field: where the chip was named, for messages.
        option: where the changes were given, for messages.

    Raises:
        InputError: the file is missing or a key is unknown, missing or out of range.
    """
    data: Any
    if Path(name_or_path).suffix.lower() == ".ini":
        source = name_or_path
        data = read_ini(user_path(name_or_path, field))
    else:
        path = presets.find("cost_models", name_or_path, field)
        source = str(path)
        data = load_yaml(path)
    if not isinstance(data, dict):
        raise InputError(source, f"got {describe(data)}", "the keys of a chip description")
    if overrides:
        data = apply_overrides(data, list(overrides), option)
        source = f"{source} with {option}"
    chip = validate(Chip, data, source)
    Components.of(chip)  # What only shows when combined (an SRAM that is not made) fails here.
    return chip
