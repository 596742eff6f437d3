"""What the tracer knows about torch's modules and functions: tables, no logic about networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

# --- modules ---------------------------------------------------------------------------------

POOLING: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)

ADAPTIVE_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

NORMALISATION: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

PASS_THROUGH: tuple[type[nn.Module], ...] = (
    *NORMALISATION,
    nn.modules.dropout._DropoutNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)

# Every activation of torch.nn is element-wise or a soft-max, except attention.
ACTIVATIONS: tuple[type[nn.Module], ...] = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention"
)

UPSAMPLING = (nn.Upsample,)


def is_conv(module: nn.Module) -> bool:
    """Whether a module is a 2-D convolution, dense or an epitome (which has a sampling plan)."""
    return isinstance(module, nn.Conv2d) or (
        hasattr(module, "plan") and hasattr(module, "kernel_size")
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, dense or an epitome."""
    return isinstance(module, nn.Linear) or (
        hasattr(module, "plan") and hasattr(module, "in_features")
    )


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation, whatever its ``forward`` does inside.

    Libraries subclass torch's layers and add Python that symbolic tracing cannot follow.
    """
    return is_conv(module) or is_linear(module) or isinstance(module, (*POOLING, *NORMALISATION))


def pooling_window(module: Any) -> tuple[Any, Any, Any, Any]:
    """Kernel, stride, padding and dilation of a pooling; no kernel means adaptive."""
    if isinstance(module, ADAPTIVE_POOLING):
        return None, None, 0, 1
    padding, dilation = getattr(module, "padding", 0), getattr(module, "dilation", 1)
    return module.kernel_size, module.stride, padding, dilation


def unsupported_module(module: nn.Module) -> tuple[str, str]:
    """Why a module is not supported, and what to do."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return (
            f"transposed convolution ({kind}) is not supported",
            "Replace it by nearest upsampling and nn.Conv2d.",
        )
    if isinstance(module, (nn.Conv1d, nn.Conv3d)):
        return (
            f"{kind} is not supported: only 2-D convolutions are mapped to crossbars",
            "Write it as nn.Conv2d, a 1-D one with a kernel of height 1.",
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return f"embedding ({kind}) is not supported", CNN_HINT
    if isinstance(module, nn.MultiheadAttention):
        return f"attention ({kind}) is not supported", CNN_HINT
    if isinstance(module, nn.RNNBase):
        return f"recurrent layer ({kind}) is not supported", CNN_HINT
    return f"the module {kind} is not supported", CNN_HINT


CNN_HINT = (
    "Only convolutional networks are supported; trace the convolutional part alone, or describe "
    "the network in a YAML file (epim-nas/network@1)."
)

# --- functions and methods -------------------------------------------------------------------

POOLING_FUNCTIONS = {
    "max_pool2d": "kernel_size stride padding dilation ceil_mode",
    "avg_pool2d": "kernel_size stride padding ceil_mode",
    "lp_pool2d": "norm_type kernel_size stride ceil_mode",
}
"""Function -> its parameters after the input, in order."""

ADAPTIVE_FUNCTIONS = {"adaptive_avg_pool2d", "adaptive_max_pool2d"}

REDUCTIONS = {"mean", "amax"}
"""Pooling when they reduce height and width."""

JOINS = {
    "add": "add",
    "sub": "sub",
    "subtract": "sub",
    "mul": "mul",
    "multiply": "mul",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "radd": "add",
    "rmul": "mul",
    "rsub": "sub",
}
"""Function of two feature maps -> the name of the layer."""

CONCATENATIONS = {"cat", "concat", "concatenate"}

CONSTANTS = {
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_tensor",
}
"""Functions whose result does not depend on the data of their argument."""

ELEMENT_WISE = {
    # arithmetic with a constant (with a second feature map, `JOINS` comes first)
    "add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "truediv", "pow",
    "iadd", "isub", "imul", "itruediv", "ipow", "radd", "rsub", "rmul", "neg", "abs", "absolute",
    "square", "sqrt", "rsqrt", "exp", "log", "reciprocal", "clamp", "clip", "clamp_min",
    "clamp_max", "round", "floor", "ceil", "sign",
    # activations
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "sigmoid", "logsigmoid", "hardsigmoid", "hardswish", "hardtanh", "hardshrink", "softshrink",
    "tanh", "tanhshrink", "threshold", "softplus", "softsign", "softmax", "log_softmax", "softmin",
    # normalisation and regularisation
    "batch_norm", "group_norm", "layer_norm", "instance_norm", "local_response_norm", "normalize",
    "dropout", "dropout2d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
    "stochastic_depth", "drop_path",
    # copies and types
    "contiguous", "to", "float", "half", "bfloat16", "double", "type", "type_as", "clone", "detach",
    "cpu", "cuda", "requires_grad",
}  # fmt: skip

RATIOS = {"div", "divide", "true_divide", "truediv", "itruediv", "pow", "ipow"}
"""Element-wise by a constant; between two feature maps no hardware is modelled for them."""

MOVES = {
    "flatten", "unflatten", "view", "view_as", "reshape", "reshape_as", "squeeze", "unsqueeze",
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "pad", "getitem",
    "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select",
    "index_select", "expand", "expand_as", "repeat", "repeat_interleave", "tile", "roll", "flip",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "constant_pad_nd",
}  # fmt: skip
"""Functions that only move elements: a chip's address tables absorb them."""

_TORCH_MODULES = ("torch", "_operator", "operator", "math", "builtins")

# Library functions that symbolic tracing records as one call; identities in evaluation mode.
_LIBRARY_FUNCTIONS = {"stochastic_depth", "drop_path"}


def operation_name(node: fx.Node) -> str:
    """The plain name of a function or method, without the marks of in-place variants.

    A function that is not torch's has the name ``module.function``, which no table holds.
    """
    if node.op == "call_method":
        return str(node.target).strip("_")
    name = getattr(node.target, "__name__", str(node.target)).strip("_")
    module = getattr(node.target, "__module__", None) or "torch"
    if module.split(".")[0] in _TORCH_MODULES or name in _LIBRARY_FUNCTIONS:
        return name
    return f"{module}.{name}"


def is_in_place(node: fx.Node) -> bool:
    """Whether a function or method overwrites its first argument."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    return name in ("iadd", "isub", "imul", "itruediv") or node.kwargs.get("inplace") is True


def pair(value: Any) -> tuple[int, int]:
    """An int or a sequence of one or two ints as (height, width)."""
    if isinstance(value, int):
        return (value, value)
    values = [int(item) for item in value]
    return (values[0], values[-1])


def reduces_plane(source: torch.Tensor, dims: Any) -> bool:
    """Whether ``dims`` are the height and width of a (N, C, H, W) tensor."""
    if source.dim() != 4 or not isinstance(dims, (list, tuple)):
        return False
    return sorted(dim % 4 for dim in dims) == [2, 3]


def holds_tensor(value: Any) -> bool:
    """Whether a value is a tensor or a sequence with one in it."""
    if isinstance(value, (list, tuple)):
        return any(holds_tensor(item) for item in value)
    return isinstance(value, torch.Tensor)
