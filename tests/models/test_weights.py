"""Checkpoints: what is read, what is refused, and that nothing is loaded by half."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from epim_nas import EpitomeConv2d, EpitomeShape
from epim_nas.errors import InputError
from epim_nas.models import build_model, find_weights, load_weights, save_weights, weight_names
from epim_nas.models.weights import load_state


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes))


def read_metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


@pytest.fixture
def trained():
    torch.manual_seed(3)
    model = net()
    model[1].running_mean.copy_(torch.rand(4))
    model[1].num_batches_tracked.fill_(7)
    return model


def test_safetensors_round_trip_with_metadata(tmp_path, trained):
    path = tmp_path / "sub" / "w.safetensors"
    save_weights(trained, path, {"top1": 0.5, "data": "toy"})
    other = net()
    load_weights(other, path)
    assert equal(trained, other)
    assert read_metadata(path) == {"top1": "0.5", "data": "toy"}
    assert os.listdir(path.parent) == ["w.safetensors"]
    save_weights(net().state_dict(), path)
    assert read_metadata(path) == {}


def test_shared_tensors_are_written(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "w.safetensors")
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other[1].weight, model[0].weight)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "net.model."])
def test_torch_checkpoints(tmp_path, trained, key, prefix):
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "w.pt")
    other = net()
    load_weights(other, tmp_path / "w.pt")
    assert equal(trained, other)


def test_the_old_torch_format_is_read(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    other = net()
    load_weights(other, tmp_path / "w.pth")
    assert equal(trained, other)


def test_a_model_with_a_part_named_module_keeps_its_names(tmp_path):
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    save_weights(model, tmp_path / "w.safetensors")
    other = nn.Sequential()
    other.add_module("module", nn.Linear(2, 2))
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(model, other)


def test_batch_counters_may_be_missing(tmp_path, trained):
    state = trained.state_dict()
    del state["1.num_batches_tracked"]
    save_weights(state, tmp_path / "w.safetensors")
    other = net()
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other[1].running_mean, trained[1].running_mean)
    assert other[1].num_batches_tracked == 0


def test_the_models_number_type_is_kept(tmp_path, trained):
    save_weights(trained, tmp_path / "w.safetensors")
    other = net().double()
    load_weights(other, tmp_path / "w.safetensors")
    assert other[0].weight.dtype == torch.float64
    assert torch.equal(other[0].weight, trained[0].weight.double())


def changed(state, **changes):
    state = {key: value.clone() for key, value in state.items()}
    for key, value in changes.items():
        if value is None:
            del state[key.replace("_", ".", 1)]
        else:
            state[key.replace("_", ".", 1)] = value
    return state


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"0_weight": None}, "1 missing (0.weight)"),
        ({"5_weight": torch.zeros(1)}, "1 unexpected (5.weight)"),
        ({"0_bias": None, "9_bias": torch.zeros(4)}, "1 missing (0.bias), 1 unexpected"),
        ({"2_weight": torch.zeros(5, 4)}, "1 of another shape (2.weight: (5, 4) and not (3, 4))"),
        ({"2_bias": torch.tensor([0.0, float("nan"), 0.0])}, "`2.bias` contains NaN"),
        ({"2_bias": torch.tensor([0.0, float("inf"), 0.0])}, "`2.bias` contains NaN or inf"),
        ({"2_bias": torch.zeros(3, dtype=torch.int8)}, "`2.bias` holds numbers of the type int8"),
        ({"2_bias": torch.zeros(3, dtype=torch.bool)}, "`2.bias` holds numbers of the type bool"),
        ({"2_bias": torch.zeros(3, dtype=torch.complex64)}, "of the type complex64"),
        ({"2_bias": torch.zeros(3).to(torch.float8_e4m3fn)}, "of the type float8_e4m3fn"),
        ({"2_bias": torch.full((3,), 1e300, dtype=torch.float64)}, "beyond the range of float32"),
        ({"1_running_var": torch.tensor([1.0, -0.5, 1.0, 1.0])}, "a negative variance (-0.5)"),
        ({"1_num_batches_tracked": torch.tensor(0.5)}, "of the type float32"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_checkpoints_that_do_not_fit_change_nothing(tmp_path, trained, changes, said, suffix):
    path = tmp_path / f"w.{suffix}"
    state = changed(trained.state_dict(), **changes)
    save_weights(state, path) if suffix == "safetensors" else torch.save(state, path)
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, path, field="run.yaml: model.weights")
    assert said in caught.value.problem
    assert caught.value.field.startswith("run.yaml: model.weights")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("zip.pt", lambda path: torch.save({"state_dict": Bomb()}, path)),
        ("module.pt", lambda path: torch.save(net(), path)),
        ("plain.pkl", lambda path: path.write_bytes(pickle.dumps(Bomb()))),
    ):
        write(tmp_path / name)
        with pytest.raises(InputError, match="execute code"):
            load_weights(net(), tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_no_checkpoints(tmp_path, trained):
    save_weights(trained, tmp_path / "w.safetensors")
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("hello, this is not a checkpoint\n")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    (tmp_path / "page.safetensors").write_text("\ufeff\n<html></html>")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\nsize 44780000")
    (tmp_path / "json.pt").write_text('{"message": "Bad credentials"}')
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", weight=np.zeros(3))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    for name, inner, content in (("other.zip", "a/b.txt", "x"),
                                 ("page_inside.pt", "archive/data.pkl", "<html>")):  # fmt: skip
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inner, content)
            archive.writestr("archive/version", "3")
            archive.writestr("archive/byteorder", "little")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "other.pt")
    for name, said in (
        ("cut_w.safetensors", "damaged"),
        ("cut_w.pt", "not a checkpoint"),
        ("text.pt", "not a checkpoint"),
        ("empty.pt", "not a checkpoint"),
        ("list.pt", "no state dict but a list"),
        ("other.pt", "no state dict but the keys `epoch`, `loss`"),
        ("page.pt", "a web page (HTML or XML)"),
        ("page.safetensors", "a web page"),
        ("lfs.pth", "a pointer of Git LFS"),
        ("json.pt", "a JSON text"),
        ("array.npy", "a NumPy array"),
        ("arrays.npz", "a NumPy archive"),
        ("program.pt", "a TorchScript program"),
        ("other.zip", "not a checkpoint"),
        ("page_inside.pt", "not a checkpoint"),
        ("none.pt", "no such file"),
        (".", "is a folder"),
    ):
        with pytest.raises(InputError) as caught:
            load_weights(net(), tmp_path / name)
        assert said in caught.value.problem, name
        assert "\n" not in str(caught.value)


def test_names_and_paths_of_weights(tmp_path, monkeypatch, trained):
    monkeypatch.setattr("epim_nas.models.weights._FOLDER", tmp_path / "shipped")
    save_weights(trained, tmp_path / "shipped" / "toy_net.safetensors")
    save_weights(trained, tmp_path / "run" / "own.safetensors")
    assert weight_names() == ["toy_net"]
    assert find_weights("toy_net") == tmp_path / "shipped" / "toy_net.safetensors"
    own = tmp_path / "run" / "own.safetensors"
    assert find_weights(own) == find_weights(str(own)) == own
    load_weights(net(), "toy_net")
    with pytest.raises(InputError, match="Did you mean `toy_net`"):
        find_weights("toynet")
    with pytest.raises(InputError, match="no such file"):
        find_weights("own.safetensors")


def test_resnet20_takes_the_names_of_public_checkpoints(tmp_path):
    # akamaster/pytorch_resnet_cifar10: no shortcut weights, `linear` as the classifier.
    model = build_model("resnet20", in_channels=3, num_classes=10)
    names = {key.rpartition(".")[0] for key in model.state_dict()}
    blocks = {f"layer{i}.{j}.{part}{k}" for i in (1, 2, 3) for j in (0, 1, 2)
              for part in ("conv", "bn") for k in (1, 2)}  # fmt: skip
    assert names == blocks | {"conv1", "bn1", "linear"}


def test_the_first_differences_of_another_architecture_are_listed(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(build_model("resnet32", in_channels=3, num_classes=100), path)
    with pytest.raises(InputError) as caught:
        load_weights(build_model("resnet20", in_channels=3, num_classes=10), path)
    problem = caught.value.problem
    assert "60 unexpected (layer1.3.bn1.bias" in problem
    assert "of another shape (linear.bias: (100,) and not (10,), linear.weight" in problem
    assert "same depth" in caught.value.hint


@pytest.mark.parametrize(
    ("channels", "classes", "hint"),
    [
        (1, 10, "for colour images (3 channels), and the data has grey images (1)"),
        (3, 7, "number of classes alone"),
    ],
)
def test_the_hint_names_the_likely_cause(tmp_path, channels, classes, hint):
    path = tmp_path / "w.safetensors"
    save_weights(build_model("resnet20", in_channels=3, num_classes=10), path)
    with pytest.raises(InputError) as caught:
        load_weights(build_model("resnet20", in_channels=channels, num_classes=classes), path)
    assert hint in caught.value.hint


@pytest.mark.parametrize("outer", ["", "model.", "module.", "net.backbone."])
def test_averaged_models_are_read(tmp_path, trained, outer):
    state = torch.optim.swa_utils.AveragedModel(trained).state_dict()
    torch.save({outer + key: value for key, value in state.items()}, tmp_path / "swa.pt")
    other = net()
    load_weights(other, tmp_path / "swa.pt")
    assert equal(trained, other)


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model_state_dict", "ema"),
        ("net", "averaged network"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_of_plain_and_averaged_weights_the_plain_ones_are_taken(
    tmp_path, trained, caplog, plain, averaged, order
):
    means = torch.optim.swa_utils.AveragedModel(net()).state_dict()
    entries = {plain: trained.state_dict(), averaged: means, "epoch": 3}
    torch.save(dict(list(entries.items())[::order]), tmp_path / "w.pt")
    other = net()
    with caplog.at_level("INFO", logger="epim_nas"):
        load_weights(other, tmp_path / "w.pt")
    assert equal(trained, other)
    assert f"w.pt: the weights under `{plain}` are taken, not those under `{averaged}`" in (
        caplog.text
    )


def test_weights_under_an_unusual_key_are_taken_if_there_are_no_others(tmp_path, trained, caplog):
    other = net()
    optimizer = torch.optim.SGD(trained.parameters(), momentum=0.9).state_dict()
    entries = {"model": {"name": "resnet"}, "state_dict_ema": trained.state_dict()}
    torch.save({**entries, "optimizer": optimizer, "epoch": 2}, tmp_path / "ema.pt")
    with caplog.at_level("INFO", logger="epim_nas"):
        load_weights(other, tmp_path / "ema.pt")
    assert equal(trained, other)
    assert "the weights under `state_dict_ema` are taken" in caplog.text
    torch.save({"student": net().state_dict(), "teacher": net().state_dict()}, tmp_path / "two.pt")
    with pytest.raises(InputError, match="several state dicts under `student`, `teacher`"):
        load_weights(net(), tmp_path / "two.pt")


def test_what_is_said_of_plain_checkpoints_is_nothing(tmp_path, trained, caplog):
    torch.save({"state_dict": trained.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    with caplog.at_level("INFO", logger="epim_nas"):
        load_weights(net(), tmp_path / "w.pt")
    assert not caplog.text


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "encoder."])
def test_a_model_among_other_tensors_is_recognised(tmp_path, trained, prefix):
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}}, tmp_path / "w.ckpt")
    with pytest.raises(InputError) as caught:
        load_weights(net(), tmp_path / "w.ckpt")
    assert "All tensors of the model are there" in caught.value.hint
    assert ("begin with" in caught.value.hint) == bool(prefix)
    assert f"`{prefix}`" in caught.value.hint or not prefix
    assert "1 others (`criterion.weight`" in caught.value.hint


PARTS = st.lists(st.sampled_from(["module", "model", "net", "0", "_orig_mod"]), max_size=3)


@settings(max_examples=40)
@given(
    own=PARTS.filter(lambda parts: "_orig_mod" not in parts), wrappers=PARTS, inside=st.booleans()
)
def test_wrappers_are_removed_whatever_the_modules_are_called(own, wrappers, inside):
    """Names of a model's own modules are kept, those of wrappers and of compiled parts are not."""

    def model() -> nn.Module:
        inner: nn.Module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
        for part in reversed(own):
            outer = nn.Module()
            outer.add_module(part, inner)
            inner = outer
        return inner

    source, target = model(), model()
    prefix = "".join(f"{part}." for part in wrappers)
    state = {prefix + key: torch.rand_like(value.float()).to(value.dtype)
             for key, value in source.state_dict().items()}  # fmt: skip
    if inside:
        state = {key.replace(".weight", "._orig_mod.weight"): value for key, value in state.items()}
    load_state(target, state, "here")
    for (key, value), given_value in zip(target.state_dict().items(), state.values(), strict=True):
        assert torch.equal(value, given_value), key


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.eye(4).to_sparse(), "layout sparse_coo"),
        (torch.eye(4).to_sparse_csr(), "layout sparse_csr"),
        (torch.ones(4, device="meta"), "no numbers"),
        (torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "of the type qint8"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "layout nested"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_numbers_are_refused(tmp_path, trained, value, said):
    torch.save(changed(trained.state_dict(), **{"1_bias": value}), tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"`1\.bias`.*{said}"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_what_counts_is_the_number_that_is_stored(tmp_path, trained, half):
    """A model of fewer bits cannot hold all that a checkpoint of more bits has."""
    beyond = torch.full((3,), 1e39, dtype=torch.float64)
    save_weights(changed(trained.state_dict(), **{"2_bias": beyond}), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"beyond the range of {str(half)[6:]}"):
        load_weights(net().to(half), tmp_path / "w.safetensors")
    fits = net().double()
    load_weights(fits, tmp_path / "w.safetensors")
    assert torch.equal(fits[2].bias, beyond)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_types_are_converted(tmp_path, trained, kind):
    state = {k: v.to(kind) if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    other = net()
    load_weights(other, tmp_path / "w.pt")
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, state["0.weight"].float())


def epitomes(*shape: int, seed: int = 0, reordered: bool = False) -> nn.Module:
    """A convolution and a classifier as epitomes; the order of the inputs may be another."""
    layer = EpitomeConv2d(4, 8, 3, shape=EpitomeShape(*shape), weight_bits=4)
    if reordered:
        layer.reorder([7, 6, 5, 4, 3, 2, 1, 0], [[1, 0, 3, 2]])
    return nn.Sequential(OrderedDict(conv=layer, norm=nn.BatchNorm2d(8), fc=nn.Linear(8, 3)))


@pytest.mark.parametrize(
    "other",
    [
        lambda: epitomes(4, 4, 3, 3, reordered=True).state_dict(),
        lambda: epitomes(8, 2, 3, 3, reordered=True).state_dict(),
        lambda: net().state_dict(),
        lambda: nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 8, 3))).state_dict(),
        lambda: {**own(), "conv.in_order": torch.zeros(4, dtype=torch.int32)},
        lambda: {**own(), "conv.in_order": torch.tensor(3, dtype=torch.int32)},
        lambda: {**own(), "conv.in_order": torch.zeros(1, 4, dtype=torch.int32)},
        lambda: {**own(), "conv.in_order": torch.zeros(2, 9, dtype=torch.int32)},
        lambda: {**own(), "conv.out_order": torch.zeros(8, dtype=torch.int32)},
        lambda: {**own(), "conv.out_order": torch.zeros(2, 4)},
    ],
)
def test_weights_of_another_design_are_refused_by_name(other, tmp_path):
    save_weights(other(), tmp_path / "w.safetensors")
    model = epitomes(4, 2, 3, 3)
    with pytest.raises(InputError, match=r"--weights \(w.safetensors\): .*another design"):
        load_weights(model, tmp_path / "w.safetensors", field="--weights")


