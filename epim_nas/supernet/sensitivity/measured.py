"""Sensitivity as it is measured: the network with one layer replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from epim_nas.network._fx import trace_graph
from epim_nas.supernet.sensitivity.capture import check_batch
from epim_nas.supernet.sensitivity.fisher import Scores
from epim_nas.supernet.supernet import SuperLayer, Supernet


def measured(
    supernet: Supernet,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> Scores:
    """KL(float || network with the layer replaced), summed over the images.

    Batch norm takes the statistics of the batch in both, as it will after recalibration. What does
    not depend on the layer is computed once: the rest of the traced network is run again for every
    choice, so that a choice costs half a forward pass on average. Nothing is drawn.
    """
    if _norms(supernet.model):
        check_batch(len(x))
    graph = trace_graph(supernet.model, leaves=(SuperLayer,))
    in_place = any(_joins_in_place(node) for node in graph.nodes)
    scores: Scores = {}
    with torch.no_grad(), _batch_statistics(supernet.model), supernet.selected(None):
        values, logits = _run(supernet.model, graph, x, {})
        # In double precision: a loss of 1e-7 is lost in the rounding of probabilities.
        expected = F.log_softmax(logits.double(), dim=1)
        for number, (name, layer) in enumerate(supernet.layers.items(), start=1):
            changing = _downstream(graph, name)
            # What was joined in place is gone: then the whole network is run again.
            known = {} if in_place else {n: v for n, v in values.items() if n not in changing}
            found = np.empty(len(layer.choices))
            for index in range(len(layer.choices)):
                layer.active = index
                _, changed = _run(supernet.model, graph, x, known)
                found[index] = float(
                    F.kl_div(
                        F.log_softmax(changed.double(), dim=1),
                        expected,
                        reduction="sum",
                        log_target=True,
                    )
                )
            layer.active = None
            # KL of two equal distributions may come out as less than 0 by rounding.
            scores[name] = np.maximum(found, 0.0)
            progress(number)
    return scores


def _run(
    model: nn.Module, graph: fx.Graph, x: Tensor, known: dict[fx.Node, Any]
) -> tuple[dict[fx.Node, Any], Tensor]:
    """The values of all nodes and the output, from those that are known."""
    interpreter = fx.Interpreter(model, garbage_collect_values=False, graph=graph)
    interpreter.extra_traceback = False
    # A copy, where the network begins in place.
    output: Tensor = interpreter.run(x.clone(), initial_env=dict(known))
    return interpreter.env, output


def _downstream(graph: fx.Graph, layer: str) -> set[fx.Node]:
    """The nodes whose values depend on a layer's choice, itself included."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        calls_it = node.op == "call_module" and node.target == layer
        if calls_it or node.op == "output" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _joins_in_place(node: fx.Node) -> bool:
    """Whether an operation such as ``x.add_(y)`` overwrites one value with two.

    Run again for a change of ``y`` alone, it would find the old sum in ``x``. One with a single
    operand is only run again where that is computed anew. (``x += y`` is traced as a sum.)
    """
    if node.op not in ("call_method", "call_function") or len(node.all_input_nodes) < 2:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm normalise with the batch and keep its running statistics."""
    norms = _norms(model)
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            # Without running statistics it uses those of the batch, in evaluation mode too.
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance
