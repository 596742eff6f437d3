"""The network's graph from PyTorch's exporter, with the weights of epitome layers left open."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization import ActivationQuantizer
from epim_nas.errors import Inexpressible, InputError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Array = npt.NDArray[Any]

OPSET = 18
"""Operator set of the files: what PyTorch's exporter writes without converting."""

INPUT, OUTPUT, BATCH = "input", "output", "batch"


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Layer:
    """An epitome layer, as it is stored.

    Attributes:
        name: its dotted path.
        plan: its plan.
        weight: the whole weight, of a convolution's or a linear layer's shape.
        values: (Oe, Ie, He, We) integers, or float32 where it is not stored as integers.
        steps: steps that broadcast with them, None where they are float32.
    """

    name: str
    plan: SamplingPlan
    weight: Array
    values: Array
    steps: Array | None

    @classmethod
    def of(cls, name: str, layer: EpitomeConv2d | EpitomeLinear) -> Layer:
        """A layer of a network; the weights are those of evaluation mode."""
        weight = layer.weight.detach()
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"model: {name}", "its weight has NaN or Inf in it", "finite values")
        values = layer.quantized_epitome.detach()
        steps = None
        if layer.weight_bits is not None and layer.weight_bits <= 16:
            integers = layer.weight_quantizer.integers(layer.epitome)
            integers = integers.to(torch.int8 if layer.weight_bits <= 8 else torch.int16)
            found = layer.weight_quantizer.steps(layer.epitome)
            # Integers stand for the values only if their product is the same float.
            if torch.equal(integers.float() * found, values):
                values, steps = integers, found.numpy()
        return cls(name, layer.plan, weight.numpy(), values.numpy(), steps)

    @property
    def weight_name(self) -> str:
        """Name of the weight in the graph."""
        return dotted(self.name, "weight")


def dotted(name: str, part: str) -> str:
    """The path of a part of a module."""
    return f"{name}.{part}" if name else part


class Tape:
    """What a network and its layers hand over while it is recorded, past their arguments.

    Attributes:
        weights: the weight of every opened layer.
        rounded: the rounded inputs of the layers so far.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.rounded: list[Tensor] = []


class Rounding(nn.Module):
    """What a calibrated quantizer of activations does in evaluation mode, without its autograd."""

    def __init__(self, quantizer: ActivationQuantizer, tape: Tape) -> None:
        super().__init__()
        self.step = float(quantizer.step.detach().abs())
        self.low, self.high = (float(v) for v in quantizer.range(bool(quantizer.signed)))
        self.tape = tape

    def forward(self, x: Tensor) -> Tensor:
        """The rounded input."""
        out = (x / self.step).round().clamp(self.low, self.high) * self.step
        self.tape.rounded.append(out)
        return out


class OpenConv2d(nn.Conv2d):
    """A convolution whose weight is an input of the network."""

    rounding: nn.Module
    tape: Tape
    name: str

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the convolution's output."""
        return self._conv_forward(self.rounding(input), self.tape.weights[self.name], self.bias)


class OpenLinear(nn.Linear):
    """A linear layer whose weight is an input of the network."""

    rounding: nn.Module
    tape: Tape
    name: str

    def forward(self, input: Tensor) -> Tensor:
        """(N, ..., in) to (N, ..., out)."""
        return F.linear(self.rounding(input), self.tape.weights[self.name], self.bias)


def _open(layer: EpitomeConv2d | EpitomeLinear, name: str, tape: Tape) -> nn.Module:
    """The dense layer that computes the same with the weight that is on the tape."""
    opened: OpenConv2d | OpenLinear
    bias = layer.bias is not None
    if isinstance(layer, EpitomeConv2d):
        opened = OpenConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias,
            layer.padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
    else:
        opened = OpenLinear(layer.in_features, layer.out_features, bias, device="meta")
    del opened.weight
    opened.bias = layer.bias
    opened.rounding = (
        nn.Identity() if layer.activation is None else Rounding(layer.activation, tape)
    )
    opened.tape, opened.name = tape, name
    return opened.eval()


