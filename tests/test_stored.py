"""Files that are read back: damage is noticed, and a kill at any moment is none."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epim_nas import InputError, files
from epim_nas.stored import (
    Growing,
    check_stored,
    digest_file,
    remove_stored,
    store_json,
    store_text,
)

LINES = [f'{{"op": {number}, "value": {number * 7}}}\n'.encode() for number in range(5)]


def flipped(content: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[at % len(content)] ^= 1 << bit
    return bytes(changed)


@given(text=st.text(min_size=1), at=st.integers(0, 500), bit=st.integers(0, 7), note=st.booleans())
def test_any_flipped_bit_is_noticed(
    text: str, at: int, bit: int, note: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.json"
    store_text(path, text)
    check_stored(path)
    damaged = digest_file(path) if note else path
    damaged.write_bytes(flipped(damaged.read_bytes(), at, bit))
    with pytest.raises(InputError, match=r"a\.json: is damaged") as caught:
        check_stored(path, "Do this.")
    assert caught.value.hint == "Do this."


def test_a_missing_note_or_file_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "old.json").write_text("{}")
    check_stored(tmp_path / "old.json")
    assert not caplog.records, "a file of the user"
    for _ in range(2):
        check_stored(tmp_path / "old.json", folder=tmp_path)
    (record,) = caplog.records
    assert str(tmp_path) in record.getMessage()
    store_json(tmp_path / "a.json", 1)
    (tmp_path / "a.json").unlink()
    store_json(tmp_path / "a.json", 2)
    check_stored(tmp_path / "a.json", folder=tmp_path)
    remove_stored(tmp_path / "a.json")
    assert not digest_file(tmp_path / "a.json").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("old", ["nothing", "unnoted", "noted"])
@pytest.mark.parametrize("moment", range(7))
def test_killed_at_any_moment_it_is_the_old_file_or_the_new(
    old: str, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    if old == "unnoted":
        path.write_text("old")
    elif old == "noted":
        store_text(path, "old")
    left = moment
    real = {name: getattr(os, name) for name in ("replace", "fsync")}

    def killing(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*arguments)

        return call

    with monkeypatch.context() as patched:
        for name in real:
            patched.setattr(files.os, name, killing(name))
        ended = True
        try:
            store_text(path, "new")
        except Killed:
            ended = False
    assert ended == (moment >= 6), "all moments are tried"
    assert not path.exists() or path.read_text() in ("old", "new")
    if path.exists():
        check_stored(path)
    store_text(path, "newest")
    check_stored(path)
    assert len(digest_file(path).read_text().splitlines()) == 1


def test_a_reader_beside_a_writer_sees_no_damage(tmp_path: Path) -> None:
    path, over = tmp_path / "a.json", threading.Event()
    store_json(path, 0)

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            store_json(path, number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            check_stored(path)
    finally:
        over.set()
        writer.join()


def grown(path: Path, lines: list[bytes]) -> Growing:
    growing = Growing(path)
    for line in lines:
        with open(path, "ab") as file:
            file.write(line)
        growing.note()
    return growing


DAMAGE: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "gone": lambda lines, at: lines[:at] + lines[at + 1 :],
    "doubled": lambda lines, at: lines[: at + 1] + lines[at:],
    "swapped": lambda lines, at: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
    "edited": lambda lines, at: [*lines[:at], lines[at].replace(b"7", b"8", 1), *lines[at + 1 :]],
    "emptied": lambda lines, at: [],
}


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("how", DAMAGE)
def test_lines_that_are_not_what_they_were_are_noticed(how: str, at: int, tmp_path: Path) -> None:
    if how in ("swapped", "doubled") and at == 4:
        return  # no line behind it; one more at the end is for the reader to tell
    lines = [line.replace(b'"value": ', b'"value": 7') for line in LINES]
    path = tmp_path / "a.journal"
    grown(path, lines)
    path.write_bytes(b"".join(DAMAGE[how](lines, at)))
    with pytest.raises(InputError, match=r"a\.journal: is damaged: lines are missing"):
        Growing(path).check()


@given(at=st.integers(0, 500), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_line_is_noticed(
    at: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.journal"
    grown(path, LINES)
    path.write_bytes(flipped(path.read_bytes(), at, bit))
    with pytest.raises(InputError, match="is damaged"):
        Growing(path).check()


def test_lines_of_a_killed_writer_and_of_others_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    grown(path, LINES[:3])
    content = path.read_bytes()
    for whole in (content + LINES[3], content + LINES[3] + b'{"op": 4, "va'):
        path.write_bytes(whole)  # killed before the note, and while writing
        Growing(path).check()
    path.write_bytes(content[:-5])  # torn, though it was noted
    Growing(path).check()


def test_the_digest_goes_on_where_another_process_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    grown(path, LINES[:2])
    path.write_bytes(path.read_bytes() + LINES[2])
    second = Growing(path)
    second.check()
    second.note()
    path.write_bytes(path.read_bytes().replace(b"14", b"15"))
    with pytest.raises(InputError, match="is damaged"):
        Growing(path).check()