def test_other_differences_are_not_blamed_on_the_design(tmp_path):
    state = {**own(), "fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}
    save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="number of classes alone"):
        load_weights(epitomes(4, 2, 3, 3), tmp_path / "w.safetensors")
    linear = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    save_weights(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="of another shape"):
        load_weights(linear, tmp_path / "w.safetensors")


def own() -> dict[str, torch.Tensor]:
    return epitomes(4, 2, 3, 3, reordered=True).state_dict()


def test_the_design_s_own_weights_are_taken_with_their_orders(tmp_path):
    save_weights(own(), tmp_path / "w.safetensors")
    model = epitomes(4, 2, 3, 3)
    load_weights(model, tmp_path / "w.safetensors")
    assert model.conv.plan.out_order == (7, 6, 5, 4, 3, 2, 1, 0)


def test_a_safetensors_file_may_begin_like_a_text(tmp_path, trained):
    """Its first bytes are a length: 15392 is a space and a `<`."""
    save_weights(trained, tmp_path / "w.safetensors", {"note": ""})
    content = (tmp_path / "w.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].ljust(0x3C20)
    (tmp_path / "w.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + content[8 + length :]
    )
    other = net()
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(trained, other)


@settings(max_examples=150)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints_are_refused_or_hold_sound_numbers(tmp_path_factory, data):
    """Flipped and cut files of every format: one message, or a model that is loaded as a whole."""
    path = tmp_path_factory.mktemp("damaged") / "w.pt"
    torch.manual_seed(0)
    kind = data.draw(st.sampled_from(["safetensors", "zip", "legacy", "pickle"]))
    if kind == "safetensors":
        save_weights(net(), path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}, data.draw(st.integers(0, 5))))
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of what can break lies at both ends of a file.
        place = data.draw(st.integers(0, min(400, len(content) - 1)))
        content[place * data.draw(st.sampled_from([1, -1]))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content)] * 3 + [len(content) // 2, 9, 1]))
    path.write_bytes(content[:cut])
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        load_weights(model, path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    else:
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
        assert (model[1].running_var >= 0).all()
