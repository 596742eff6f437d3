"""Exports: design files, layer tables, weights, and the manifest that vouches for them.

Import from the modules: :mod:`epim_nas.export.design` and :mod:`epim_nas.export.manifest` work
without torch, :mod:`epim_nas.export.weights` loads it when it is used.
"""
