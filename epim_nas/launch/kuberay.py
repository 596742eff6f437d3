"""Kubernetes: a RayJob manifest for the KubeRay operator (``ray.io/v1``)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from epim_nas.errors import InputError, missing_extra
from epim_nas.files import dump_yaml, write_text
from epim_nas.launch.job import Job
from epim_nas.launch.sending import send
from epim_nas.launch.texts import command_line

_JOB_MOUNT = "/epim-nas"
"""Where the run file and the user's modules are mounted."""
_MOST_NAME = 47
"""KubeRay refuses longer names of RayJobs, since it appends to them."""
_MOST_BYTES = 900_000
"""A ConfigMap holds less than 1 MiB."""
_IMAGE = r"[\w./:@-]+"
_LABEL = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_PATH = r"/[\w/.@%+=,-]*"
"""Paths that need no quotes: two shells read the command of a RayJob, one inside of the other."""


def write(job: Job) -> Path:
    """Write the manifest into the job's folder; returns its path.

    Raises:
        InputError: no image, a run folder outside of the volume, or modules that are too large.
    """
    asked = job.resources
    if asked.image is None:
        raise InputError(
            "--image", "a Kubernetes job needs a container image", "an image with epim_nas and Ray",
            "docs/clusters.md has a Dockerfile.",
        )  # fmt: skip
    for option, value, pattern, allowed in (
        ("--image", asked.image, _IMAGE, "REGISTRY/NAME:TAG"),
        ("--claim", asked.claim, _LABEL, "a name of a-z, 0-9, `-` and `.`"),
        ("--mount", asked.mount, _PATH, "an absolute path of letters, digits and `/._@%+=,-`"),
        ("--cluster-out", str(job.out), _PATH, "a path of letters, digits and `/._@%+=,-`"),
    ):
        if not re.fullmatch(pattern, value, re.ASCII):
            raise InputError(option, f"got `{value}`", allowed)
    if not PurePosixPath(job.out).is_relative_to(asked.mount):
        raise InputError(
            "--cluster-out", f"`{job.out}` is not on the volume", f"a folder below {asked.mount}",
            "The search would be lost with its pod.",
        )  # fmt: skip
    name = _name(job.name)
    files = _files(job)
    size = sum(map(len, files.values()))
    if size > _MOST_BYTES:
        raise InputError(
            "run file", f"what goes along has {size} bytes",
            f"at most {_MOST_BYTES} in a ConfigMap", "Put them into the image.",
        )  # fmt: skip
    manifest = job.folder / "rayjob.yaml"
    documents = [_config_map(name, files), _ray_job(name, job)]
    write_text(manifest, dump_yaml(*documents))
    return manifest


def _name(text: str) -> str:
    """A name that Kubernetes and KubeRay take (a DNS label that begins with a letter)."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "search"
    label = label if label[0].isalpha() else f"search-{label}"
    return label[:_MOST_NAME].rstrip("-")


SEND = ("kubectl", "apply", "-f")
"""What sends the manifest."""


def submit(manifest: Path) -> str:
    """Send a manifest; returns what Kubernetes says. Errors: :func:`send`."""
    return send(SEND, manifest, "Kubernetes", "a machine that reaches the cluster")


def _files(job: Job) -> dict[str, bytes]:
    """Path below the job's mount -> content."""
    code = {f"code/{name}": (job.code / name).read_bytes() for name in sorted(job.bundle.files)}
    return {"run.yaml": job.run_file.read_bytes()} | code


def ray_version() -> str:
    """The version of Ray here, which the cluster has to run as well.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        from ray import __version__ as version
    except ModuleNotFoundError:
        raise missing_extra("ray", "ray", "a job for Kubernetes") from None
    return str(version)


def _keys(files: Iterable[str]) -> dict[str, str]:
    """Path -> key of a ConfigMap, which has no slashes and few other characters.

    Numbers tell apart what is the same without them.
    """
    return {
        path: f"{number:04d}-" + re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(path).name)[:200]
        for number, path in enumerate(files)
    }


def _config_map(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    keys = _keys(files)
    texts, others = {}, {}
    for path, content in files.items():
        try:
            texts[keys[path]] = content.decode()
        except UnicodeDecodeError:
            others[keys[path]] = base64.b64encode(content).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-run"},
        "data": texts,
        **({"binaryData": others} if others else {}),
    }


def _ray_job(name: str, job: Job) -> dict[str, Any]:
    asked = job.resources
    command = command_line("epim-nas", "search", f"{_JOB_MOUNT}/run.yaml", "--out", job.out)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": command,
            "runtimeEnvYAML": dump_yaml({"env_vars": {"PYTHONPATH": f"{_JOB_MOUNT}/code"}}),
            # A lost head ends the job; on a new cluster the same command goes on.
            "backoffLimit": 3,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": ray_version(),
                "enableInTreeAutoscaling": True,
                # The operator makes a secret with a token and gives it to all pods.
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    # The driver runs on the head; its cores are not for workers.
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod("ray-head", name, job, cpus=2, gpus=0),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 1,
                        "minReplicas": 0,
                        "maxReplicas": asked.nodes,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", name, job, asked.cpus, asked.gpus),
                    }
                ],
            },
        },
    }


def _pod(container: str, name: str, job: Job, cpus: int, gpus: int) -> dict[str, Any]:
    asked = job.resources
    limits: dict[str, Any] = {"cpu": str(cpus), "memory": f"{asked.memory_gb or 4 * cpus}G"}
    if gpus:
        limits["nvidia.com/gpu"] = str(gpus)
    items = [{"key": key, "path": path} for path, key in _keys(_files(job)).items()]
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": asked.image,
                    "resources": {"requests": dict(limits), "limits": limits},
                    "volumeMounts": [
                        {"name": "runs", "mountPath": asked.mount},
                        {"name": "job", "mountPath": _JOB_MOUNT},
                    ],
                }
            ],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": asked.claim}},
                {"name": "job", "configMap": {"name": f"{name}-run", "items": items}},
            ],
        }
    }
