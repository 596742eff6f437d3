"""Chip presets (YAML), found by name through :mod:`epim_nas.presets`."""
