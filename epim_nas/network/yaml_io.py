"""Network YAML (``epim-nas/network@1``): a network for people who have no torch model of it.

    schema: epim-nas/network@1
    name: tiny
    layers:
      - {name: c1, type: conv, inputs: [input], in_channels: 3, out_channels: 64,
         kernel: 3, stride: 1, padding: 1, input_size: [32, 32]}
      - {name: p1, type: pooling, inputs: [c1], channels: 64, kernel: 2, stride: 2, padding: 0,
         input_size: [32, 32]}
      - {name: f1, type: fc, inputs: [p1], in_features: 16384, out_features: 10}

Kernels, strides, paddings and sizes are one number or [height, width]. Several inputs of an
``element_sum`` are added, of any other layer concatenated by channel. Feature maps must fit the
layers that they come from; ``reshaped: true`` says that a layer's inputs are sliced, padded or
repeated on the way, and skips that comparison.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from epim_nas.errors import InputError, nearest
from epim_nas.files import dump_yaml, load_yaml, write_text
from epim_nas.network._geometry import output_size
from epim_nas.network._schema import (
    LAYER_FILES,
    MOST_POSITIONS,
    NETWORK_SCHEMA,
    ConvFile,
    ElementSumFile,
    FcFile,
    LayerFile,
    NetworkFile,
    PoolingFile,
)
from epim_nas.network.spec import LayerSpec, Network, input_name
from epim_nas.schema import describe, validate

Shape = tuple[int, int, int]
"""(channels, height, width) of a feature map."""


def load_network(path: str | Path) -> Network:
    """Read a network YAML.

    Warns:
        UserWarning: an ``fc`` reads fewer features than its input has.

    Raises:
        InputError: the file is missing, not YAML, has a wrong field, or its layers do not fit
            together; the message names the layer.
    """
    source = str(path)
    file = validate(NetworkFile, load_yaml(path), source)
    layers = _validate_layers(file.layers, source)
    image = input_name(layer.name for layer in layers)
    shape = _input_shape(file, layers, image, source)
    known: dict[str, Shape] = {image: shape}
    specs = []
    for index, layer in enumerate(layers):
        where = _where(source, index, layer.name)
        if layer.name in known:
            raise InputError(f"{where}: name", f"`{layer.name}` used twice", "a name of its own")
        for name in layer.inputs:
            if name not in known:
                raise InputError(
                    f"{where}: inputs",
                    f"`{name}` is not a layer before this one",
                    f"`{image}` or the name of an earlier layer",
                    nearest(name, known),
                )
        spec = _spec(layer, [known[name] for name in layer.inputs], where)
        if max(spec.positions, math.prod(spec.input_size)) > MOST_POSITIONS:
            raise InputError(
                f"{where}: input_size",
                f"{list(spec.input_size)}, and {list(spec.output_size)} of the output",
                f"at most {MOST_POSITIONS} pixels",
            )
        known[layer.name] = (spec.out_channels, *spec.output_size)
        specs.append(spec)
    return Network(file.name, tuple(specs), shape)


def save_network(network: Network, path: str | Path) -> None:
    """Write a network YAML that :func:`load_network` reads back to an equal network."""
    write_text(path, dump_yaml(network_to_dict(network)))


def network_to_dict(network: Network) -> dict[str, Any]:
    """The content of the network YAML."""
    known: dict[str, Shape] = {network.input_name: network.input_shape}
    layers = []
    for spec in network:
        layers.append(_layer_to_dict(spec, [known[name] for name in spec.inputs]))
        known[spec.name] = (spec.out_channels, *spec.output_size)
    return {
        "schema": NETWORK_SCHEMA,
        "name": network.name,
        "input_shape": list(network.input_shape),
        "layers": layers,
    }


# --- reading ---------------------------------------------------------------------------------


def _where(source: str, index: int, name: Any) -> str:
    return f"{source}: layers.{index}" + (f" ({name})" if isinstance(name, str) else "")


def _validate_layers(raw: list[dict[str, Any]], source: str) -> list[LayerFile]:
    layers = []
    for index, item in enumerate(raw):
        where = _where(source, index, item.get("name"))
        kind = item.get("type")
        if not isinstance(kind, str) or kind not in LAYER_FILES:
            raise InputError(
                f"{where}: type",
                "is missing" if kind is None else f"got {describe(kind)}",
                ", ".join(f"`{name}`" for name in LAYER_FILES),
                nearest(str(kind), LAYER_FILES),
            )
        layers.append(validate(LAYER_FILES[kind], item, where))
    return layers


def _input_shape(file: NetworkFile, layers: list[LayerFile], image: str, source: str) -> Shape:
    """The shape of the network's input: stated, or that of the first layers that read it."""
    if file.input_shape is not None:
        channels, height, width = file.input_shape
        return (channels, height, width)
    features = None
    for layer in layers:
        if layer.inputs != [image]:
            continue
        if isinstance(layer, ConvFile):
            return (layer.in_channels, *layer.input_size)
        if isinstance(layer, PoolingFile):
            return (layer.channels, *layer.input_size)
        if isinstance(layer, FcFile) and features is None:
            features = (layer.in_features, 1, 1)
    if features is not None:
        return features
    raise InputError(
        f"{source}: layers",
        f"no conv, pooling or fc layer reads `{image}` alone, so its shape is unknown",
        "",
        "Add `input_shape: [channels, height, width]`, or name the input of the first layer "
        f"`{image}`.",
    )


