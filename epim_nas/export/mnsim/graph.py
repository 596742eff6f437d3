"""The lists from which MNSIM's ``NetworkGraph`` builds the network of the accuracy model."""

from __future__ import annotations

from collections.abc import Sequence

from epim_nas.epitome.design import FLOAT_BITS, Design
from epim_nas.export.mnsim.remarks import (
    NO_WEIGHT_BITS,
    POINT_SHIFT,
    DataBits,
    Entry,
    Remarks,
    is_depthwise,
)
from epim_nas.network._geometry import output_size
from epim_nas.network.spec import LayerSpec, Network


class Graph:
    """The lists of ``NetworkGraph``: the network as convolutions, with what follows each.

    A network's description holds neither normalisation nor activations nor the kind of a pooling;
    they are put where networks of MNSIM and residual networks have them.
    """

    def __init__(self, design: Design, network: Network, bits: DataBits, notes: Remarks) -> None:
        self.layers: list[Entry] = []
        self.quantize: list[Entry] = []
        self.inputs: list[list[int]] = []
        self.problems = Remarks()
        self._network, self._bits = network, bits
        self._tail = {
            network.input_name: -1
        }  # position of the list's layer that has a layer's final output
        for layer in network.layers:
            weight_bits = NO_WEIGHT_BITS
            if layer.has_weight:
                weight_bits = design[layer.name].weight_bits or FLOAT_BITS
            self._find_problems(layer)
            self._append(layer, weight_bits)
        notes.add(
            "layer_config_list: batch normalisation after each convolution and ReLU after each "
            "layer with weights or sum, but not before a sum nor at the end; pooling of a whole "
            "map is AVE, other pooling MAX; products are written as sums. The design does not say "
            "so: change it where the network differs"
        )
        notes.add(
            "quantize_config_list: `activation_bit` are the bits that a layer writes, the most "
            "that a reader wants; `point_shift` and `activation_scale` (of images from 0 to 1 with "
            "8 bits) are MNSIM's own"
        )

    def _append(self, layer: LayerSpec, weight_bits: int) -> None:
        quantize = {
            "weight_bit": weight_bits,
            "activation_bit": self._bits.written[layer.name],
            "point_shift": POINT_SHIFT,
        }

        def add(config: Entry, sources: Sequence[int] | None = None) -> int:
            here = len(self.layers)
            index = [source - here for source in (sources or [here - 1])]
            # MNSIM reads it at both places.
            self.layers.append(config if index == [-1] else {**config, "input_index": index})
            self.quantize.append(dict(quantize))
            self.inputs.append(index)
            return here

        sources = [self._tail[name] for name in layer.inputs]
        if layer.type != "element_sum" and len(sources) > 1:
            sources = [add({"type": "concat"}, sources)]
        image = self._network.input_name
        flat = all(n != image and self._network[n].type == "fc" for n in layer.inputs)
        if layer.type == "fc" and not flat:
            sources = [add({"type": "view"}, sources)]
        tail = add(self._config(layer), sources)
        if layer.type == "conv":
            tail = add({"type": "bn", "features": layer.out_channels})
        readers = [self._network[name] for name in self._network.consumers[layer.name]]
        summed = all(reader.type == "element_sum" for reader in readers)  # also without readers
        if layer.type != "pooling" and not summed:
            tail = add({"type": "relu"})
        self._tail[layer.name] = tail

    def _config(self, layer: LayerSpec) -> Entry:
        if layer.type == "element_sum":
            return {"type": "element_sum"}
        if layer.type == "fc":
            names = {"in_features": layer.in_channels, "out_features": layer.out_channels}
            return {"type": "fc", **names}
        window = {
            name: _short(pair)
            for name, pair in (
                ("kernel_size", layer.kernel),
                ("stride", layer.stride),
                ("padding", layer.padding),
            )
        }
        if layer.type == "pooling":
            whole = layer.kernel == layer.input_size
            return {"type": "pooling", "mode": "AVE" if whole else "MAX", **window}
        channels = {"in_channels": layer.in_channels, "out_channels": layer.out_channels}
        kind = {"depthwise": "separable"} if is_depthwise(layer) else {}
        return {"type": "conv", **channels, **window, **kind}

    def _find_problems(self, layer: LayerSpec) -> None:
        sources = [
            self._network.input_shape
            if name == self._network.input_name
            else (self._network[name].out_channels, *self._network[name].output_size)
            for name in layer.inputs
        ]
        own = (layer.in_channels, *layer.input_size)
        channels = sum(shape[0] for shape in sources)
        is_sum, is_window = layer.type == "element_sum", layer.type in ("conv", "pooling")
        window = (layer.kernel, layer.stride, layer.padding, layer.dilation)
        facts = (
            (is_sum and len(sources) != 2, "a sum of more than two inputs"),
            (not is_sum and len(sources) not in (1, 2), "a concatenation of more than two inputs"),
            (
                not is_sum and len(sources) == 2,
                "a concatenation: NetworkGraph runs it, TrainTestInterface.get_structure does not",
            ),
            (
                (is_sum and set(sources) != {own})
                or (is_window and (channels != own[0] or {s[1:] for s in sources} != {own[1:]}))
                or (
                    layer.type == "fc"
                    and layer.in_channels != sum(c * h * w for c, h, w in sources)
                ),
                "its inputs are sliced, padded or pooled on the way",
            ),
            (any(pair[0] != pair[1] for pair in window), "a window that is not square"),
            (layer.dilation != (1, 1), "a dilated window"),
            (layer.groups > 1 and not is_depthwise(layer), "groups of several channels"),
            (
                is_window and output_size(layer.input_size, *window) != layer.output_size,
                "its output is rounded up",
            ),
        )
        for holds, text in facts:
            if holds:
                self.problems.add(text, layer.name)


def _short(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)
