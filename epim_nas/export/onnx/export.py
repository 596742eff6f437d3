"""Writing the file."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.quantization import ActivationQuantizer
from epim_nas.errors import InputError, missing_extra
from epim_nas.export.onnx.comparison import BATCHES, Comparison, check_file, compare
from epim_nas.export.onnx.recording import Opened, first_line, prepend
from epim_nas.export.onnx.sampling import Sampling, tensor_of
from epim_nas.files import atomic_path
from epim_nas.network.modules import clone

if TYPE_CHECKING:
    from onnx import ModelProto

Form = Literal["expanded", "epitomes"]

LARGEST_FILE = 2**31

log = logging.getLogger(__name__)

FILES: dict[Form, str] = {"expanded": "network.onnx", "epitomes": "network_epitomes.onnx"}
"""Form -> its file in an export folder."""


@dataclass(frozen=True)
class OnnxExport:
    """What was exported.

    Attributes:
        path: the file.
        form: what the epitome layers have become.
        expanded_bytes: size of a file of the form ``expanded``.
        epitomes_bytes: size of a file of the form ``epitomes``.
        epitome_bytes: of it, the epitomes and their quantization steps.
        index_bytes: of it, the index tables.
        comparison: None where onnxruntime is not installed.
    """

    path: Path
    form: Form
    expanded_bytes: int
    epitomes_bytes: int
    epitome_bytes: int
    index_bytes: int
    comparison: Comparison | None

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.expanded_bytes if self.form == "expanded" else self.epitomes_bytes

    def __str__(self) -> str:
        text = f"{self.path.name}: {self.file_bytes:,} bytes"
        if self.comparison is None:
            return f"{text}; not compared with PyTorch, since onnxruntime is not installed"
        found = self.comparison
        return (
            f"{text}; {found.runtime} differs from PyTorch by {found.max_difference:.1e} at most, "
            f"and in the rounding of {found.flips} of {found.activations:,} activations"
        )


def export_onnx(
    model: nn.Module,
    input_shape: Sequence[int],
    path: str | Path,
    *,
    form: Form,
    metadata: Mapping[str, str] | None = None,
) -> OnnxExport:
    """Replace ``path`` by the network as ONNX, then check it and compare it with PyTorch.

    The network is exported in evaluation mode, with any number of inputs at once. Every epitome
    layer becomes a ``Conv`` or a ``Gemm`` with exactly the layer's weight. Before it ``Div``,
    ``Round``, ``Clip`` and ``Mul`` round the input as the layer does. (Wrapped layers compute their
    replicas, which a plain convolution cannot share.) The weight is

    - ``expanded``: an initialiser;
    - ``epitomes``: sampled from the epitome, which is the initialiser, by ``Gather`` nodes with
      small index tables. An epitome of up to 16 bits is stored as int8 or int16, with its steps.
      Runtimes that fold constants do so once, when they load the file. Layers of a few hundred
      weights may take more bytes than expanded: nodes and tables have theirs.

    Args:
        model: a network, such as :func:`~epim_nas.apply_design` returns; it is not changed.
        input_shape: shape of one input without the batch: (channels, height, width).
        path: where to write.
        form: ``expanded`` or ``epitomes``.
        metadata: texts to keep in the file.

    Raises:
        InputError: a package is missing, an unknown form, a model that does not run on the shape,
            is not float32, has NaN or infinity in it or inputs that were never calibrated, or a
            path that cannot be written.
        Inexpressible: PyTorch's exporter cannot export the model.
        EpimError: the file is damaged, is not valid ONNX, or computes something else than the model
            (:class:`Comparison`).
    """
    if form not in get_args(Form):
        raise InputError("form", f"got `{form}`", ", ".join(get_args(Form)))
    path = Path(path)
    if path.is_dir():
        raise InputError(str(path), "is a folder, not a file")
    return _write(_graphs(model, input_shape), form, path, metadata or {})


@dataclass(frozen=True)
class _Graphs:
    """A network as ONNX, before it is written.

    Attributes:
        onnx: the package.
        reference: the network in PyTorch.
        input_shape: of one input, without the batch.
        parts: how the weights are sampled.
        recorded: name of every quantized activation.
        forms: the graph of each form.
    """

    onnx: Any
    reference: nn.Module
    input_shape: Sequence[int]
    parts: list[Sampling]
    recorded: list[str]
    forms: dict[Form, ModelProto]


def _graphs(model: nn.Module, input_shape: Sequence[int]) -> _Graphs:
    """Record a network; the forms differ in where its weights come from."""
    onnx = _require_onnx()
    reference = clone(model).cpu().eval()
    _check_model(reference, input_shape)
    opened = Opened(clone(reference))
    parts = [Sampling(layer) for layer in opened.layers]
    for part in parts:
        part.check()
    epitomes = opened.export(input_shape)
    expanded = copy.deepcopy(epitomes)
    prepend(expanded, [], [tensor_of(layer.weight_name, layer.weight) for layer in opened.layers])
    for part in parts:
        prepend(epitomes, part.nodes, [*part.data.values(), *part.tables.values()])
    forms: dict[Form, ModelProto] = {"expanded": expanded, "epitomes": epitomes}
    return _Graphs(onnx, reference, input_shape, parts, opened.recorded, forms)


def _write(graphs: _Graphs, form: Form, path: Path, metadata: Mapping[str, str]) -> OnnxExport:
    """Write one form, checked and compared; the sizes of both are without the metadata."""
    expanded_bytes, epitomes_bytes = (graph.ByteSize() for graph in graphs.forms.values())
    chosen = copy.deepcopy(graphs.forms[form])
    graphs.onnx.helper.set_model_props(chosen, dict(metadata))
    content = chosen.SerializeToString()
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            check_file(temporary, content, path)
            comparison = compare(
                graphs.onnx.load(temporary), graphs.reference, graphs.recorded,
                graphs.input_shape, path,
            )  # fmt: skip
    except OSError as error:
        raise InputError(
            str(path), f"cannot be written: {error.strerror or error}", "a file that can be written"
        ) from None
    return OnnxExport(
        path,
        form,
        expanded_bytes,
        epitomes_bytes,
        sum(len(tensor.raw_data) for part in graphs.parts for tensor in part.data.values()),
        sum(len(tensor.raw_data) for part in graphs.parts for tensor in part.tables.values()),
        comparison,
    )


def export_both_forms(
    model: nn.Module, input_shape: Sequence[int], folder: Path, metadata: Mapping[str, str]
) -> list[Path]:
    """Write the network in both forms; returns the files. Errors: :func:`export_onnx`."""
    graphs = _graphs(model, input_shape)  # once: recording takes most of the time
    files = []
    for form, name in FILES.items():
        made = _write(graphs, form, folder / name, metadata)
        files.append(made.path)
        log.info("%s", made)
    return files


def _require_onnx() -> Any:
    for name in ("onnx", "onnxscript"):
        try:
            import_module(name)
        except ImportError:
            raise missing_extra(name, "onnx", "the export to ONNX") from None
    return import_module("onnx")


def _check_model(model: nn.Module, input_shape: Sequence[int]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer) and float(module.step.detach()) == 0:
            raise InputError(
                f"model: {name}",
                "its inputs were never calibrated",
                "a step from a batch of images",
                "Run the model on a batch before it is exported.",
            )
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(
                f"model: {name}", f"is {value.dtype}", "float32", "Export `model.float()`."
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"model: {name}", "contains NaN or infinity", "finite numbers")
    weights = (m.weight for m in model.modules() if isinstance(m, (EpitomeConv2d, EpitomeLinear)))
    whole = sum(value.numel() for value in (*model.parameters(), *weights))
    if 4 * whole >= LARGEST_FILE:
        raise InputError(
            "model", f"has {whole} weights", "less than 2 GiB, the limit of a protobuf"
        )
    # With another number than it is recorded with: no layer may be made for one number.
    count = max(BATCHES)
    try:
        with torch.no_grad():
            output = model(torch.zeros(count, *input_shape))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            "input_shape",
            f"the model does not run on {count} of {tuple(input_shape)} ({first_line(error)})",
            "(channels, height, width) of one input",
        ) from None
    if not isinstance(output, Tensor):
        raise InputError("model", f"returns {type(output).__name__}", "one tensor")
