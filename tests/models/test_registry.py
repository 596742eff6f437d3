"""Models by name: architectures against torchvision's, arguments, and what is refused."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from epim_nas.errors import InputError
from epim_nas.models import build_model, default_input_shape, model_names
from epim_nas.models._torchvision import import_torchvision
from epim_nas.network import trace

vision = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torchvision", "timm")),
    reason="needs the extra `vision`",
)

PUBLISHED_PARAMETERS = {
    # He et al., CVPR 2016, table 6, to two digits: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    # torchvision's documentation of its weights
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}


def test_every_name_has_a_published_size():
    assert set(model_names()) == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", model_names())
def test_parameter_counts(name):
    classes = 10 if default_input_shape(name)[1] == 32 else 1000
    with torch.device("meta"):
        model = build_model(name, in_channels=3, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[name]


@vision
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg13_bn"])
def test_torchvision_checkpoints_load_and_give_the_same_scores(name):
    models = import_torchvision().models
    torch.manual_seed(0)
    theirs = models.get_model(name, num_classes=7).eval()
    with torch.device("meta"):
        ours = build_model(name, in_channels=3, num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_default_shapes():
    assert default_input_shape("resnet20") == (3, 32, 32)
    assert default_input_shape("resnet50") == (3, 224, 224)
    assert default_input_shape("timm:resnet18") == (3, 224, 224)


@pytest.mark.parametrize(
    ("spec", "args", "shape"),
    [
        ("resnet20", {"width": 8}, (1, 28, 28)),
        ("resnet20", {"width": 5}, (3, 32, 32)),
        ("resnet18", {"small_input": True}, (5, 32, 32)),
        ("vgg11_bn", {"small_input": True}, (2, 32, 32)),
    ],
)
def test_any_channels_and_classes(spec, args, shape):
    model = build_model(spec, in_channels=shape[0], num_classes=6, args=args)
    assert model(torch.randn(2, *shape)).shape == (2, 6)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == shape[0]


def test_initialisation_keeps_activations_in_range():
    torch.manual_seed(0)
    model = build_model("resnet20", in_channels=3, num_classes=10).train()
    scores = model(torch.randn(32, 3, 32, 32))
    assert 0.1 < scores.std().item() < 10
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * 9
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)


@vision
@pytest.mark.parametrize(
    ("spec", "convs", "linears"),
    [("torchvision:resnet50", 53, 1), ("timm:resnet18", 20, 1), ("timm:mobilenetv2_100", 52, 1)],
)
def test_models_of_libraries_build_and_trace(spec, convs, linears):
    network = trace(build_model(spec, in_channels=3, num_classes=10), (3, 64, 64))
    counted = [layer.type for layer in network]
    assert (counted.count("conv"), counted.count("fc")) == (convs, linears)
    assert network.layers[-1].out_channels == 10


@vision
def test_models_of_libraries_take_other_channels():
    for spec in ("torchvision:resnet18", "timm:resnet18", "torchvision:mobilenet_v2"):
        model = build_model(spec, in_channels=1, num_classes=4).eval()
        assert model(torch.randn(1, 1, 64, 64)).shape == (1, 4)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def full(in_channels, num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.Flatten(),\n"
        "                         nn.LazyLinear(num_classes))\n"
        "def plain():\n"
        "    return nn.Conv2d(3, 2, 1)\n"
        "def anything(**options):\n"
        "    return nn.Conv2d(options['in_channels'], options['num_classes'], 1)\n"
        "def wrong():\n"
        "    return 3\n"
        "def broken():\n"
        "    raise KeyError('nothing here')\n"
        "constant = 3\n"
    )
    (tmp_path / "bad_nets.py").write_text("1 / 0\n")
    (tmp_path / "needy_nets.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_nets", "bad_nets", "needy_nets"):
        sys.modules.pop(name, None)


def test_the_users_own_function(user_folder):
    path = list(sys.path)
    model = build_model("my_nets:full", in_channels=2, num_classes=5, args={"width": 6})
    assert (model[0].in_channels, model[0].out_channels) == (2, 6)
    assert model[2].out_features == 5
    assert build_model("my_nets:plain", in_channels=2, num_classes=5).in_channels == 3
    assert build_model("my_nets:anything", in_channels=2, num_classes=5).out_channels == 5
    assert build_model("torch.nn:Identity", in_channels=2, num_classes=5)(3) == 3
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet-50", "Did you mean `resnet50`"),
        pytest.param("torchvision:resnet-50", "Did you mean `resnet50`", marks=vision),
        pytest.param("torchvision:fcn_resnet50", "torchvision classification model", marks=vision),
        pytest.param("timm:resnet_18", "Did you mean `resnet18`", marks=vision),
        ("my_nets:ful", "Did you mean `full`"),
        ("my_nets:wrong", "returned a int"),
        ("my_nets:broken", "cannot be built: KeyError"),
        ("my_nets:constant", "is not a function"),
        ("no_such_nets:full", "there is no module `no_such_nets`"),
        ("bad_nets:full", "ZeroDivisionError"),
        ("needy_nets:full", "needs `a_module_that_is_not_there`"),
        (":full", "package.module:function"),
        ("my_nets:", "package.module:function"),
    ],
)
def test_unknown_models_are_refused(user_folder, spec, said):
    with pytest.raises(InputError, match=r"^model: ") as caught:
        build_model(spec, in_channels=3, num_classes=10)
    assert said in str(caught.value)


def test_wrong_arguments_are_refused(user_folder):
    with pytest.raises(InputError, match=r"model.args.widht: .*Did you mean `width`"):
        build_model("resnet20", in_channels=3, num_classes=10, args={"widht": 8})
    with pytest.raises(InputError, match=r"model.args.widht: .*Did you mean `width`"):
        build_model("my_nets:full", in_channels=3, num_classes=10, args={"widht": 8})
    with pytest.raises(InputError, match=r"model.args.depth: `resnet20` already has depth 20"):
        build_model("resnet20", in_channels=3, num_classes=10, args={"depth": 21})
    with pytest.raises(InputError, match=r"model.num_classes: got `0`"):
        build_model("resnet20", in_channels=3, num_classes=0)


@vision
def test_wrong_arguments_of_a_librarys_model_are_refused():
    with pytest.raises(InputError, match="cannot be built: TypeError"):
        build_model("timm:resnet18", in_channels=3, num_classes=10, args={"widht": 8})


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise ModuleNotFoundError("hidden", name="torchvision")

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    for spec in ("torchvision:resnet18", "timm:resnet18"):
        with pytest.raises(InputError, match=r"epim_nas\[vision\]"):
            build_model(spec, in_channels=3, num_classes=10)
