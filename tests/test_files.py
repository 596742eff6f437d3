"""Files are replaced whole or not at all, and read safely."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epim_nas.cli.app import run_command
from epim_nas.errors import EpimError, InputError, machine_fault
from epim_nas.files import (
    atomic_path,
    digest,
    dump_yaml,
    load_yaml,
    locked,
    read_text,
    safe_name,
    user_path,
    write_json,
    write_text,
)
from epim_nas.models.weights import save_weights
from epim_nas.pipeline.config import load_run_config
from epim_nas.report.csv_file import write_csv
from epim_nas.report.events import RunEvents
from epim_nas.schema import apply_overrides
from epim_nas.study.inflight import InFlight, Pending
from epim_nas.supernet.checkpoint import write_saved


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


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.yaml", tmp_path / "zero.yaml"
    os.mkfifo(pipe)  # nobody writes to it: reading it would wait for ever
    link.symlink_to("/dev/zero")
    for path in (pipe, link, Path("/dev/null")):
        with pytest.raises(InputError, match=r"is a device, a pipe or a socket.*a regular file"):
            load_yaml(path)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--network", "pipe.yaml"),
        ("--design", "pipe.yaml"),
        ("--hardware", "pipe.yaml"),
        ("--hardware", "pipe.ini"),
    ],
)
def test_commands_do_not_wait_for_a_pipe(
    option: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / name)
    options = {"--network": "resnet20", "--hardware": "xbar_64", option: str(tmp_path / name)}
    assert run_command(["cost", *(part for pair in options.items() for part in pair)]) == 2
    assert "is a device, a pipe or a socket" in capsys.readouterr().err


def test_files_have_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with open(path, "wb") as file:
        file.truncate(2**33)  # it takes no room on the disk
    with pytest.raises(InputError, match=r"8,589,934,592 bytes.*at most 8,388,608 bytes"):
        load_yaml(path)
    with pytest.raises(InputError, match="at most"):
        read_text(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a\0b.yaml", "null"),
        ("a" * 5000, "too long"),
        ("folder/" * 1000, "too long"),
        ("~nobody_of_this_name/x.yaml", "no user `nobody_of_this_name`"),
        ("", "is empty"),
        (" ", "is empty"),
    ],
)
def test_paths_that_cannot_be(path: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        user_path(path, "data.root")
    assert str(caught.value).startswith("data.root: ")
    assert len(str(caught.value)) < 700


def test_other_paths_are_taken_whether_they_are_there_or_not(tmp_path: Path) -> None:
    assert user_path(tmp_path / "none" / "é", "out") == tmp_path / "none" / "é"
    assert user_path("~/x", "out") == Path.home() / "x"


PATHS = ("data.root", "reuse", "model.weights", "hardware.chip", "space")


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("value", ["a\0/b", "x/" + "a" * 5000, "~nobody_of_this_name/x"])
def test_paths_of_a_run_file_that_cannot_be(key: str, value: str) -> None:
    with pytest.raises(InputError) as caught:
        load_run_config("demo", [f"{key}={json.dumps(value)}"])
    assert caught.value.field == key


@pytest.mark.parametrize("length", [20_000, 10_000_000])
def test_messages_are_a_few_lines_of_printable_text(length: int) -> None:
    error = InputError(
        "field", "got `" + "v" * length + "`\n  File x\n\x1b[31m at line 3", "a\nb", "c"
    )
    assert len(str(error)) < 700
    assert str(error).isprintable()
    assert str(error).endswith("\\x1b[31m at line 3. Allowed: a b. c.")
    assert len(error.problem) > length, "what is raised again is whole"


def test_short_messages_stay_as_they_are() -> None:
    assert str(InputError("f", "got `a  b`", "c", "d?")) == "f: got `a  b`. Allowed: c. d?"


names = st.one_of(
    st.text(min_size=0, max_size=300),
    st.sampled_from(["..", ".", "", "/etc/passwd", "a/../../b", "~", "-rf", "a\nb", "a" * 5000]),
)


@given(names, names)
def test_any_name_becomes_one_file_of_its_folder(first: str, second: str) -> None:
    name = safe_name(first)
    assert Path("/folder", name).parent == Path("/folder")
    assert Path(os.path.normpath(f"/folder/{name}")).parent == Path("/folder")
    assert 0 < len(name) <= 120
    assert name.isascii()
    assert not name.startswith((".", "-"))
    assert (safe_name(second) == name) == (first == second)


@pytest.mark.parametrize("name", ["layer1.0.conv1", "0", "conv_2-x", "trial-0001.yaml"])
def test_simple_names_stay(name: str) -> None:
    assert safe_name(name) == name


def _link(path: Path) -> None:
    path.with_name("target").write_text("kept")
    path.symlink_to("target")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a FIFO"),
        (_link, "a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
        (lambda path: path.symlink_to("/dev/null"), "a symbolic link"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "no regular file"),
    ],
)
def test_only_regular_files_are_replaced(
    make: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path = Path("out.md")
    make(path)
    before = path.lstat()
    with pytest.raises(InputError, match=kind):
        write_text(path, "x")
    assert path.lstat() == before
    assert {entry.name for entry in tmp_path.iterdir()} <= {"out.md", "target"}


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="/dev/null: is a device"):
        write_text("/dev/null", "x")
    assert Path("/dev/null").is_char_device()


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    code = "import sys, os, signal\nfrom epim_nas.files import atomic_path\n" + (
        "with atomic_path(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("front.png", "checkpoints/baseline.state", "no_ending"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], timeout=60)
    mine = [tmp_path / ".notes.settings", tmp_path / ".a.tmp", tmp_path / "b.abcdefgh.tmp"]
    for path in mine:
        path.write_text("")
    assert len(list(tmp_path.rglob(".*.tmp*"))) == 4
    with locked(tmp_path, "search"):
        left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*mine, tmp_path / ".lock"}


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_moved_away_is_not_made_again(
    through_link: bool, again: bool, tmp_path: Path
) -> None:
    real = tmp_path / "runs" / "mine"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to("runs")
    folder = tmp_path / "link" / "mine" if through_link else real

    def work() -> None:
        with locked(folder, "search"):
            write_text(folder / "a" / "first", "x")
            real.rename(tmp_path / "moved")
            if again:  # someone else's
                real.mkdir()
            write_text(real / "a" / "second", "x")

    with pytest.raises(EpimError, match="was moved or deleted while the search wrote"):
        work()
    assert not (real / "a").exists()
    write_text(real / "a" / "third", "x")  # nobody holds it any more


def _events(path: Path) -> None:
    with RunEvents(path.parent) as events:
        for step in range(200):
            events.scalar("loss", 0.5, step)


def _notes(path: Path) -> None:
    notes = InFlight(path)
    for asked in range(500):
        notes.begin(Pending(asked, (1, 2, 3), "search"))


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "x" * 9000),
    "json": lambda path: write_json(path, list(range(9000))),
    "csv": lambda path: write_csv(path, ["a"], [[i] for i in range(9000)]),
    "torch": lambda path: write_saved(path, {"a": torch.zeros(9000), "b": torch.ones(3)}),
    "safetensors": lambda path: save_weights({"a": torch.zeros(9000)}, path),
    "events": _events,
    "notes": _notes,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_the_name_of_the_file(name: str, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "file.x"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))  # as if there were no more room
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            WRITERS[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert Path(caught.value.filename).parent == tmp_path
    message = machine_fault(caught.value)
    assert message is not None
    assert message.startswith(f"{caught.value.filename}: File too large.")
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_faults_of_the_machine_have_one_message(number: int) -> None:
    told = machine_fault(OSError(number, os.strerror(number), "runs/x/file"))
    assert told is not None
    assert told.startswith(f"runs/x/file: {os.strerror(number)}. ")
    assert machine_fault(MemoryError()) is not None
    assert machine_fault(KeyError("in_order")) is None
