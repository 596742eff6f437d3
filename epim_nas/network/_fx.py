"""Symbolic tracing and one run of the traced graph (torch.fx)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from epim_nas.errors import InputError
from epim_nas.network import _operations as ops
from epim_nas.network._layers import LayerBuilder
from epim_nas.network.spec import Network

# Two images: with one, `squeeze()` would drop the batch dimension and reshapes could swallow it.
_BATCH = 2


def trace_model(
    model: nn.Module, input_shape: tuple[int, int, int], name: str | None = None
) -> Network:
    """See :func:`epim_nas.network.trace.trace`."""
    if not isinstance(model, nn.Module):
        raise InputError("model", f"got {type(model).__name__}", "a torch.nn.Module")
    shape = _check_shape(input_shape)
    with _evaluated(model):
        tracer = _Tracer()
        graph = _trace_graph(tracer, model)
        builder = LayerBuilder(model, tracer.paths)
        _run(model, graph, builder, _example(model, shape), shape)
    network = builder.network(name or type(model).__name__.lower(), shape)
    if not network.weighted:
        raise InputError("model", "has no convolution and no linear layer", hint=ops.CNN_HINT)
    return network


def trace_graph(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> fx.Graph:
    """The graph of a model in evaluation mode; layers are calls of modules.

    Args:
        model: any traceable model with one image input.
        leaves: further classes of modules to keep as one call.

    Raises:
        InputError: the model cannot be traced.
    """
    with _evaluated(model):
        return _trace_graph(_Tracer(leaves), model)


class _Tracer(fx.Tracer):
    """Records for every node the path of the module that contains it."""

    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__(param_shapes_constant=True)
        self.leaves = leaves
        self.paths: dict[fx.Node, str] = {}
        self.location: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self.leaves) or ops.is_leaf(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # Not popped when the call fails: then it says where.
        self.location.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.location.pop()
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.paths[node] = self.location[-1] if self.location else ""
        return node


class _Runner(fx.Interpreter):
    """Runs the graph and shows every node with its values to the builder."""

    def __init__(self, model: nn.Module, graph: fx.Graph, builder: LayerBuilder) -> None:
        # Not a GraphModule: its generated code cannot spell every name of a module.
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self.builder = builder
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        result = super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        self.builder.visit(n, args, kwargs, result)
        return result


def _trace_graph(tracer: _Tracer, model: nn.Module) -> fx.Graph:
    # Optional arguments keep their defaults: a proxy would pass every `is not None`.
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    if len(required) > 1:
        raise InputError(
            "model",
            f"its forward needs {len(required)} inputs ({', '.join(required)})",
            "one image batch",
            "Wrap it in a module that takes the image and fills in the rest.",
        )
    first = required[0] if required else (positional[0].name if positional else None)
    defaults = {p.name: p.default for p in positional if p.name != first}
    try:
        return tracer.trace(model, concrete_args=defaults or None)
    except InputError:
        raise
    except Exception as error:  # any code may run in a model's forward
        where = tracer.location[-1] if tracer.location else "forward"
        data_dependent = isinstance(error, fx.proxy.TraceError)
        problem = (
            "its control flow depends on the data"
            if data_dependent
            else "its forward cannot be traced"
        )
        raise InputError(
            f"model: {where or 'forward'}",
            f"{problem} ({_first_line(error)})",
            "a forward whose operations are the same for every input",
            "Move decisions on tensor values or sizes to __init__, or describe the network in a "
            "YAML file (epim-nas/network@1).",
        ) from error


def _run(
    model: nn.Module,
    graph: fx.Graph,
    builder: LayerBuilder,
    images: torch.Tensor,
    shape: tuple[int, int, int],
) -> None:
    runner = _Runner(model, graph, builder)
    try:
        with torch.no_grad():
            runner.run(images)
    except InputError:
        raise
    except Exception as error:
        node = runner.node
        where = "forward"
        if node is not None:
            where = str(node.target) if node.op == "call_module" else node.name
        raise InputError(
            f"model: {where}",
            f"cannot run on an input of shape {shape} ({_first_line(error)})",
            "(channels, height, width) that the model is made for",
            "Check the input shape and the number of input channels.",
        ) from error


def _example(model: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    """A batch on the model's device and in its floating-point type."""
    tensors = [*model.parameters(), *model.buffers()]
    floating = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if floating is None:
        return torch.ones(_BATCH, *shape)
    return torch.ones(_BATCH, *shape, device=floating.device, dtype=floating.dtype)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards training modes and buffers are as they were.

    What is run are images that no data set has: a layer that keeps statistics of its inputs, also
    in evaluation mode, would keep theirs.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in modes}
    held = {buffer for kept in buffers.values() for buffer in kept.values() if buffer is not None}
    values = {buffer: buffer.detach().clone() for buffer in held}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
            module._buffers.clear()
            module._buffers.update(buffers[module])
        with torch.no_grad():
            for buffer, value in values.items():
                if not (buffer.is_meta or torch.equal(buffer, value)):
                    buffer.copy_(value)


def _check_shape(shape: Any) -> tuple[int, int, int]:
    values = tuple(shape) if isinstance(shape, (list, tuple)) else ()
    if len(values) != 3 or not all(
        isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values
    ):
        raise InputError("input_shape", f"got {shape!r}", "(channels, height, width), all positive")
    return (values[0], values[1], values[2])


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
