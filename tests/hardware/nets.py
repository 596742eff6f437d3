"""Small networks for the hardware tests, made by hand."""

from __future__ import annotations

from epim_nas.network.spec import LayerSpec, Network


def conv(name, inputs, channels, out, size, kernel=3, stride=1, groups=1):
    padding = kernel // 2
    output = (size + 2 * padding - kernel) // stride + 1
    return LayerSpec(
        name,
        "conv",
        (inputs,),
        channels,
        out,
        (size, size),
        (output, output),
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
        groups=groups,
    )


def chain(channels=32, size=8):
    """conv - conv - conv - fc."""
    layers = (
        conv("a", "input", 3, channels, size),
        conv("b", "a", channels, channels, size),
        conv("c", "b", channels, 2 * channels, size, stride=2),
        LayerSpec("f", "fc", ("c",), 2 * channels * (size // 2) ** 2, 10),
    )
    return Network("chain", layers, (3, size, size))


def residual(size=8):
    """A block with a shortcut, pooling, and a concatenation at the end."""
    layers = (
        conv("a", "input", 3, 32, size),
        conv("b", "a", 32, 32, size),
        LayerSpec("s", "element_sum", ("a", "b"), 32, 32, (size, size), (size, size)),
        LayerSpec(
            "p", "pooling", ("s",), 32, 32, (size, size), (size // 2,) * 2, (2, 2), (2, 2), (0, 0)
        ),
        conv("c", "p", 32, 48, size // 2, kernel=1),
        LayerSpec("f", "fc", ("c",), 48 * (size // 2) ** 2, 10),
    )
    return Network("residual", layers, (3, size, size))


def bottleneck_resnet(blocks):
    """The weighted layers of an ImageNet ResNet with bottlenecks, as a chain."""
    layers = [conv("stem", "input", 3, 64, 224, kernel=7, stride=2)]

    def add(channels, out, kernel):
        layers.append(conv(f"c{len(layers)}", layers[-1].name, channels, out, 7, kernel))

    width = 64
    for stage, count in enumerate(blocks):
        inner = 64 * 2**stage
        for block in range(count):
            add(width, inner, 1)
            add(inner, inner, 3)
            add(inner, 4 * inner, 1)
            if block == 0:
                add(width, 4 * inner, 1)
            width = 4 * inner
    layers.append(LayerSpec("fc", "fc", (layers[-1].name,), 2048, 1000))
    return Network("resnet", tuple(layers), (3, 224, 224))
