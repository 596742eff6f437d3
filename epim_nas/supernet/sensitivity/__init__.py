"""Sensitivity: the expected loss that each choice of each layer adds, on its own.

A choice is scored as a whole, its shape together with its bits. The sum over layers is an additive
score: it ranks designs and is what the exact solver minimises. No method needs labels.
"""

from epim_nas.supernet.sensitivity.methods import (
    METHODS,
    Method,
    Table,
    find_method,
    measure_table,
)

__all__ = ["METHODS", "Method", "Table", "find_method", "measure_table"]
