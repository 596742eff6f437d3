"""Files are replaced whole or not at all, and read safely."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.errors import InputError
from epim_nas.files import (
    atomic_path,
    digest,
    dump_yaml,
    load_json,
    load_yaml,
    parse_yaml,
    read_bytes,
    user_path,
    write_json,
    write_text,
)
from epim_nas.schema import apply_overrides


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a: [1", "not valid YAML at line"),
        (b"a: 1\nb: 2\na: 3\n", "given twice"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_wrong_yaml_is_one_clear_error(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_yaml(tmp_path)


def test_yaml_round_trips_in_order(tmp_path: Path) -> None:
    data = {"z": 1, "a": [1, 2.5, None, True], "text": "é: x"}
    write_text(tmp_path / "f.yaml", dump_yaml(data))
    assert load_yaml(tmp_path / "f.yaml") == data
    assert list(load_yaml(tmp_path / "f.yaml")) == list(data)


def test_digest_is_the_content_not_the_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_overrides_are_yaml_values_and_leave_the_original() -> None:
    data = {"a": {"b": 1}, "c": [1]}
    changed = apply_overrides(data, ["a.b=2.5", "a.new.x=[1, 2]", "d=text"], "--set")
    assert changed == {"a": {"b": 2.5, "new": {"x": [1, 2]}}, "c": [1], "d": "text"}
    assert data == {"a": {"b": 1}, "c": [1]}


@pytest.mark.parametrize("item", ["a.b", "=1", "a.b.c=1"])
def test_wrong_overrides_name_the_option(item: str) -> None:
    with pytest.raises(InputError, match="--set"):
        apply_overrides({"a": {"b": 1}}, [item], "--set")


TEXTS = st.one_of(
    st.text(),
    st.text("0123456789eE+-._:xob"),  # what may read as a number
    st.sampled_from(
        [
            "null",
            "~",
            "yes",
            "no",
            "on",
            "off",
            "true",
            "=",
            "<<",
            "-",
            "?",
            ":",
            "#",
            "&",
            "*",
            "!",
            "1:30",
            "2026-01-31",
            ".inf",
            "0x1F",
        ]
    ),
    st.text("\x00\x07\x85\u2028\ufeff\ud800\x1b\t \n'\"\\{}[],&*#?|<>=!%@`", max_size=6),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_as_yaml_is_read_back(value: object) -> None:
    assert parse_yaml(dump_yaml(value)) == value
    assert parse_yaml(dump_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", ["1e5", "25921e05", "3e2.ini", "1e-3", "2026-13-45", "=", "1_000"])
def test_texts_that_look_like_numbers_stay_texts(text: str) -> None:
    assert parse_yaml(dump_yaml({"name": text})) == {"name": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e5", 1e5), ("1e-3", 1e-3), ("2026-01-31", "2026-01-31"), ("=", "="), ("1.5", 1.5)],
)
def test_plain_scalars(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_merge_keys_and_aliases_are_followed() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nagain: *b\n"
    assert parse_yaml(text)["more"] == {"x": 1, "y": 3}
    assert parse_yaml(text)["again"] == {"x": 1, "y": 2}


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 0x_", "`0x_` is not a value of its type"),
        ("a: !!int x", "not a value of its type"),
        ("a: " + "9" * 5000, "999 ... 999"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: &a [*a]", "a part of itself"),
        ("a: &a {b: *a}", "a part of itself"),
        ("<<: 5", "merging"),
        (BOMB, "more than 1,000,000 values"),
        ("a: !!binary aa", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("--- 1\n--- 2", "found another document"),
        ("? [a]\n: 1", "unhashable"),
    ],
)
def test_values_that_yaml_refuses(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_yaml(tmp_path / "f.yaml")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1200
    with pytest.raises(InputError, match=r"--set"):
        apply_overrides({}, [f"key={text}"], "--set")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[" * 100_000, "9" * 5000, "{", '{"a": 1}}'])
def test_values_that_json_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match=r"f\.json: is damaged"):
        load_json(tmp_path / "f.json")


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    (tmp_path / "f.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert load_yaml(tmp_path / "f.yaml") == load_json(tmp_path / "f.json") == {"a": 1}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: reading would wait for ever
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(InputError, match=r"is a device, a pipe or a socket.*a regular file"):
            read_bytes(path)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match=r"1,073,741,824 bytes.*at most"):
        read_bytes(tmp_path / "huge")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a/" * 3000])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(InputError):
        read_bytes(path)


@pytest.mark.parametrize("path", ["", "  ", "a\0b", "~nobody_of_this_name/x"])
def test_paths_that_users_cannot_mean(path: str) -> None:
    with pytest.raises(InputError, match=r"^data\.root: "):
        user_path(path, "data.root")


def test_long_values_are_shortened_in_messages() -> None:
    error = InputError("field", "got `" + "v" * 20_000 + "`\n  Traceback\n  frame", "a", "b")
    assert len(str(error)) < 700
    assert "\n" not in str(error)
    assert "frame" in str(error)
