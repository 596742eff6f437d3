"""Run files (YAML), found by name through :mod:`epim_nas.presets`."""