def _spec(layer: LayerFile, inputs: list[Shape], where: str) -> LayerSpec:
    if isinstance(layer, ConvFile):
        return _conv(layer, inputs, where)
    if isinstance(layer, PoolingFile):
        return _pooling(layer, inputs, where)
    if isinstance(layer, FcFile):
        return _fc(layer, inputs, where)
    assert isinstance(layer, ElementSumFile)
    return _element_sum(layer, inputs, where)


def _conv(layer: ConvFile, inputs: list[Shape], where: str) -> LayerSpec:
    for name in ("in_channels", "out_channels"):
        if getattr(layer, name) % layer.groups:
            raise InputError(
                f"{where}: groups",
                f"{layer.groups} does not divide {name} {getattr(layer, name)}",
                "a divisor of in_channels and out_channels",
            )
    _check_inputs(layer, layer.in_channels, "in_channels", layer.input_size, inputs, where)
    output = _output_size(layer, where)
    if layer.output_size is not None and layer.output_size != output:
        raise InputError(
            f"{where}: output_size",
            f"got {list(layer.output_size)}",
            f"{list(output)}, which kernel, stride and padding give; or leave it out",
        )
    return LayerSpec(
        name=layer.name,
        type="conv",
        inputs=tuple(layer.inputs),
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        input_size=layer.input_size,
        output_size=output,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _pooling(layer: PoolingFile, inputs: list[Shape], where: str) -> LayerSpec:
    _check_inputs(layer, layer.channels, "channels", layer.input_size, inputs, where)
    output = _output_size(layer, where)
    if layer.output_size is not None:
        # Rounding up and padding on one side give a larger output than the formula's.
        size, padding, stride = layer.input_size, layer.padding, layer.stride
        largest = [-(-(size[i] + 2 * padding[i]) // stride[i]) for i in (0, 1)]
        given = layer.output_size
        if not all(output[i] <= given[i] <= largest[i] for i in (0, 1)):
            raise InputError(
                f"{where}: output_size",
                f"got {list(given)}",
                f"from {list(output)} to {largest}; or leave it out",
            )
        output = given
    return LayerSpec(
        name=layer.name,
        type="pooling",
        inputs=tuple(layer.inputs),
        in_channels=layer.channels,
        out_channels=layer.channels,
        input_size=layer.input_size,
        output_size=output,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
    )


def _fc(layer: FcFile, inputs: list[Shape], where: str) -> LayerSpec:
    pooled = sum(shape[0] for shape in inputs)
    features = sum(shape[0] * shape[1] * shape[2] for shape in inputs)
    if not layer.reshaped and layer.in_features not in (pooled, features):
        problem = f"{layer.in_features} features, but the input has {features}"
        if layer.in_features > features:
            raise InputError(
                f"{where}: in_features",
                problem,
                f"{features}" if pooled == features else f"{features}, or {pooled} after pooling",
                "Correct it, or say `reshaped: true` if the input is repeated on the way.",
            )
        # MNSIM 2.0 takes such networks; they have a meaning, if an unusual one.
        warnings.warn(f"{where}: in_features: {problem}; reads only part of it", stacklevel=3)
    return LayerSpec(
        name=layer.name,
        type="fc",
        inputs=tuple(layer.inputs),
        in_channels=layer.in_features,
        out_channels=layer.out_features,
    )


def _element_sum(layer: ElementSumFile, inputs: list[Shape], where: str) -> LayerSpec:
    channels = max(shape[0] for shape in inputs)
    height, width = max(shape[1] for shape in inputs), max(shape[2] for shape in inputs)
    if layer.channels is not None:
        channels = layer.channels
    if layer.input_size is not None:
        height, width = layer.input_size
    if not layer.reshaped:
        for name, shape in zip(layer.inputs, inputs, strict=True):
            # A gate has one value for each channel.
            if shape not in ((channels, height, width), (channels, 1, 1)):
                raise InputError(
                    f"{where}: inputs",
                    f"`{name}` has shape {list(shape)}",
                    f"{[channels, height, width]} as the other inputs, or one value per channel",
                    "Correct it, or say `reshaped: true` and give `channels` and `input_size` if "
                    "an input is sliced or padded on the way.",
                )
    return LayerSpec(
        name=layer.name,
        type="element_sum",
        inputs=tuple(layer.inputs),
        in_channels=channels,
        out_channels=channels,
        input_size=(height, width),
        output_size=(height, width),
    )


def _check_inputs(
    layer: LayerFile,
    channels: int,
    key: str,
    size: tuple[int, int],
    inputs: list[Shape],
    where: str,
) -> None:
    if layer.reshaped:
        return
    found = sum(shape[0] for shape in inputs)
    names = " + ".join(f"`{name}`" for name in layer.inputs)
    hint = "Correct it, or say `reshaped: true` if the input is sliced or padded on the way."
    if found != channels:
        raise InputError(
            f"{where}: {key}", f"got {channels}, but {names} has {found}", str(found), hint
        )
    for name, shape in zip(layer.inputs, inputs, strict=True):
        if shape[1:] != size:
            raise InputError(
                f"{where}: input_size",
                f"got {list(size)}, but `{name}` has {list(shape[1:])}",
                str(list(shape[1:])),
                hint,
            )


def _output_size(layer: ConvFile | PoolingFile, where: str) -> tuple[int, int]:
    for axis in (0, 1):
        extent = layer.dilation[axis] * (layer.kernel[axis] - 1) + 1
        padded = layer.input_size[axis] + 2 * layer.padding[axis]
        if extent > padded:
            raise InputError(
                f"{where}: kernel",
                f"{list(layer.kernel)} spans {extent}, more than the padded input's {padded}",
                f"at most {padded}",
            )
    return output_size(layer.input_size, layer.kernel, layer.stride, layer.padding, layer.dilation)


# --- writing ---------------------------------------------------------------------------------


def _layer_to_dict(spec: LayerSpec, inputs: list[Shape]) -> dict[str, Any]:
    layer: dict[str, Any] = {"name": spec.name, "type": spec.type, "inputs": list(spec.inputs)}
    channels = sum(shape[0] for shape in inputs)
    sizes = {shape[1:] for shape in inputs}
    if spec.type == "fc":
        features = sum(shape[0] * shape[1] * shape[2] for shape in inputs)
        layer |= {"in_features": spec.in_channels, "out_features": spec.out_channels}
        reshaped = spec.in_channels not in (channels, features)
    elif spec.type == "element_sum":
        own = (spec.out_channels, *spec.output_size)
        reshaped = any(shape not in (own, (own[0], 1, 1)) for shape in inputs)
        if reshaped or own not in inputs:
            layer |= {"channels": own[0], "input_size": _short(spec.output_size)}
    else:
        if spec.type == "conv":
            layer |= {"in_channels": spec.in_channels, "out_channels": spec.out_channels}
        else:
            layer |= {"channels": spec.in_channels}
        layer |= {
            "kernel": _short(spec.kernel),
            "stride": _short(spec.stride),
            "padding": _short(spec.padding),
        }
        if spec.dilation != (1, 1):
            layer["dilation"] = _short(spec.dilation)
        if spec.groups != 1:
            layer["groups"] = spec.groups
        layer |= {"input_size": _short(spec.input_size), "output_size": _short(spec.output_size)}
        reshaped = channels != spec.in_channels or sizes != {spec.input_size}
    if reshaped:
        layer["reshaped"] = True
    return layer


def _short(value: tuple[int, int]) -> int | list[int]:
    return value[0] if value[0] == value[1] else list(value)
