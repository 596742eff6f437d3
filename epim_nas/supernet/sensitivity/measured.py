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
    graph = trace_graph(supernet.model, leaves=(SuperLayer,))
    scores: Scores = {}
    with torch.no_grad(), _batch_statistics(supernet.model), supernet.selected(None):
        values, logits = _run(supernet.model, graph, x, {})
        expected = F.log_softmax(logits.float(), dim=1)
        for number, (name, layer) in enumerate(supernet.layers.items(), start=1):
            changing = _downstream(graph, name)
            known = {node: value for node, value in values.items() if node not in changing}
            found = np.empty(len(layer.choices))
            for index in range(len(layer.choices)):
                layer.active = index
                _, changed = _run(supernet.model, graph, x, known)
                found[index] = float(
                    F.kl_div(
                        F.log_softmax(changed.float(), dim=1),
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
    output: Tensor = interpreter.run(x, initial_env=dict(known))
    return interpreter.env, output


def _downstream(graph: fx.Graph, layer: str) -> set[fx.Node]:
    """The nodes whose values depend on a layer's choice, itself included."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        calls_it = node.op == "call_module" and node.target == layer
        if calls_it or node.op == "output" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm normalise with the batch and keep its running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            # Without running statistics it uses those of the batch, in evaluation mode too.
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance
