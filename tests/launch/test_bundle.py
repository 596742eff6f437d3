"""What a job takes along, and what it leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.launch import bundle
from epim_nas.launch.bundle import collect
from tests.pipeline.tiny import write_run

LEFT = (
    ".env", ".git/config", ".git/hooks/pre.py", ".ssh/id_rsa", "data.csv", "key.pem", "notes.txt",
    "__pycache__/a.py", "deep/.env", "deep/secrets.json", ".hidden.py", "env/pyvenv.cfg",
    "env/lib/other.py", "not-importable/x.py",
)  # fmt: skip
TAKEN = ("__init__.py", "net.py", "deep/__init__.py", "deep/layers.py")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*LEFT, *TAKEN):
        file = tmp_path / "mine_pkg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    (tmp_path / ".env").write_text("PASSWORD=1")
    (tmp_path / "beside.py").touch()
    (tmp_path / "mine_pkg" / "around").symlink_to(tmp_path / "mine_pkg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(modules: list[str], *included: str) -> set[str]:
    return {str(name) for name in collect(modules, map(Path, included)).files}


@pytest.mark.parametrize("with_init", [True, False])
def test_only_python_sources_of_a_package_go_along(here: Path, with_init: bool) -> None:
    if not with_init:  # a folder can be imported all the same
        (here / "mine_pkg/__init__.py").unlink()
    taken = TAKEN if with_init else TAKEN[1:]
    assert names(["mine_pkg"]) == {f"mine_pkg/{name}" for name in taken}


def test_a_module_goes_alone_and_what_is_listed_with_it(here: Path) -> None:
    assert names(["beside"]) == {"beside.py"}
    assert names(["beside"], "mine_pkg/data.csv", ".env") == {
        "beside.py", "mine_pkg/data.csv", ".env",
    }  # fmt: skip
    everything = {"mine_pkg/" + name for name in (*LEFT, *TAKEN)}
    hidden = {name for name in everything if any(part[0] == "." for part in name.split("/"))}
    assert names([], "mine_pkg") == everything - hidden
    assert names([], str(here / "mine_pkg/deep")) == {
        f"mine_pkg/deep/{name}" for name in ("__init__.py", "layers.py", "secrets.json")
    }


def test_special_files_stay(here: Path) -> None:
    os.mkfifo(here / "mine_pkg/pipe.py")
    (here / "mine_pkg/gone.py").symlink_to(here / "nowhere")
    assert names(["mine_pkg"]) == {f"mine_pkg/{name}" for name in TAKEN}


@pytest.mark.parametrize("module", ["json", "numpy", "epim_nas", "sys"])
def test_what_is_installed_stays(module: str) -> None:
    assert names([module]) == set()


def test_folders_in_links_are_taken_once(here: Path, tmp_path: Path) -> None:
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    (linked / "more.py").touch()
    (here / "mine_pkg/linked").symlink_to(linked)
    assert names(["mine_pkg"]) == {f"mine_pkg/{n}" for n in (*TAKEN, "linked/more.py")}


@pytest.mark.parametrize("limit", ["_MOST_FILES", "_MOST_BYTES"])
def test_too_much_is_refused(here: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mine_pkg/net.py").write_text("x" * 100)
    monkeypatch.setattr(bundle, limit, 3)
    with pytest.raises(InputError, match=r"net\.py"):
        names(["mine_pkg"])


@pytest.mark.parametrize("name", ["nothing.csv", "run.yaml", "job.sh"])
def test_what_cannot_go_along_is_said(here: Path, name: str) -> None:
    if name != "nothing.csv":
        (here / name).touch()
    with pytest.raises(InputError, match=name):
        names([], name)


def test_the_list_is_printed_before_anything_is_sent(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epim_nas.launch.slurm.submit", lambda script: "sent")
    run = str(write_run(here, model={"name": "mine_pkg.net:make"}))
    out = ["--out", str(here / "out")]
    given = ["launch", run, "--on", "slurm", *out, "--include", ".env", "--submit"]
    assert run_command(given) == 0
    said = capsys.readouterr().out.splitlines()
    size = 6 * len(TAKEN) + len("PASSWORD=1")
    assert said[0] == f"{len(TAKEN) + 1} files go along, {size} bytes in all:"
    listed = {line.split()[0] for line in said[1 : 2 + len(TAKEN)]}
    assert listed == {".env", *(f"mine_pkg/{name}" for name in TAKEN)}
    assert said[-1] == "sent"
    copied = {
        str(file.relative_to(here / "out/launch/code"))
        for file in (here / "out/launch/code").rglob("*") if file.is_file()
    }  # fmt: skip
    assert copied == listed
