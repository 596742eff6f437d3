"""Export of a network of epitomes as ONNX, with whole weights or with epitomes and index tables.

The graph is that of PyTorch's exporter, with the weights of the epitome layers left open. They are
filled in afterwards: by initialisers, or by a few nodes that sample them from the epitomes.
"""

from epim_nas.export.onnx.comparison import TOLERANCE, Comparison
from epim_nas.export.onnx.export import FILES, OnnxExport, export_both_forms, export_onnx

__all__ = ["FILES", "TOLERANCE", "Comparison", "OnnxExport", "export_both_forms", "export_onnx"]
