"""Which batch normalisation follows which convolution."""

from __future__ import annotations

from torch import nn

from epim_nas.network._fx import trace_graph


def following_batch_norms(model: nn.Module) -> dict[str, str]:
    """The batch norm behind each convolution whose output goes nowhere else.

    Such a batch norm absorbs any scale and sign of an output channel.

    Args:
        model: any traceable model with one image input.

    Returns:
        Convolution -> batch norm, by their dotted paths.

    Raises:
        InputError: the model cannot be traced.
    """
    modules = dict(model.named_modules())
    graph = trace_graph(model)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    names = [str(node.target) for node in calls]
    found = {}
    for node in calls:
        users = list(node.users)
        if not isinstance(modules[str(node.target)], nn.Conv2d) or len(users) != 1:
            continue
        user = users[0]
        norm = modules.get(str(user.target)) if user.op == "call_module" else None
        # Of a module that is called twice, one call cannot be scaled without the other.
        once = names.count(str(node.target)) == names.count(str(user.target)) == 1
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and once:
            found[str(node.target)] = str(user.target)
    return found
