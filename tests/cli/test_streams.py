"""Standard streams of any kind, signals at any time, faults of the machine: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epim_nas import interrupts
from epim_nas.cli import streams
from epim_nas.cli.app import run_command
from epim_nas.errors import EpimError, missing_extra
from tests.pipeline.command import PROGRAM, ROOT

SECONDS = 60

LIGHT = """
import sys
from types import SimpleNamespace as Fake

texts = {f"name {i}": "what it is × " * 9 for i in range(99)}
# Importing these takes seconds; what is looked at is how results reach the user.
sys.modules["epim_nas.pipeline"] = Fake()
sys.modules["epim_nas.pipeline.progress"] = Fake(setup_logging=lambda level: None)
sys.modules["epim_nas.cli.catalogue"] = Fake(catalogue=lambda: {"kind": texts})
sys.modules["epim_nas.json_schemas"] = Fake(json_schema=lambda kind: texts)
from epim_nas.cli import main
main()
"""
"""The command, with other content."""


def shell(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash; its exit code is that of the first command of a pipe."""
    return subprocess.run(
        ["bash", "-c", f"{text}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=SECONDS, cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "LIGHT": LIGHT, **environment},
    )  # fmt: skip


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=SECONDS, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", ["presets", "presets --json", "schema design", "--help"])
def test_a_reader_that_stops_early_is_no_failure(arguments: str) -> None:
    # The sleep lets the pipe close before anything is written.
    done = shell(f'"$PYTHON" -c "$LIGHT" {arguments} | sleep 0')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", ["presets", "presets --json", "schema design"])
def test_a_full_disk_behind_stdout_is_named(arguments: str) -> None:
    done = shell(f'"$PYTHON" -c "$LIGHT" {arguments} > /dev/full')
    assert done.returncode == 1
    assert done.stderr.startswith("epim-nas: stdout: No space left on device.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$PYTHON" -c "$LIGHT" presets >&-', 0),
        ('"$PYTHON" -c "$LIGHT" presets 2>&-', 0),
        ('"$PYTHON" -c "$LIGHT" presets 2>/dev/full', 0),
        ('"$PYTHON" -c "$LIGHT" presets <&- >&- 2>&-', 0),
        ('"$PYTHON" -c "$LIGHT" presets --wrong 2>/dev/full', 2),
        ('"$PYTHON" -c "$LIGHT" schema --wrong >&- 2>&-', 2),
    ],
)
def test_closed_streams_change_no_exit_code(line: str, code: int) -> None:
    assert shell(line).returncode == code


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    done = shell(
        f'mkdir "{tmp_path}/a" && cd "{tmp_path}/a" && rmdir ../a && "$PYTHON" -c "$LIGHT" presets'
    )
    assert done.returncode == 1
    assert done.stderr.startswith("epim-nas: the current folder was deleted or moved.")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "koi8-r"])
def test_every_encoding_takes_every_text(encoding: str) -> None:
    shown = "design × – µ … é 漢字 \udcff"
    code = (
        "import sys\nfrom epim_nas.cli import streams\nstreams.guard()\n"
        f"print({shown!r}); print({shown!r}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=SECONDS,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == done.stderr
    assert done.stdout.endswith(b" \xff\n"), "bytes of a file's name stay as they are"
    text = done.stdout[:-3].decode(encoding)
    assert text.startswith("design ")
    if encoding == "ascii":
        assert text == "design x - u ... \\xe9 \\u6f22\\u5b57"
    if encoding == "utf-8":
        assert text == "design × – µ … é 漢字"


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_no_text_is_refused(text: str) -> None:
    streams.codecs.register_error(streams._ERRORS, streams._plain)
    for encoding in ("ascii", "latin-1", "utf-8"):
        assert text.encode(encoding, streams._ERRORS) is not None


STUB = """
import os, time
{before}
print("importing", flush=True)
try:
    for _ in range(600): time.sleep(0.05)
except BaseException as error:
    {swallow}
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "swallow", ["raise", "raise ImportError('failed to import') from None", "raise SystemError"]
)
def test_a_signal_during_imports_ends_the_command(
    kind: signal.Signals, swallow: str, tmp_path: Path
) -> None:
    # In place of the first import that takes long.
    (tmp_path / "typer.py").write_text(STUB.format(before="", swallow=swallow))
    process = subprocess.Popen(
        [str(PROGRAM), "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(kind)
    _, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stderr) == (130, "epim-nas: interrupted\n")


COMMAND = """
import atexit, gc, os, signal, sys, time
import epim_nas.cli.app as app
from epim_nas import interrupts
from epim_nas.cli.entry import main
from epim_nas.errors import missing_extra

class Finalizer:
    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0)

def swallowed(arguments):
    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)
    except BaseException: pass
    return 0

def finalizer(arguments):
    Finalizer()
    for _ in range(10): time.sleep(0.01)
    os._exit(77)  # it went on

def optional(arguments):
    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)
    except BaseException: pass
    raise missing_extra("plotly", "plot", "a report")

def late(arguments):
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
    return 3

def none(arguments):
    return 4

app.run_command = globals()[sys.argv[1]]
main([])
"""


@pytest.mark.parametrize(
    ("what", "code"),
    [("swallowed", 130), ("finalizer", 130), ("optional", 130), ("late", 3), ("none", 4)],
)
def test_no_signal_is_lost(what: str, code: int) -> None:
    done = python(COMMAND, what)
    assert done.returncode == code
    assert done.stderr == ("epim-nas: interrupted\n" if code == 130 else "")


def test_a_package_counts_as_missing_only_where_nobody_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "needs the package" in str(missing_extra("plotly", "plot", "a report"))
    monkeypatch.setattr(interrupts, "_arrived", True)
    with pytest.raises(KeyboardInterrupt):
        missing_extra("plotly", "plot", "a report")


def test_the_command_is_ready_for_signals_before_anything_heavy() -> None:
    code = "import epim_nas.cli, sys; print(*sys.modules)"
    loaded = set(python(code).stdout.split())
    assert "epim_nas.cli.entry" in loaded
    assert not loaded & {"typer", "click", "rich", "numpy", "pydantic", "yaml", "torch"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "x/y"), "x/y: No space left on device."),
        (PermissionError(13, "Permission denied", "x/y"), "x/y: Permission denied."),
        (MemoryError(), "out of memory."),
        (EpimError("said"), "said"),
    ],
)
def test_faults_of_the_machine_are_no_bugs(
    error: Exception,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import epim_nas.cli.catalogue

    def fail() -> None:
        raise error

    monkeypatch.setattr(epim_nas.cli.catalogue, "catalogue", fail)
    assert run_command(["presets"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"epim-nas: {told}")
    assert "bug" not in stderr
    assert len(stderr.splitlines()) == 1


def test_the_log_of_a_full_disk_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    from epim_nas.pipeline.progress import log_to_file, setup_logging

    setup_logging(0)
    with log_to_file(Path("/dev/full")):
        for text in ("one", "two"):
            logging.getLogger("epim_nas").info(text)
    with log_to_file(tmp_path):  # a folder
        logging.getLogger("epim_nas").info("three")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "cannot be written" not in line] == [
        "I one", "I two", "I three"
    ]  # fmt: skip
    assert sum("/dev/full cannot be written" in line for line in lines) == 1
    assert sum(f"{tmp_path} cannot be written" in line for line in lines) == 1
