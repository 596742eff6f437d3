"""Tracing, against hand-counted layers and against what torch computes."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from epim_nas.errors import InputError
from epim_nas.models import build_model
from epim_nas.network import INPUT, LayerSpec, trace


class Calls(nn.Module):
    """A module whose forward is a function of itself and the image, for short test models."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._calls = forward

    def forward(self, x):
        return self._calls(self, x)


def conv(i=3, o=8, k=3, s=1, p=1, **options):
    return nn.Conv2d(i, o, k, s, p, **options)


def types(network):
    return dict(Counter(layer.type for layer in network))


def test_resnet50_has_the_published_layers_and_weights():
    network = trace(build_model("resnet50", in_channels=3, num_classes=1000), (3, 224, 224))
    assert types(network) == {"conv": 53, "fc": 1, "pooling": 2, "element_sum": 16}
    weights = sum(math.prod(layer.weight_shape) for layer in network.weighted)
    assert weights == 25_502_912
    assert network["conv1"] == LayerSpec(
        "conv1", "conv", (INPUT,), 3, 64, (224, 224), (112, 112), (7, 7), (2, 2), (3, 3)
    )
    assert network["layer2.0.conv2"].output_size == (28, 28)
    assert network["layer2.0.add"].inputs == ("layer2.0.conv3", "layer2.0.downsample.0")
    assert network["layer2.1.add"].inputs == ("layer2.1.conv3", "layer2.0.add")
    assert network["avgpool"].kernel == (7, 7)
    assert network["fc"] == LayerSpec("fc", "fc", ("avgpool",), 2048, 1000)


def test_resnet20_option_a_shortcut_is_an_input_of_the_sum():
    network = trace(build_model("resnet20", in_channels=1, num_classes=10), (1, 28, 28))
    assert types(network) == {"conv": 19, "element_sum": 9, "pooling": 1, "fc": 1}
    assert network["conv1"].in_channels == 1
    widened = network["layer2.0.add"]
    assert widened.inputs == ("layer2.0.conv2", "layer1.2.add")
    assert (widened.out_channels, widened.output_size) == (32, (14, 14))
    assert network["linear"].inputs == ("pool",)


def test_vgg_flattens_all_features_into_its_first_linear_layer():
    model = build_model("vgg11_bn", in_channels=3, num_classes=10, args={"small_input": True})
    network = trace(model, (3, 32, 32))
    assert [layer.name for layer in network if layer.type == "conv"][:2] == [
        "features.0",
        "features.4",
    ]
    assert types(network) == {"conv": 8, "pooling": 5, "fc": 1}
    flattened = Calls(lambda m, x: m.f(m.c(x).flatten(1)), c=conv(), f=nn.Linear(8 * 36, 5))
    layer = trace(flattened, (3, 6, 6))["f"]
    assert (layer.in_channels, layer.input_size, layer.inputs) == (288, (1, 1), ("c",))


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    size=st.tuples(st.integers(8, 13), st.integers(8, 13)),
)
def test_every_convolution_keeps_its_geometry(kernel, stride, padding, dilation, groups, size):
    module = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
    layer = trace(nn.Sequential(module), (4, *size))["0"]
    assert (layer.kernel, layer.stride, layer.padding) == (kernel, stride, padding)
    assert (layer.dilation, layer.groups) == (dilation, groups)
    assert layer.output_size == tuple(module(torch.zeros(1, 4, *size)).shape[2:])
    assert layer.weight_shape == tuple(module.weight.shape)


def test_same_and_valid_padding_are_resolved():
    network = trace(
        nn.Sequential(
            nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)),
            nn.Conv2d(4, 4, 3, padding="valid"),
        ),
        (3, 12, 12),
    )
    assert network["0"].padding == (2, 2)
    assert network["0"].output_size == (12, 12)
    assert (network["1"].padding, network["1"].output_size) == ((0, 0), (10, 10))


@pytest.mark.parametrize(
    ("operation", "kernel", "stride", "output"),
    [
        (nn.MaxPool2d(3, 2, 1), (3, 3), (2, 2), (4, 4)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (3, 3), (2, 2), (4, 4)),
        (nn.AvgPool2d((2, 4)), (2, 4), (2, 4), (4, 2)),
        (nn.AdaptiveAvgPool2d(1), (8, 8), (8, 8), (1, 1)),
        (nn.AdaptiveMaxPool2d((4, 2)), (2, 4), (2, 4), (4, 2)),
        (nn.AdaptiveAvgPool2d(3), (4, 4), (2, 2), (3, 3)),
        (lambda x: functional.max_pool2d(x, 2), (2, 2), (2, 2), (4, 4)),
        (lambda x: torch.max_pool2d(x, 3, 1), (3, 3), (1, 1), (6, 6)),
        (lambda x: functional.avg_pool2d(x, x.size()[3]), (8, 8), (8, 8), (1, 1)),
        (lambda x: functional.adaptive_avg_pool2d(x, 1), (8, 8), (8, 8), (1, 1)),
        (lambda x: x.mean((2, 3)), (8, 8), (8, 8), (1, 1)),
        (lambda x: torch.mean(x, dim=[-1, -2], keepdim=True), (8, 8), (8, 8), (1, 1)),
        (lambda x: x.amax(dim=(2, 3)), (8, 8), (8, 8), (1, 1)),
    ],
)
def test_pooling_in_all_its_spellings(operation, kernel, stride, output):
    parts = {"p": operation} if isinstance(operation, nn.Module) else {}
    network = trace(Calls(lambda m, x: operation(m.c(x)), c=conv(), **parts), (3, 8, 8))
    assert types(network) == {"conv": 1, "pooling": 1}
    pool = network.layers[1]
    assert (pool.kernel, pool.stride, pool.output_size) == (kernel, stride, output)
    assert (pool.in_channels, pool.out_channels, pool.inputs) == (8, 8, ("c",))


def test_an_adaptive_pooling_that_changes_nothing_is_no_layer():
    network = trace(nn.Sequential(conv(), nn.AdaptiveAvgPool2d(8), conv(8)), (3, 8, 8))
    assert types(network) == {"conv": 2}
    assert network["2"].inputs == ("0",)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: a + b,
        lambda a, b: torch.add(a, b),
        lambda a, b: a.add(other=b),
        lambda a, b: a.add_(b),
        lambda a, b: a * b,
        lambda a, b: a - b,
        lambda a, b: a.__iadd__(b),
    ],
)
def test_joins_of_two_feature_maps(join):
    network = trace(
        Calls(lambda m, x: m.d(join(m.a(x), m.b(x))), a=conv(), b=conv(), d=conv(8)), (3, 6, 6)
    )
    assert types(network) == {"conv": 3, "element_sum": 1}
    total = network.layers[2]
    assert (total.inputs, total.out_channels, total.output_size) == (("a", "b"), 8, (6, 6))
    assert network["d"].inputs == (total.name,)


def test_an_in_place_sum_is_seen_by_later_readers_of_the_same_tensor():
    def forward(m, x):
        out = m.a(x)
        out.add_(m.b(x))
        return m.d(out)

    network = trace(Calls(forward, a=conv(), b=conv(), d=conv(8)), (3, 6, 6))
    assert network["d"].inputs == ("add",)


def test_chained_sums_are_layers_with_names_of_their_own():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(8), conv(8)

        def forward(self, x):
            return x + self.a(x) + self.b(x)

    network = trace(nn.Sequential(conv(), Block(), Block()), (3, 6, 6))
    sums = [layer for layer in network if layer.type == "element_sum"]
    assert [layer.name for layer in sums] == ["1.add", "1.add_1", "2.add", "2.add_1"]
    assert sums[1].inputs == ("1.add", "1.b")
    assert sums[2].inputs == ("1.add_1", "2.a")


def test_constants_scale_without_a_layer():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv(8)
            self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))

        def forward(self, x):
            y = 0.5 * self.a(x) * self.scale + 1
            return self.b(y + torch.zeros_like(y)) / 3

    network = trace(Scaled(), (3, 6, 6))
    assert types(network) == {"conv": 2}
    assert network["b"].inputs == ("a",)


def test_squeeze_and_excite_is_a_join_with_its_gate():
    def forward(m, x):
        y = m.c(x)
        gate = torch.sigmoid(m.up(torch.relu(m.down(y.mean((2, 3), keepdim=True)))))
        return y * gate

    model = Calls(forward, c=conv(), down=conv(8, 2, 1, 1, 0), up=conv(2, 8, 1, 1, 0))
    network = trace(model, (3, 6, 6))
    assert types(network) == {"conv": 3, "pooling": 1, "element_sum": 1}
    assert network["mul"].inputs == ("c", "up")
    assert network["mul"].output_size == (6, 6)


def test_concatenation_gives_the_reader_several_inputs():
    model = Calls(
        lambda m, x: m.d(torch.cat([m.a(x), torch.relu(m.b(x)), x], dim=1)),
        a=conv(o=4), b=conv(o=5), d=conv(12),
    )  # fmt: skip
    layer = trace(model, (3, 6, 6))["d"]
    assert layer.inputs == ("a", "b", INPUT)
    assert layer.in_channels == 12


