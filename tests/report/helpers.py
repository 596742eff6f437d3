"""A six-layer network and a simple cost model for synthetic runs."""

from __future__ import annotations

import random
from math import ceil
from types import SimpleNamespace

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.network.spec import INPUT, LayerSpec, Network

SIZE = 64
OBJECTIVES = ("accuracy", "latency_ns", "energy_nj")


def build_network() -> Network:
    channels = (3, 16, 16, 32, 32, 64)
    layers = []
    previous, pixels = INPUT, 32
    for index in range(5):
        stride = 2 if channels[index + 1] > channels[index] and index else 1
        size = pixels // stride
        layers.append(
            LayerSpec(
                f"stage{index}.conv",
                "conv",
                (previous,),
                channels[index],
                channels[index + 1],
                (pixels, pixels),
                (size, size),
                (3, 3),
                (stride, stride),
                (1, 1),
            )
        )
        previous, pixels = layers[-1].name, size
    layers.append(LayerSpec("fc", "fc", (previous,), 64, 10))
    return Network("tiny6", tuple(layers), (3, 32, 32))


def layer_cost(layer: LayerSpec, choice: Choice) -> SimpleNamespace:
    """Crossbars by the packed mapping; latency and energy proportional to rounds and crossbars."""
    plan = choice.plan(layer)
    slices = 32 if choice.weight_bits is None else choice.weight_bits - 1
    crossbars = ceil(plan.shape.rows / SIZE) * ceil(plan.shape.out_channels * slices / SIZE)
    rounds = plan.rounds * layer.positions
    computing, buffer = 90.0 * rounds, 20.0 * rounds + 0.5 * plan.shape.rows
    return SimpleNamespace(
        name=layer.name,
        type=layer.type,
        crossbars=crossbars,
        rounds=rounds,
        latency_ns={"computing": computing, "ADC": 70.0 * rounds, "buffer": buffer},
        sequential_latency_ns=computing + buffer,
        energy_nj={"ADC": 0.8 * rounds * crossbars, "total": 1.1 * rounds * crossbars},
    )


def network_cost(network: Network, design: Design) -> SimpleNamespace:
    return SimpleNamespace(
        layers=tuple(layer_cost(layer, design[layer.name]) for layer in network.weighted)
    )


def totals_of(network: Network, design: Design) -> dict[str, float]:
    layers = network_cost(network, design).layers
    return {
        "crossbars": sum(layer.crossbars for layer in layers),
        "latency_ns": sum(layer.latency_ns["computing"] for layer in layers) * 0.6,
        "energy_nj": sum(layer.energy_nj["total"] for layer in layers),
    }


def random_choice(layer: LayerSpec, rng: random.Random) -> Choice:
    bits = rng.choice((2, 3, 4, 5))
    outs, ins, height, width = layer.weight_shape
    kind = rng.choice(("dense", "out", "in", "large"))
    if kind == "dense" or layer.type == "fc" or ins < 8:
        return Choice(weight_bits=bits, activation_bits=9)
    if kind == "out":
        shape = EpitomeShape(outs // 2, ins, height, width)
        return Choice(shape, rng.random() < 0.5, bits, 9)
    if kind == "in":
        return Choice(EpitomeShape(outs, ins // 4, height, width), False, bits, 9)
    return Choice(EpitomeShape(outs, ins // 4, height + 1, width + 1), False, bits, 9)


def score(network: Network, design: Design, rng: random.Random) -> float:
    """An accuracy that falls with fewer bits and smaller epitomes, with some noise."""
    loss = 0.0
    for layer in network.weighted:
        choice = design[layer.name]
        plan = choice.plan(layer)
        fraction = plan.shape.size / (layer.weight_shape[0] * plan.conv_shape[1] * 9)
        loss += 0.15 * 4.0 ** -(choice.weight_bits or 32) * 4 + 0.02 * max(0.0, 1 - fraction)
    return max(0.1, 0.92 - loss - abs(rng.gauss(0, 0.01)))
