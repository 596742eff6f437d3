"""Turns the operations of a traced model, one after the other, into layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from epim_nas.errors import InputError
from epim_nas.network import _operations as ops
from epim_nas.network._forward import check_forward
from epim_nas.network._geometry import adaptive_pooling, output_size, same_padding
from epim_nas.network.spec import INPUT_BESIDE, LayerSpec, Network, input_name

Sources = tuple[str, ...]
"""The layers whose outputs, concatenated by channel, make up a tensor."""

_HINT = "Describe the network in a YAML file (epim-nas/network@1) if the model cannot be changed."


class LayerBuilder:
    """Collects :class:`LayerSpec` while the nodes of a traced graph are visited in order.

    Args:
        model: the traced model; its modules are looked up by the targets of the nodes.
        paths: node -> dotted path of the module whose ``forward`` contains it.
    """

    def __init__(self, model: nn.Module, paths: Mapping[fx.Node, str]) -> None:
        self.layers: list[LayerSpec] = []
        self._modules = dict(model.named_modules())
        self._paths = paths
        self._sources: dict[fx.Node, Sources] = {}
        self._called: dict[int, str] = {}
        self._weights: dict[int, list[tuple[int, int, str]]] = {}
        self._names: set[str] = set()

    def visit(
        self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Record what one node does.

        Args:
            node: the node.
            args: its positional arguments as they were in the run.
            kwargs: its keyword arguments as they were in the run.
            result: what it returned.

        Raises:
            InputError: it does something that has no layer.
        """
        if node.op == "placeholder":
            if isinstance(result, torch.Tensor):
                self._sources[node] = (INPUT_BESIDE,)
            return
        flows = [operand for operand in node.all_input_nodes if operand in self._sources]
        # Sizes, assertions and constants need no hardware.
        if node.op in ("output", "get_attr") or not flows or not ops.holds_tensor(result):
            return
        if node.op == "call_module":
            sources = self._module(node, flows[0], args or [kwargs.get("input")], result)
        else:
            sources = self._function(node, flows, args, kwargs, result)
        if sources:
            self._sources[node] = sources
            if ops.is_in_place(node) and node.args and isinstance(node.args[0], fx.Node):
                self._sources[node.args[0]] = sources

    def network(self, name: str, input_shape: tuple[int, int, int]) -> Network:
        """The network of all layers so far."""
        image = input_name(layer.name for layer in self.layers)
        layers = [
            replace(layer, inputs=tuple(image if n == INPUT_BESIDE else n for n in layer.inputs))
            for layer in self.layers
        ]
        return Network(name, tuple(layers), input_shape)

    # --- modules -----------------------------------------------------------------------------

    def _module(self, node: fx.Node, flow: fx.Node, args: Sequence[Any], result: Any) -> Sources:
        target = str(node.target)
        module = self._modules[target]
        source = args[0]
        if not isinstance(source, torch.Tensor):
            raise InputError(
                f"model: {target}", "is not called with a tensor as its first argument", "", _HINT
            )
        if ops.is_conv(module):
            return self._conv(target, module, self._sources[flow], source, result)
        if ops.is_linear(module):
            return self._linear(target, module, self._sources[flow], source)
        if isinstance(module, ops.POOLING):
            return self._pool(
                target, self._sources[flow], source, result, *ops.pooling_window(module)
            )
        if isinstance(module, (*ops.PASS_THROUGH, *ops.ACTIVATIONS)):
            return self._sources[flow]
        if isinstance(module, ops.UPSAMPLING):
            return self._upsample(f"model: {target}", self._sources[flow], module.mode)
        problem, hint = ops.unsupported_module(module)
        raise InputError(f"model: {target}", problem, hint=hint)

    def _conv(
        self,
        target: str,
        module: Any,
        sources: Sources,
        source: torch.Tensor,
        result: torch.Tensor,
    ) -> Sources:
        self._check_used_once(target, module)
        if source.dim() != 4:
            raise InputError(
                f"model: {target}",
                f"the convolution's input has shape {tuple(source.shape)}",
                "(batch, channels, height, width)",
                _HINT,
            )
        kernel, stride, dilation = (
            ops.pair(getattr(module, name)) for name in ("kernel_size", "stride", "dilation")
        )
        padding = _resolve_padding(target, module.padding, kernel, dilation)
        spec = LayerSpec(
            name=self._unique(target),
            type="conv",
            inputs=sources,
            in_channels=int(module.in_channels),
            out_channels=int(module.out_channels),
            input_size=_size(source),
            output_size=_size(result),
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=int(module.groups),
        )
        computed = output_size(spec.input_size, kernel, stride, padding, dilation)
        if computed != spec.output_size:
            raise InputError(
                f"model: {target}",
                f"the output is {spec.output_size}, but kernel {kernel}, stride {stride} and "
                f"padding {padding} give {computed}: the module pads asymmetrically",
                "the same padding on both sides",
                "Pad explicitly (nn.ZeroPad2d) before a convolution without padding.",
            )
        check_forward(target, module, nn.Conv2d, source)
        return self._append(spec)

    def _linear(self, target: str, module: Any, sources: Sources, source: torch.Tensor) -> Sources:
        self._check_used_once(target, module)
        if source.dim() != 2:
            raise InputError(
                f"model: {target}",
                f"a linear layer on an input of shape {tuple(source.shape)}",
                "(batch, features)",
                "Flatten before it, or write a per-pixel linear layer as a 1x1 nn.Conv2d; "
                "attention and token networks are not supported.",
            )
        check_forward(target, module, nn.Linear, source)
        return self._append(
            LayerSpec(
                name=self._unique(target),
                type="fc",
                inputs=sources,
                in_channels=int(module.in_features),
                out_channels=int(module.out_features),
            )
        )

    # --- functions ---------------------------------------------------------------------------

    def _function(
        self,
        node: fx.Node,
        flows: list[fx.Node],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> Sources:
        name = ops.operation_name(node)
        where = self._where(node, name)
        sources = self._sources[flows[0]]
        if name in ops.CONSTANTS:
            return ()
        if name in ops.JOINS and len(_operands(node, flows)) == 2:
            return self._join(node, ops.JOINS[name], _operands(node, flows), result)
        if name in ops.RATIOS and len(_operands(node, flows)) == 2:
            raise InputError(
                where, f"`{name}` of two feature maps is not supported", "their sum or product"
            )
        if name in ops.CONCATENATIONS:
            return self._concatenate(node, where, args, kwargs)
        if name in ops.ELEMENT_WISE or name in ops.MOVES:
            return sources
        if name in ("interpolate", "upsample", "upsample_nearest"):
            mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
            return self._upsample(where, sources, mode)
        if name in ops.ADAPTIVE_FUNCTIONS or name in ops.POOLING_FUNCTIONS:
            order = ops.POOLING_FUNCTIONS.get(name, "").split()
            given = {**dict(zip(order, args[1:], strict=False)), **kwargs}
            path = self._path(node, name.removesuffix("2d"))
            return self._pool(
                path,
                sources,
                args[0] if args else kwargs["input"],
                result,
                given.get("kernel_size"),
                given.get("stride"),
                given.get("padding", 0),
                given.get("dilation", 1),
            )
        if name in ops.REDUCTIONS:
            source = args[0] if args else kwargs["input"]
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if not ops.reduces_plane(source, dims):
                raise InputError(
                    where,
                    f"`{name}` over the dimensions {dims} of a tensor {tuple(source.shape)}",
                    "the mean or maximum over height and width, e.g. x.mean((2, 3))",
                    _HINT,
                )
            if result.dim() == 2:
                result = result[:, :, None, None]
            return self._pool(self._path(node, name), sources, source, result, None, None, 0, 1)
        raise InputError(where, f"the operation `{name}` is not supported", hint=ops.CNN_HINT)

    def _join(
        self, node: fx.Node, name: str, operands: list[fx.Node], result: torch.Tensor
    ) -> Sources:
        inputs: list[str] = []
        for operand in operands:
            if len(self._sources[operand]) > 1:
                raise InputError(
                    self._where(node, name),
                    "one operand is a concatenation of "
                    + ", ".join(f"`{source}`" for source in self._sources[operand]),
                    "an element-wise operation on the outputs of single layers",
                    "Put a convolution behind the concatenation, or add before concatenating.",
                )
            inputs += self._sources[operand]
        if result.dim() not in (2, 4):
            raise InputError(
                self._where(node, name),
                f"joins tensors of shape {tuple(result.shape)}",
                "(batch, channels, height, width) or (batch, features)",
                ops.CNN_HINT,
            )
        size = _size(result) if result.dim() == 4 else (1, 1)
        return self._append(
            LayerSpec(
                name=self._unique(self._path(node, name)),
                type="element_sum",
                inputs=tuple(inputs),
                in_channels=int(result.shape[1]),
                out_channels=int(result.shape[1]),
                input_size=size,
                output_size=size,
            )
        )

    def _concatenate(
        self, node: fx.Node, where: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Sources:
        tensors = args[0] if args else kwargs["tensors"]
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
        if dim % tensors[0].dim() != 1:
            raise InputError(
                where,
                f"concatenates along dimension {dim}",
                "a concatenation by channel (dimension 1)",
                _HINT,
            )
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        found: Sources = ()
        for part in parts if isinstance(parts, (list, tuple)) else [parts]:
            if isinstance(part, fx.Node):
                found += self._sources.get(part, ())
        return found

    # --- shared ------------------------------------------------------------------------------

    def _pool(
        self,
        target: str,
        sources: Sources,
        source: torch.Tensor,
        result: Any,
        kernel: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
    ) -> Sources:
        """A pooling layer; without a ``kernel`` it is adaptive to the size of the result."""
        result = result[0] if isinstance(result, (tuple, list)) else result  # with the indices
        if source.dim() != 4:
            raise InputError(
                f"model: {target}",
                f"pools a tensor of shape {tuple(source.shape)}",
                "(batch, channels, height, width)",
                _HINT,
            )
        size, output = _size(source), _size(result)
        if kernel is None:
            if not _pools(target, size, output):
                return sources
            kernel, stride = adaptive_pooling(size, output)
        has_stride = stride is not None and stride != [] and stride != ()
        return self._append(
            LayerSpec(
                name=self._unique(target),
                type="pooling",
                inputs=sources,
                in_channels=int(source.shape[1]),
                out_channels=int(source.shape[1]),
                input_size=size,
                output_size=output,
                kernel=ops.pair(kernel),
                stride=ops.pair(stride if has_stride else kernel),
                padding=ops.pair(padding),
                dilation=ops.pair(dilation),
            )
        )

    def _upsample(self, where: str, sources: Sources, mode: str) -> Sources:
        if mode not in ("nearest", "nearest-exact"):
            raise InputError(
                where, f"`{mode}` upsampling computes new values", "nearest upsampling", _HINT
            )
        return sources

    def _check_used_once(self, target: str, module: nn.Module) -> None:
        problem = ""
        if id(module) in self._called:
            problem = "is called more than once"
        self._called[id(module)] = target
        for storage, begin, end in map(_place, _stored_weights(module)):
            others = self._weights.setdefault(storage, [])
            for first, last, owner in others if not problem else []:
                if begin < last and first < end:
                    problem = f"shares its weight with {owner}"
            others.append((begin, end, target))
        if problem:
            raise InputError(
                f"model: {target}",
                f"{problem}; one weight on crossbars serves one place of the network",
                "a layer of its own at each place",
                "Give each place its own nn.Conv2d or nn.Linear.",
            )

    def _append(self, spec: LayerSpec) -> Sources:
        self.layers.append(spec)
        return (spec.name,)

    def _path(self, node: fx.Node, name: str) -> str:
        """The name of a function's layer, after the module that calls it."""
        parent = self._paths.get(node, "")
        path = f"{parent}.{name}" if parent else name
        # A module of that name may become a layer later.
        return f"{path}_0" if path in self._modules else path

    def _where(self, node: fx.Node, name: str) -> str:
        return f"model: {self._paths.get(node) or 'forward'} ({name})"

    def _unique(self, name: str) -> str:
        """A module's own path at its first call, else a name that no layer and no module has."""
        candidate, number = name, 1
        if name not in self._modules or name in self._names:
            while candidate in self._names or candidate in self._modules:
                candidate, number = f"{name}_{number}", number + 1
        self._names.add(candidate)
        return candidate


def _resolve_padding(
    target: str, padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    if padding == "valid":
        return (0, 0)
    if padding != "same":
        return ops.pair(padding)
    both_sides = same_padding(kernel, dilation)
    if both_sides is None:
        raise InputError(
            f"model: {target}",
            f"padding 'same' with the even kernel {kernel} pads one side more than the other",
            "the same padding on both sides",
            "Use an odd kernel, or pad explicitly (nn.ZeroPad2d) before the convolution.",
        )
    return both_sides


def _pools(target: str, size: tuple[int, int], output: tuple[int, int]) -> bool:
    """Whether an adaptive pooling computes anything: repeating elements is only addressing."""
    if output[0] <= size[0] and output[1] <= size[1]:
        return output != size
    if any(large % small for large, small in zip(output, size, strict=True)):
        raise InputError(
            f"model: {target}",
            f"adaptive pooling from {size} to the larger {output}",
            "an output size that is not larger than the input's, or a multiple of it",
            "Use a larger input image.",
        )
    return False


def _stored_weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that hold a layer's weight, also where it is computed from them.

    A weight that is computed is another tensor at every access.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() > 1:
            yield tensor


def _place(tensor: torch.Tensor) -> tuple[int, int, int]:
    """The storage of a tensor, and the first and one past the last byte that it takes there."""
    # Two Parameters may share one storage, and the storage lives as long as they do.
    begin = int(tensor.storage_offset()) * tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    reach = sum((int(count) - 1) * int(step) for count, step in steps)
    size = (reach + 1) * tensor.element_size() if tensor.numel() else 0
    return tensor.untyped_storage()._cdata, begin, begin + size


def _operands(node: fx.Node, flows: list[fx.Node]) -> list[fx.Node]:
    """The feature maps among the two operands of a binary operation, repeats included."""
    given = [*node.args[:2], *(node.kwargs.get(key) for key in ("input", "other"))]
    return [value for value in given if isinstance(value, fx.Node) and value in flows]


def _size(tensor: torch.Tensor) -> tuple[int, int]:
    return (int(tensor.shape[-2]), int(tensor.shape[-1]))