def test_moving_elements_is_free():
    def forward(m, x):
        y = functional.pad(m.a(x), (1, 1, 1, 1))[:, :4]
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)  # channel shuffle
        left, right = y.chunk(2, dim=1)
        return m.b(functional.interpolate(left, scale_factor=2.0)), m.d(right.contiguous())

    network = trace(Calls(forward, a=conv(), b=conv(2), d=conv(2)), (3, 6, 6))
    assert types(network) == {"conv": 3}
    assert (network["b"].inputs, network["b"].input_size) == (("a",), (16, 16))
    assert (network["d"].inputs, network["d"].input_size) == (("a",), (8, 8))


def test_a_design_does_not_change_the_traced_network():
    from epim_nas.epitome.convert import apply_design
    from epim_nas.epitome.design import Choice, Design
    from epim_nas.epitome.shape import EpitomeShape

    model = build_model("resnet20", in_channels=3, num_classes=10)
    network = trace(model, (3, 32, 32))
    choices = {layer.name: Choice(weight_bits=4, activation_bits=8) for layer in network.weighted}
    choices["layer3.1.conv1"] = Choice(EpitomeShape(16, 32, 4, 4), wrap=True, weight_bits=3)
    choices["linear"] = Choice(EpitomeShape(10, 16, 1, 1), weight_bits=9)
    assert trace(apply_design(model, Design(network.name, choices)), (3, 32, 32)) == network


def test_a_module_with_a_plan_is_a_convolution():
    class Epitome(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_channels, self.out_channels, self.kernel_size = 3, 8, (3, 3)
            self.stride, self.padding, self.dilation, self.groups = (2, 2), (1, 1), (1, 1), 1
            self.plan = "anything"
            self.inner = conv(s=2)

        def forward(self, x):
            if float(x.sum()) < 0:  # could not be traced
                return x
            return self.inner(x)

    layer = trace(nn.Sequential(Epitome()), (3, 8, 8))["0"]
    assert layer == LayerSpec("0", "conv", (INPUT,), 3, 8, (8, 8), (4, 4), (3, 3), (2, 2), (1, 1))


def test_subclasses_of_convolution_are_leaves():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            if float(self.weight.mean()) > 1e9:
                return x
            return super().forward(x)

    assert trace(nn.Sequential(Standardised(3, 4, 1)), (3, 2, 2))["0"].weight_shape == (4, 3, 1, 1)


def test_tracing_changes_nothing():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 1))
    model.train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trace(model, (3, 8, 8))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_mode_is_restored_after_an_error():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2)).train()
    with pytest.raises(InputError):
        trace(model, (3, 8, 8))
    assert model.training
    assert model[0].training


def test_half_precision_and_meta_models_run_on_their_own_type_and_device():
    for model in (conv().to(torch.bfloat16), conv().to("meta")):
        assert trace(nn.Sequential(model), (3, 8, 8))["0"].output_size == (8, 8)


def test_optional_inputs_keep_their_defaults():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = conv()

        def forward(self, x, mask=None, twice=False):
            y = self.c(x)
            if mask is not None:
                y = y * mask
            return y + y if twice else y

    assert types(trace(Masked(), (3, 8, 8))) == {"conv": 1}


shared = conv(3, 3)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("model", "where", "said"),
    [
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "model: 0", "transposed"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 2)), "model: 1", "Conv1d"),
        (nn.Sequential(conv(), nn.Linear(8, 4)), "model: 1", "linear layer on an input of shape"),
        (Calls(lambda m, x: m.b(x, x), b=nn.Bilinear(8, 8, 2)), "model: b", "Bilinear"),
        (nn.Sequential(conv(), nn.Flatten(2), nn.LSTM(64, 4)), "model: 2", "recurrent"),
        (Calls(lambda m, x: m.c(m.c(x)), c=conv(3, 3)), "model: c", "more than once"),
        (nn.Sequential(nn.Sequential(shared), shared), "model: 0.0", "more than once"),
        (nn.Sequential(nn.Conv2d(3, 4, 2, padding="same")), "model: 0", "pads one side"),
        (Calls(lambda m, x: m.c(x) if x.sum() > 0 else x, c=conv()), "forward", "depends on"),
        (Calls(lambda m, x: m.c(x) @ x[:, :1], c=conv()), "(matmul)", "not supported"),
        (Calls(lambda m, x: m.c(x).mean(1), c=conv()), "(mean)", "over the dimensions 1"),
        (Calls(lambda m, x: m.a(x) / m.b(x), a=conv(), b=conv()), "(truediv)", "two feature maps"),
        (Calls(lambda m, x: torch.cat([m.c(x), x], 2), c=conv(3, 3)), "(cat)", "dimension 2"),
        (
            Calls(lambda m, x: torch.cat([m.a(x), m.b(x)], 1) + 1 * m.c(x), a=conv(), b=conv(),
                  c=conv(3, 16)),
            "(add)", "concatenation of `a`, `b`",
        ),
        (
            Calls(lambda m, x: functional.interpolate(m.c(x), scale_factor=2, mode="bilinear"),
                  c=conv()),
            "(interpolate)", "bilinear",
        ),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(12)), "model: 1", "larger"),
        (nn.Sequential(nn.ReLU()), "model", "no convolution"),
        (nn.Sequential(conv(4)), "model: 0", "cannot run on an input of shape (3, 8, 8)"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_says_where_and_why(model, where, said):
    with pytest.raises(InputError) as caught:
        trace(model, (3, 8, 8))
    assert where in caught.value.field
    assert said in caught.value.problem
    assert "\n" not in str(caught.value)


def test_tied_weights_of_two_modules_are_refused():
    model = nn.Sequential(conv(3, 3), conv(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(InputError, match="shares its weight with 0"):
        trace(model, (3, 8, 8))


def test_a_module_that_pads_asymmetrically_inside_is_refused():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(functional.pad(x, (0, 1, 0, 1)))

    with pytest.raises(InputError, match="pads asymmetrically"):
        trace(nn.Sequential(Same(3, 4, 3, 2)), (3, 8, 8))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(), self.bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Careful(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x.contiguous(), self.weight, self.bias, padding=self.padding)


@pytest.mark.parametrize("head", [Standardised(3, 4, 3), Scaled(3 * 8 * 8, 4)])
def test_a_layer_that_computes_with_other_weights_is_refused(head):
    model = nn.Sequential(conv(3, 3), nn.ReLU(), nn.Flatten() if head.weight.dim() == 2 else
                          nn.Identity(), head)  # fmt: skip
    model[0].bias.data.fill_(-1e3)  # what reaches the layer is zero
    with pytest.raises(InputError, match=f"model: 3: {type(head).__name__} computes something"):
        trace(model, (3, 8, 8))
    assert len(trace(model.to("meta"), (3, 8, 8)).weighted) == 2
    assert len(trace(nn.Sequential(Careful(3, 4, 3, padding=1)), (3, 8, 8)).weighted) == 1


def doubled(layer):
    """The layer with twice its weight, by a forward of its own, beside a large bias."""
    layer.bias.data.fill_(1e3)
    layer.forward = lambda x: 2 * (type(layer).forward(layer, x) - 1e3) + 1e3
    return layer


class Rectified(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Rounded(nn.Conv2d):
    def forward(self, x):
        step = self.weight.abs().max() / 127
        return self._conv_forward(x, (self.weight / step).round() * step, self.bias)


@pytest.mark.parametrize(
    "layer", [doubled(nn.Conv2d(3, 4, 3)), doubled(nn.Linear(192, 4)), Rectified(3, 4, 3),
              Rounded(3, 4, 3)],
)  # fmt: skip
def test_a_forward_that_does_more_is_refused_also_on_an_instance_or_beside_a_bias(layer):
    model = nn.Sequential(nn.Flatten() if layer.weight.dim() == 2 else nn.Identity(), layer)
    with pytest.raises(InputError, match=r"computes something else.*modules of their own"):
        trace(model, (3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 1e3])
def test_rounding_is_not_taken_for_other_weights(dtype, bias):
    layer = Careful(16, 8, 3, padding=1)
    layer.bias.data.fill_(bias)
    # The same sums in another order.
    layer.forward = lambda x: (
        sum(
            functional.conv2d(x[:, part], layer.weight[:, part], padding=1)
            for part in (slice(0, 5), slice(5, 16))
        )
        + layer.bias[:, None, None]
    )
    assert len(trace(nn.Sequential(layer).to(dtype), (16, 8, 8)).weighted) == 1


def test_a_layer_that_keeps_statistics_does_not_keep_those_of_tracing():
    class Observed(nn.Conv2d):
        def __init__(self, *given):
            super().__init__(*given)
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("largest", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            self.largest = torch.maximum(self.largest, x.max())
            return super().forward(x)

    model = nn.Sequential(Observed(3, 4, 3)).train()
    calls, largest = model[0].calls, model[0].largest
    trace(model, (3, 8, 8))
    assert model[0].largest is largest
    assert model[0].training
    assert [float(calls), float(largest)] == [0, 0]
    with pytest.raises(InputError):
        trace(model, (5, 8, 8))
    assert [float(calls), float(largest)] == [0, 0]


def test_a_second_required_input_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = conv()

        def forward(self, image, mask):
            return self.c(image) * mask

    with pytest.raises(InputError, match="needs 2 inputs"):
        trace(Two(), (3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), "3x8x8", (3.0, 8, 8), (True, 8, 8)])
def test_a_wrong_input_shape_is_refused(shape):
    with pytest.raises(InputError, match="channels, height, width"):
        trace(nn.Sequential(conv()), shape)


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        trace(lambda x: x, (3, 8, 8))
