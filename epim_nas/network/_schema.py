"""The keys of a network YAML (``epim-nas/network@1``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from epim_nas.schema import Strict, describe

NETWORK_SCHEMA = "epim-nas/network@1"
MOST_CHANNELS = 2**20
"""Channels or features of a layer."""
MOST_PIXELS = 2**16
"""Height or width of a feature map, a kernel, a stride, ..."""
MOST_POSITIONS = 2**24
"""Height times width of a feature map: the pipeline is computed position by position."""


def _to_pair(value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) for v in pair)
        and all(least <= v <= MOST_PIXELS for v in pair)
    ):
        raise ValueError(
            f"got {describe(value)}; allowed is one integer from {least} to {MOST_PIXELS}, or "
            "[height, width]"
        )
    return (pair[0], pair[1])


Channels = Annotated[int, pydantic.Field(ge=1, le=MOST_CHANNELS)]
Pair = Annotated[tuple[int, int], pydantic.BeforeValidator(lambda value: _to_pair(value, 1))]
PaddingPair = Annotated[tuple[int, int], pydantic.BeforeValidator(lambda value: _to_pair(value, 0))]


class NetworkFile(Strict):
    """The file. Its layers are validated one by one, so that messages can name them."""

    schema_: Literal["epim-nas/network@1"] = pydantic.Field(alias="schema")
    name: str = pydantic.Field(min_length=1)
    input_shape: list[Channels] | None = pydantic.Field(default=None, min_length=3, max_length=3)
    layers: list[dict[str, Any]] = pydantic.Field(min_length=1)


class LayerFile(Strict):
    """What every layer has."""

    name: str = pydantic.Field(min_length=1)
    inputs: list[str] = pydantic.Field(min_length=1)
    reshaped: bool = False


class ConvFile(LayerFile):
    """A convolution."""

    type: Literal["conv"]
    in_channels: Channels
    out_channels: Channels
    kernel: Pair
    stride: Pair = (1, 1)
    padding: PaddingPair = (0, 0)
    dilation: Pair = (1, 1)
    groups: Channels = 1
    input_size: Pair
    output_size: Pair | None = None


class PoolingFile(LayerFile):
    """Maximum or average pooling."""

    type: Literal["pooling"]
    channels: Channels
    kernel: Pair
    stride: Pair
    padding: PaddingPair = (0, 0)
    dilation: Pair = (1, 1)
    input_size: Pair
    output_size: Pair | None = None


class FcFile(LayerFile):
    """A linear layer."""

    type: Literal["fc"]
    in_features: Channels
    out_features: Channels


class ElementSumFile(LayerFile):
    """An element-wise join; its size is that of its inputs unless it is given."""

    type: Literal["element_sum"]
    channels: Channels | None = None
    input_size: Pair | None = None


LAYER_FILES: dict[str, type[LayerFile]] = {
    "conv": ConvFile,
    "pooling": PoolingFile,
    "fc": FcFile,
    "element_sum": ElementSumFile,
}
"""Value of ``type`` -> what else the layer has."""
