"""Texts of the user in scripts, directives, manifests and printed commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.launch import Job, Resources, kuberay, prepare, ray_jobs, slurm
from epim_nas.launch.bundle import Bundle
from epim_nas.launch.texts import command_line, directive
from tests.pipeline.tiny import write_run

CONTROL = ("Cc", "Cs", "Zl", "Zp")
PIECES = (
    "$(intruder)", "`intruder`", "';intruder;'", '";intruder;"', "&& intruder", "| intruder", " ",
    "$HOME", "${IFS}", "#", "%j", "%%", "~", "*", "!", "hetjob", "PACKJOB", "--wrap=intruder",
    "'", '"', "\\", "é", "\u00a0",
)  # fmt: skip
nasty = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(st.characters(blacklist_categories=CONTROL, blacklist_characters="/:"), max_size=6),
    ),
    max_size=6,
).map("".join)
# As a part of a path; SLURM cannot write into folders with a backslash.
parts = nasty.map(lambda text: "x" + text.replace("\\", ""))
here = settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def words_of_sbatch(line: str) -> list[str]:
    """A directive's words, as sbatch's `_get_argument` reads them."""
    words = []
    rest = re.sub("(?i)hetjob|packjob", lambda found: " " * len(found[0]), line)
    rest = rest.removeprefix("#SBATCH")
    while rest := rest.lstrip():
        word, quote, escaped, i = "", "", False, 0
        while i < len(rest) and (quote or rest[i] not in " \t"):
            c, i = rest[i], i + 1
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
                continue
            elif quote:
                if c == quote:
                    quote = ""
                    continue
            elif c in "\"'":
                quote = c
                continue
            elif c == "#":
                return words
            word += c
        assert not quote, "an unmatched quote"
        words.append(word)
        rest = rest[i:]
    return words


@given(value=nasty)
def test_a_directive_is_one_word_for_sbatch(value: str) -> None:
    (line,) = directive("account", value).split("\n")
    assert words_of_sbatch(line) == [f"--account={value}"]


def stub(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of all that a script calls; `intruder` and `epim-nas` leave a trace."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub(folder, "intruder", 'touch "$TRACES/intruder"')
    stub(folder, "epim-nas", 'printf "%s\\0" "$@" > "$TRACES/words"; exit 130')
    stub(folder, "scontrol", "echo node1")
    stub(folder, "srun", 'while [ "$1" != -- ]; do shift; done; shift; "$@"')
    stub(folder, "python", "echo token")
    stub(folder, "sbatch", 'printf "%s\\0" "$@" > "$TRACES/words"')
    for name in ("ray", "kubectl"):
        os.symlink(folder / "sbatch", folder / name)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRACES", str(tmp_path))
    return tmp_path


def made_job(out: Path, asked: Resources) -> Job:
    folder = out / "launch"
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").touch()
    return Job("x", out, folder, folder / "run.yaml", folder / "code", Bundle({}), asked)


def run(script: list[str], traces: Path) -> tuple[str, list[str]]:
    """What a script prints, and the words of the last command that leaves a trace."""
    (traces / "words").unlink(missing_ok=True)
    (traces / "start").mkdir(exist_ok=True)
    environment = {**os.environ, "SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "1"}
    done = subprocess.run(
        ["bash", *script], env={**environment, "SLURM_JOB_ID": "7"}, capture_output=True, text=True,
        cwd=traces / "start", check=False,
    )  # fmt: skip
    assert not done.stderr
    assert not (traces / "intruder").exists(), "something of a text was run"
    return done.stdout, (traces / "words").read_text().split("\0")[:-1]


@here
@given(part=parts, asked=nasty)
def test_slurm_scripts_run_nothing_of_what_they_are_given(
    part: str, asked: str, programs: Path
) -> None:
    job = made_job(programs / part, Resources(account=asked, partition=asked, time=asked))
    script = slurm.write(job)
    said, words = run([str(script)], programs)
    assert words == ["search", str(job.run_file), "--out", str(job.out)]
    assert said == f"interrupted; the job is queued again and goes on in {job.out}\nnode1\n"
    text = script.read_text()
    directives = [words_of_sbatch(line) for line in text.splitlines() if line[:2] == "#S"]
    assert all(len(line) == 1 for line in directives)
    given_ = dict(line[0].split("=", 1) for line in directives if "=" in line[0])
    assert {given_[f"--{key}"] for key in ("account", "partition", "time")} == {asked}
    assert given_["--output"].replace("%%", "%") == f"{job.folder}/slurm-%j.log"
    subprocess.run(["bash", "-n", str(script)], check=True)
    sent = re.search("Send it with: (.*)", text)
    assert sent is not None
    assert shlex.split(sent[1]) == ["sbatch", str(script)]


@here
@given(part=parts)
def test_commands_of_ray_jobs_run_nothing_of_what_they_are_given(part: str, programs: Path) -> None:
    job = made_job(programs / part, Resources())
    _, words = run([str(ray_jobs.write(job))], programs)
    assert words == ["search", "run.yaml", "--out", str(job.out)]


@here
@given(words=st.lists(nasty, min_size=1, max_size=3))
def test_printed_commands_can_be_pasted(words: list[str], programs: Path) -> None:
    _, got = run(["-c", command_line("sbatch", *words)], programs)
    assert got == words


@pytest.mark.parametrize("on", ["slurm", "ray", "kuberay"])
def test_what_launch_prints_can_be_pasted(
    on: str, programs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "a 'b' `intruder` $(intruder)"
    run_file = write_run(tmp_path, model={"name": "resnet20"})
    typed = ["launch", str(run_file), "--on", on, "--out", str(out)]
    typed += ["--image", "x", "--cluster-out", "/runs/x"] if on == "kuberay" else []
    assert run_command(typed) == 0
    _, words = run(["-c", capsys.readouterr().out.splitlines()[-1]], programs)
    folder = out / "launch"
    assert (
        words
        == {
            "slurm": [str(folder / "job.sbatch")],
            "ray": ["job", "submit", "--working-dir", str(folder / "code"), "--", "sh", "job.sh"],
            "kuberay": ["apply", "-f", str(folder / "rayjob.yaml")],
        }[on]
    )


@pytest.mark.parametrize("option", ["--out", "--account", "--time", "--partition", "--image"])
@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\u2028", "\udce9"])
def test_ends_of_lines_and_control_characters_are_refused(
    option: str, character: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"a{character}#SBATCH --uid=0"
    asked = {} if option == "--out" else {option[2:]: text}
    out = tmp_path / text if option == "--out" else tmp_path / "out"
    with pytest.raises(InputError) as caught:
        prepare(str(write_run(tmp_path)), out, [], Resources(**asked), None)
    assert caught.value.field == option
    assert str(caught.value).isprintable()
    assert not list(tmp_path.glob("**/launch")), "nothing was written"


@pytest.mark.parametrize("folder", ["/a:b", "/runs/../etc", "relative"])
def test_folders_that_mean_something_else_on_a_cluster_are_refused(
    folder: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        prepare(str(write_run(tmp_path)), tmp_path / "out", [], Resources(), Path(folder))
    assert caught.value.field == "--cluster-out"


def test_slurm_cannot_write_below_a_backslash(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="backslash"):
        slurm.write(made_job(tmp_path / "a\\b", Resources()))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image", "x y"), ("image", "x;y"), ("claim", "Mine"), ("claim", "-x"), ("claim", "a/b"),
        ("mount", "runs"), ("mount", "/a b"), ("mount", "/$(x)"), ("out", "/runs/$(x)"),
        ("out", "/runs/`x`"), ("out", "/runs/a b"), ("out", "/runs/'x'"),
    ],
)  # fmt: skip
def test_what_kubernetes_would_refuse_or_run_is_refused(
    option: str, value: str, tmp_path: Path
) -> None:
    asked = {"image": "x"} | ({} if option == "out" else {option: value})
    job = made_job(tmp_path / "here", Resources(**asked))
    out = Path(value if option == "out" else "/runs/x")
    with pytest.raises(InputError) as caught:
        kuberay.write(Job(**{**vars(job), "out": out}))
    assert caught.value.field == ("--cluster-out" if option == "out" else f"--{option}")


@given(
    st.sets(
        st.lists(st.sampled_from(["a", "b", "_", "__", "a__b", "é", "x y"]), min_size=1).map(
            "/".join
        ),
        min_size=1,
    )
)
def test_every_file_has_a_key_of_its_own_that_kubernetes_takes(files: set[str]) -> None:
    contents = {name: name.encode() + b"\xff" * (len(name) % 2) for name in sorted(files)}
    keys = kuberay._keys(contents)
    assert len(set(keys.values())) == len(files)
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) for key in keys.values())
    stored = kuberay._config_map("x", contents)
    assert set(stored["data"]) | set(stored.get("binaryData", {})) == set(keys.values())


def test_modules_whose_paths_look_alike_arrive_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    for name in ("pkg/__init__.py", "pkg/a/b.py", "pkg/a__b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "table.bin").write_bytes(b"\xff\x00")
    run_file = str(write_run(tmp_path, model={"name": "pkg:make"}))
    asked = Resources(image="x")
    job = prepare(run_file, tmp_path / "o", [], asked, Path("/runs/x"), [Path("table.bin")])
    config, manifest = yaml.safe_load_all(kuberay.write(job).read_text())
    template = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (items,) = [v["configMap"]["items"] for v in template["spec"]["volumes"] if "configMap" in v]
    texts = {item["path"]: config["data"].get(item["key"]) for item in items}
    for name in ("pkg/__init__.py", "pkg/a/b.py", "pkg/a__b.py"):
        assert texts[f"code/{name}"] == f"# {name}\n"
    assert set(job.bundle.files) >= {PurePosixPath("table.bin")}
    assert list(config["binaryData"].values()) == ["/wA="]
