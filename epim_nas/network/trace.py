"""From a PyTorch model to a :class:`~epim_nas.network.spec.Network`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epim_nas.network.spec import Network

if TYPE_CHECKING:
    from torch import nn


def trace(model: nn.Module, input_shape: tuple[int, int, int], name: str | None = None) -> Network:
    """The layers of a PyTorch model, their geometry, and which feeds which.

    The model is traced symbolically (``torch.fx``) and run once on a batch of two constant images
    in evaluation mode without gradients; parameters, buffers and training modes stay as they were,
    also where a layer keeps statistics of its inputs.

    What becomes a layer:

    - ``nn.Conv2d``, its subclasses and its epitome (a module with a sampling ``plan``): ``conv``,
      named by the module's dotted path;
    - ``nn.Linear``, its subclasses and its epitome, on a (batch, features) input: ``fc``; of both,
      a subclass has to compute with its ``weight`` and ``bias`` as they are;
    - max, average and adaptive pooling, as modules, functions or methods, and the mean or maximum
      over height and width: ``pooling``;
    - an element-wise sum, difference or product of two feature maps: ``element_sum``. The gate of
      a squeeze-and-excite block is a join of the same size and the same cost, so it is one too.

    Functions have no module path: they are named after the module that calls them, as in
    ``layer1.0.add``.

    What does not: normalisation, activations, dropout, scaling by constants, and whatever only
    moves elements (reshape, slice, pad, channel shuffle, nearest upsampling), because address
    tables absorb it. A concatenation by channel gives its reader several inputs.

    Args:
        model: any traceable model with one image input.
        input_shape: (channels, height, width) of one image.
        name: name of the network, by default the model's class name in lower case.

    Raises:
        InputError: the model cannot be traced, cannot run on this shape, or has a layer that
            cannot be mapped; the message names the module and what to do.
    """
    # torch takes seconds to import; reading a network YAML does not need it.
    from epim_nas.network._fx import trace_model

    return trace_model(model, input_shape, name)
