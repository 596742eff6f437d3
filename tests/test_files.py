"""Files are replaced whole or not at all, and read safely."""

from __future__ import annotations

from pathlib import Path

import pytest

from epim_nas.errors import InputError
from epim_nas.files import atomic_path, digest, dump_yaml, load_yaml, write_json, write_text
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
