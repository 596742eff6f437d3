"""Runs on machines where something is wrong, and signals in the last stage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from epim_nas.cli.app import run_command
from epim_nas.pipeline import driver
from epim_nas.study import store
from tests.pipeline.command import ROOT


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_the_front_prints_on_a_terminal_without_unicode(finished: Path) -> None:
    code = f"from epim_nas.cli import main; main(['pareto', {str(finished)!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode("latin-1")
    assert "dense" in shown
    assert "knee" in shown


SWALLOWED = """
import os, signal, sys, time
import epim_nas.report.figures as figures
draw = figures.save_front_png

def draw_interrupted(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException:
        pass  # as some libraries do
    draw(*arguments)

figures.save_front_png = draw_interrupted
from epim_nas.cli import main
main(["search", sys.argv[1] + "/run.yaml", "--out", sys.argv[1]])
"""


def test_a_signal_that_the_report_swallows_still_ends_the_search(copied: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED, str(copied)], capture_output=True, text=True, cwd=ROOT,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert f"everything finished is saved in {copied}" in done.stderr
    assert done.stdout == ""


def test_a_run_folder_that_is_moved_away_is_not_made_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = driver.load_result

    def load_and_move(folder: driver.RunFolder, *opened: Any) -> object:
        result = load(folder, *opened)
        folder.path.rename(folder.path.with_name("moved"))
        return result

    monkeypatch.setattr(driver, "load_result", load_and_move)
    assert run_command(["search", str(copied / "run.yaml"), "--out", str(copied)]) == 1
    assert not copied.exists()
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"epim-nas: {copied}: the folder was moved or deleted while the search")
    assert (copied.with_name("moved") / "best.yaml").is_file()


def test_a_report_says_where_it_cannot_be_written(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: object, mode: int, **options: object) -> bool:
        return path != finished or not mode & os.W_OK

    with monkeypatch.context() as patched:
        patched.setattr(os, "access", refuse)  # tests may run as root
        code = run_command(["report", str(finished)])
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith(f"epim-nas: {finished}/report.html: `{finished}` cannot be written.")
    assert "`--out FILE`" in told
    assert run_command(["report", str(finished), "--to", "latex"]) == 0  # to stdout


@pytest.mark.parametrize("form", ["md", "html"])
def test_a_report_replaces_files_alone(
    form: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(finished / "best.yaml")
    (tmp_path / "dangling").symlink_to("nowhere")
    for out in (tmp_path / "fifo", tmp_path / "link", tmp_path / "dangling", "/dev/null", tmp_path):
        assert run_command(["report", str(finished), "--to", form, "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"epim-nas: --out: `{out}` is a")
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/null").is_char_device()
    assert run_command(["report", str(finished), "--to", form, "--out", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r").is_file()


def test_a_journal_that_may_not_be_read_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, digest: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store, "open_journal", refuse)  # tests may run as root
    assert run_command(["pareto", str(finished)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"epim-nas: {finished}/study.journal: cannot be read: Permission denied")
