"""YAML and JSON: what is written is read back, and no text from outside does harm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas import EpitomeShape, load_design
from epim_nas.documents import MOST_LEVELS, dump_yaml, parse_yaml
from epim_nas.epitome.design import Choice, Design
from epim_nas.errors import InputError
from epim_nas.files import load_json, load_yaml, read_text, write_text
from epim_nas.hardware import load_chip
from epim_nas.hardware.chip import Chip
from epim_nas.launch.kuberay import _config_map
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.network.yaml_io import load_network, save_network
from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.schema import apply_overrides
from epim_nas.space.config import SpaceConfig, load_space_config

# Texts that read as numbers, dates, truth values or YAML's own signs; control characters, breaks
# of lines, folds of long lines.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text("0123456789eE+-._:xobn~<= "),
    st.text("\x00\x07\x1b\x85\u2028\ufeff\U0001f600\t \n\r'\"\\{}[],&*#?|<>=!%@`:-a"),
    st.text(" ab\n:#", min_size=90),
    st.sampled_from(
        ["1e5", "25921e05", "3e2.ini", "1_0", "0x_", "yes", "null", "~", "=", "<<", ""]
    ),
)
VALUES = st.recursive(
    TEXTS
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.none(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXTS, parts, max_size=4),
    max_leaves=10,
)
SOME = settings(max_examples=60)


@settings(max_examples=300)
@given(VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    assert parse_yaml(dump_yaml(value)) == value
    assert parse_yaml(dump_yaml({"key": value})) == {"key": value}


@settings(max_examples=100)
@given(TEXTS)
def test_stock_yaml_reads_texts_as_well(text: str) -> None:
    assert yaml.safe_load(dump_yaml({text: [text]})) == {text: [text]}


def written(path: Path, text: str) -> Path:
    write_text(path, text)
    assert read_text(path) == text
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@SOME
@given(text=TEXTS)
def test_chips(text: str, folder: Path) -> None:
    chip = Chip(name=text)
    path = written(folder / "chip.yaml", dump_yaml(chip.to_dict()))
    assert load_chip(str(path)) == chip


@SOME
@given(first=TEXTS.filter(bool), second=TEXTS.filter(bool))
def test_networks(first: str, second: str, folder: Path) -> None:
    if first == second or "input" in (first, second):
        return
    layers = (
        LayerSpec(first, "conv", ("input",), 3, 8, (8, 8), (8, 8)),
        LayerSpec(second, "conv", (first,), 8, 8, (8, 8), (8, 8)),
    )
    network = Network(second, layers, (3, 8, 8))
    save_network(network, folder / "network.yaml")
    assert load_network(folder / "network.yaml") == network


@SOME
@given(text=TEXTS, value=VALUES)
def test_designs(text: str, value: object, folder: Path) -> None:
    choice = Choice(EpitomeShape(1, 1, 1, 1), weight_bits=3)
    design = Design(text, {text: choice, f"{text}.": Choice()}, {"name": text}, {}, {text: value})
    design.save(folder / "design.yaml")
    again = load_design(folder / "design.yaml")
    assert again.network == text
    assert list(again.choices) == [text, f"{text}."]
    assert (again.hardware, again.provenance) == (design.hardware, design.provenance)


@SOME
@given(text=TEXTS)
def test_search_spaces(text: str, folder: Path) -> None:
    space = SpaceConfig(schema="epim-nas/space@1", name=text, description=text, ties=[[text]])
    data = space.model_dump(mode="json", by_alias=True)
    path = written(folder / "space.yaml", dump_yaml(data))
    assert load_space_config(str(path)) == space


@SOME
@given(name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]*", fullmatch=True), text=TEXTS, value=VALUES)
def test_run_files(name: str, text: str, value: object, folder: Path) -> None:
    config, _ = load_run_config("demo")
    data = config.model_dump(mode="json", by_alias=True)
    data |= {"name": name, "device": text}
    data["model"] |= {"name": text, "args": {text: value}}
    data["executor"] |= {"address": text}
    config = RunConfig.model_validate(data)
    path = written(folder / "run.yaml", dump_yaml(config.model_dump(mode="json", by_alias=True)))
    again, _ = load_run_config(str(path))
    assert again == config


@SOME
@given(text=TEXTS)
def test_jobs_of_kubernetes(text: str, folder: Path) -> None:
    manifest = _config_map(text, {"code/a.py": text.encode(), "code/b": b"\xff" + text.encode()})
    (again,) = yaml.safe_load_all(dump_yaml(manifest))
    assert again == manifest


@pytest.mark.parametrize("name", ["1e5", "25921e05", "12e4", "1.5e3", "2026-10-01", "0x1F", "on"])
def test_names_that_read_as_something_else(name: str, tmp_path: Path) -> None:
    chip = load_chip("xbar_64").model_copy(update={"name": name})
    write_text(tmp_path / "chip.yaml", dump_yaml(chip.to_dict()))
    assert load_chip(str(tmp_path / "chip.yaml")).name == name


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e5", 1e5), ("1e-3", 1e-3), ("2026-13-45", "2026-13-45"), ("=", "=")],
)
def test_plain_scalars(text: str, value: object) -> None:
    assert parse_yaml(text) == value


# Aliases of aliases: 2^40 values in 2 kB.
GROWING = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 40)
)
REFUSED = {
    "0x_": "`0x_` is not a value of type int",
    "!!int x": "`x` is not a value of type int",
    "!!int ''": "type int",
    "!!float x": "type float",
    "!!bool maybe": "type bool",
    "!!timestamp x": "timestamp` is not read",
    "!!set {a}": "set` is not read",
    "!!binary aGk=": "binary` is not read",
    "!!python/name:os.system": "is not read",
    "9" * 5000: "type int",
    "9" * 30: "is too large",
    "0x" + "f" * 30: "is too large",
    "[" * 5000: f"more than {MOST_LEVELS} levels",
    "{a: " * 5000: f"more than {MOST_LEVELS} levels",
    "&a [*a]": "contains itself",
    "&a {b: [*a]}": "contains itself",
    "{<<: {a: 1}}": "merge keys",
    "{? [a] : 1}": "a key is text",
    "{? {a: 1} : 1}": "a key is text",
    "{a: 1, a: 2}": "`a` is given twice",
    GROWING: "aliases",
}


@pytest.mark.parametrize(("text", "words"), REFUSED.items(), ids=[key[:12] for key in REFUSED])
def test_values_that_are_not_taken(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match="not valid YAML at line 1") as caught:
        load_yaml(tmp_path / "a.yaml")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    if text != GROWING:
        with pytest.raises(InputError, match="--set") as caught:
            apply_overrides({}, [f"model.args={text}"], "--set")
        assert words in str(caught.value)


def test_halves_of_surrogate_pairs_are_neither_written_nor_read() -> None:
    with pytest.raises(InputError, match=r"`a\\ud800`.*surrogate"):
        dump_yaml({"name": ["a\ud800"]})
    with pytest.raises(yaml.YAMLError, match="surrogate"):
        parse_yaml('{"a\\ud800": 1}')


def test_aliases_that_do_not_grow_are_read() -> None:
    assert parse_yaml("{a: &a [1, {b: 2}], c: *a, d: *a}")["d"] == [1, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[NaN]", "`NaN` is not a number"),
        ("[-Infinity]", "`-Infinity`"),
        ("[1e999]", "`1e999`"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "4300 digits"),
        ("{", "not valid JSON at line 1, column 2"),
    ],
)
def test_json_that_is_not_taken(text: str, words: str, tmp_path: Path) -> None:
    if words == "4300 digits" and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads them")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="is damaged: ") as caught:
        load_json(tmp_path / "a.json")
    assert words in str(caught.value)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    for name, text, load in (("a.yaml", "a: 1", load_yaml), ("a.json", '{"a": 1}', load_json)):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load(tmp_path / name) == {"a": 1}
