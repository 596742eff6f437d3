"""Jobs for Ray clusters and Kubernetes: what is written, and a real one that is sent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.launch import Resources, kuberay, prepare, ray_jobs
from epim_nas.pipeline.folder import RunFolder
from tests.cluster.machines import Cluster, short_folder
from tests.pipeline.command import PROGRAM, ROOT, study_of
from tests.pipeline.tiny import tiny_run, write_run
from tests.study.kills import stored

pytest.importorskip("ray")

SCHEMA = Path(__file__).parent / "data/rayjob_schema.json"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with short_folder() as folder:
        made = Cluster(folder, dashboard=True)
        made.add_node(cpus=2)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", made.dashboard_port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.3)
        yield made
        made.close()


def command(cluster: Cluster | None, *arguments: object, **environment: str):
    return subprocess.run(
        [str(PROGRAM), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={**(cluster.environment if cluster else {"PATH": ""}), **environment}, timeout=200,
    )  # fmt: skip


def address(cluster: Cluster) -> str:
    return f"http://127.0.0.1:{cluster.dashboard_port}"


def test_a_job_is_sent_watched_and_listed(cluster: Cluster, tmp_path: Path) -> None:
    out = cluster.folder / "sent"
    done = command(
        cluster, "launch", write_run(tmp_path), "--on", "ray", "--address", address(cluster),
        "--out", out, "--cpus", 2, "--submit",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pareto front of tiny" in done.stdout, "its output is shown"
    assert "SUCCEEDED" in done.stdout
    trials = study_of(out).get_trials(deepcopy=False)
    assert len(trials) == tiny_run()["search"]["trials"]
    assert RunFolder(out).load_config().executor.workers == 2
    listed = command(cluster, "jobs", "--address", address(cluster), "--json")
    (job,) = json.loads(listed.stdout)["jobs"]
    assert (job["status"], job["run"], job["out"]) == ("SUCCEEDED", "tiny", str(out))


def test_a_job_that_is_stopped_has_saved_what_it_found(cluster: Cluster, tmp_path: Path) -> None:
    out = cluster.folder / "stopped"
    run = write_run(tmp_path, search__trials=2000)
    done = command(
        cluster, "launch", run, "--on", "ray", "--address", address(cluster), "--out", out,
        "--cpus", 2, "--submit", "--no-wait",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = done.stdout.split("Job ")[1].split()[0]
    until = time.monotonic() + 90
    while len(stored(out)) < 5:
        if time.monotonic() > until:
            where = ("--address", address(cluster))
            pytest.fail(command(cluster, "jobs", name, *where, "--logs").stdout)
        time.sleep(0.5)
    stopped = command(cluster, "jobs", name, "--address", address(cluster), "--stop")
    assert "STOPPED" in stopped.stdout, stopped.stdout + stopped.stderr
    logs = command(cluster, "jobs", name, "--address", address(cluster), "--logs")
    assert "everything finished is saved" in logs.stdout


def test_bad_addresses_tokens_and_names_are_said(cluster: Cluster) -> None:
    for arguments, environment, hint in (
        (["--address", "http://127.0.0.1:9"], {}, "no Ray dashboard answers"),
        (["--address", "head:6379"], {}, "is not a dashboard's address"),
        (["--address", address(cluster)], {"RAY_AUTH_TOKEN": "x" * 40}, "asks for a token"),
        (["nothing", "--address", address(cluster)], {}, "no job `nothing`"),
    ):
        started = time.monotonic()
        done = command(cluster, "jobs", *arguments, **environment)
        assert done.returncode == 2, done.stderr
        assert hint in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 60


def test_the_users_module_goes_along_and_installed_ones_do_not(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_net.py").write_text("def make(in_channels, num_classes): ...\n")
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path, model={"name": "my_net:make"})
    job = prepare(str(run), tmp_path / "out", [], Resources(nodes=2, cpus=8, gpus=4), None)
    assert (job.code / "my_net.py").exists()
    executor = yaml.safe_load(job.run_file.read_text())["executor"]
    assert (executor["kind"], executor["workers"], executor["cpus"]) == ("ray", 8, 2.0)
    assert executor["gpus"] == 1.0
    run = write_run(tmp_path, model={"name": "not_there:make"})
    with pytest.raises(InputError, match="not_there"):
        prepare(str(run), tmp_path / "out", [], Resources(), None)


def test_paths_are_absolute_in_the_file_that_is_sent(tmp_path: Path, monkeypatch) -> None:
    for place in ("file", "here"):
        (tmp_path / place / "images").mkdir(parents=True)
        (tmp_path / place / "w.safetensors").touch()
    (tmp_path / "file" / "before").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_run(tmp_path / "file", model={"name": "resnet20"}, reuse="before")
    given = ["model.weights=w.safetensors", "data.root=images"]
    job = prepare("../file/tiny.yaml", Path("out"), given, Resources(), None)
    sent = yaml.safe_load((ray_jobs.write(job).parent / "run.yaml").read_text())
    assert sent == yaml.safe_load(job.run_file.read_text())
    assert sent["model"]["weights"] == str(tmp_path / "here" / "w.safetensors")
    assert sent["data"]["root"] == str(tmp_path / "here" / "images")
    assert sent["reuse"] == str(tmp_path / "file" / "before")


@pytest.mark.parametrize(
    ("text", "name"),
    [("My run_2", "my-run-2"), ("30x", "search-30x"), ("-", "search"), ("a" * 46 + "-b", "a" * 46)],
)
def test_names_of_ray_jobs(text: str, name: str) -> None:
    assert kuberay._name(text) == name


def test_without_ray_nothing_is_written_for_kubernetes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["launch", write_run(tmp_path), "--on", "kuberay", "--out", tmp_path / "here"]
    arguments += ["--cluster-out", "/runs/tiny", "--image", "x"]
    assert run_command([str(argument) for argument in arguments]) == 2
    assert "epim_nas[ray]" in capsys.readouterr().err
    assert not (tmp_path / "here").exists()


def test_a_ray_job_manifest(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text("def make(in_channels, num_classes): ...\n")
    run = write_run(tmp_path, model={"name": "nets.mine:make"})
    done = command(
        None, "launch", run, "--on", "kuberay", "--out", tmp_path / "here", "--cluster-out",
        "/runs/tiny", "--image", "registry/epim-nas:1", "--nodes", 3, "--gpus", 2, "--memory", 32,
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config, job = yaml.safe_load_all((tmp_path / "here/launch/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 3)
    assert spec["enableInTreeAutoscaling"] is True
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "configMap" not in v
    ]
    assert claims == ["epim-nas-runs"]
    items = {item["path"]: item["key"] for v in pod["volumes"] if "configMap" in v
             for item in v["configMap"]["items"]}  # fmt: skip
    assert config["data"][items["run.yaml"]] == (tmp_path / "here/launch/run.yaml").read_text()
    assert "code/nets/mine.py" in items
    assert "/runs/tiny" in job["spec"]["entrypoint"]
    assert spec["authOptions"] == {"mode": "token"}
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for document in (config, job):
        schema.validate(document)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["volume"] = []
    with pytest.raises(jsonschema.ValidationError):  # the schema knows every field
        schema.validate(job)
    for arguments, hint in (
        (["--image", "x"], "is not on the volume"),
        (["--cluster-out", "/runs/tiny"], "needs a container image"),
        (["--image", "x", "--cluster-out", "/runs/tiny", "--submit"], "kubectl"),
    ):
        done = command(
            None, "launch", run, "--on", "kuberay", "--out", tmp_path / "there", *arguments,
            PYTHONPATH=str(tmp_path),
        )  # fmt: skip
        assert done.returncode == 2
        assert hint in done.stderr