class Opened(nn.Module):
    """The network with dense layers for its epitome layers, whose weights are inputs.

    As initialisers, PyTorch's exporter would transpose weights, or fold a normalisation into them;
    what is quantized has to stay as it is. The quantized activations are outputs, to compare them.

    Attributes:
        layers: what was replaced.
        recorded: name of every quantized activation in the exported graph, as they are computed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layers: list[Layer] = []
        self.recorded: list[str] = []
        self._tape = Tape()
        opened: dict[nn.Module, nn.Module] = {}  # a layer may be used under several names
        for name, module in [*self.named_modules(remove_duplicate=False)]:
            if not isinstance(module, (EpitomeConv2d, EpitomeLinear)):
                continue
            if module not in opened:
                layer = Layer.of(name.removeprefix("network").removeprefix("."), module)
                self.layers.append(layer)
                opened[module] = _open(module, layer.name, self._tape)
            parent, _, last = name.rpartition(".")
            setattr(self.get_submodule(parent), last, opened[module])

    def forward(self, x: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The network's output, and the rounded inputs of its epitome layers."""
        names = (layer.name for layer in self.layers)
        self._tape.weights = dict(zip(names, weights, strict=True))
        self._tape.rounded = []
        out = self.network(x)
        return out, self._tape.rounded

    def export(self, input_shape: Sequence[int]) -> ModelProto:
        """The graph of the network, where the weights are names without a value.

        Raises:
            Inexpressible: PyTorch's exporter refuses the network.
        """
        x = torch.zeros(2, *input_shape)
        weights = [torch.from_numpy(layer.weight) for layer in self.layers]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorded = len(self(x, weights)[1])
            names = [f"rounded.{number}" for number in range(recorded)]
            try:
                # Given the module, torch.onnx would go on to slower ways to record what cannot be.
                recording = torch.export.export(
                    self.eval(),
                    (x, weights),
                    dynamic_shapes=({0: torch.export.Dim(BATCH)}, [None] * len(weights)),
                    strict=False,
                )
                program = torch.onnx.export(
                    recording,
                    dynamo=True,
                    verbose=False,
                    opset_version=OPSET,
                    input_names=[INPUT, *(f"network.{item.weight_name}" for item in self.layers)],
                    output_names=[OUTPUT, *names],
                )
            except Exception as error:  # of many kinds, from each of the exporter's stages
                cause = error.__cause__ or error
                raise Inexpressible(
                    "model",
                    "PyTorch cannot export it to ONNX with any number of inputs at once: "
                    f"{first_line(cause)}",
                ) from error
        assert program is not None
        model: ModelProto = program.model_proto
        self.recorded = [output.name for output in model.graph.output][1:]
        _tidy(model, self.recorded, [layer.weight_name for layer in self.layers])
        return model


def _tidy(model: ModelProto, recorded: list[str], weights: list[str]) -> None:
    """Keep of an exported graph what computes the output, under the model's names."""
    from onnx import ModelProto

    graph = model.graph
    known = {item.name for item in (*graph.input, *graph.initializer)}
    known |= {name for node in graph.node for name in node.output}
    names = {name: name.removeprefix("network.") for name in known if name.startswith("network.")}
    # A parameter may be called like a value of the exporter; the open weights have to be renamed.
    names = {old: new for old, new in names.items() if new not in known or new in weights}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        # Traces of Python's stack, with the paths of this machine, larger than small weights.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for item in graph.initializer:
        item.name = names.get(item.name, item.name)
        item.ClearField("metadata_props")
    data, output = graph.input[0], graph.output[0]
    symbol = data.type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        raise Inexpressible("model", "PyTorch exports it for one number of inputs only")
    for value in (data, output):
        value.ClearField("metadata_props")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH
    needed = {output.name, *recorded}
    keep: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(filter(None, node.input))
            keep.append(node)
    tidy = ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        producer_name="epim_nas",
    )
    tidy.graph.name = "network"
    tidy.graph.node.extend(reversed(keep))
    tidy.graph.initializer.extend(item for item in graph.initializer if item.name in needed)
    tidy.graph.input.append(data)
    tidy.graph.output.append(output)
    model.CopyFrom(tidy)


def prepend(model: ModelProto, nodes: Sequence[NodeProto], tensors: Sequence[TensorProto]) -> None:
    """Add initialisers, and nodes before all others: their order is that of computation."""
    rest = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.initializer.extend(tensors)
