"""A search as a job: its run file, the user's own modules, and what it asks of a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epim_nas.errors import InputError
from epim_nas.files import dump_yaml, write_text
from epim_nas.launch.bundle import Bundle, collect
from epim_nas.launch.texts import check_line
from epim_nas.models.registry import LIBRARIES
from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.pipeline.folder import LAUNCH

_WAIT_SECONDS = 900
"""How long the search waits for the first worker: nodes may have to be started first."""
_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Resources:
    """What a job asks of a cluster; every launcher reads what it knows.

    Attributes:
        nodes: machines for workers.
        cpus: CPU cores of each.
        gpus: GPUs of each.
        memory_gb: memory of each (GB); None for the cluster's default.
        time: longest time, as the scheduler writes it (``1-12:00:00``); None for its default.
        account: account to charge (SLURM).
        partition: partition or queue (SLURM).
        image: container image with epim_nas (Kubernetes).
        claim: persistent volume claim of the run folders (Kubernetes).
        mount: where that volume is mounted (Kubernetes).
    """

    nodes: int = 1
    cpus: int = 4
    gpus: int = 0
    memory_gb: int | None = None
    time: str | None = None
    account: str | None = None
    partition: str | None = None
    image: str | None = None
    claim: str = "epim-nas-runs"
    mount: str = "/runs"

    @property
    def workers(self) -> int:
        """Workers that fit: one for every GPU, or for every CPU core where there are none."""
        return self.nodes * (self.gpus or self.cpus)

    @property
    def worker_cpus(self) -> int:
        """CPU cores of a worker."""
        return max(1, self.cpus // self.gpus) if self.gpus else 1


@dataclass(frozen=True)
class Job:
    """A search that is ready to be sent.

    Attributes:
        name: name of the run.
        out: the run folder, absolute; the machines of the cluster have to see it.
        folder: folder of the files below.
        run_file: the resolved run file.
        code: folder with the modules that the run file names, importable from there, and what
            else was listed.
        bundle: the files in it, as they were found.
        resources: what it asks for.
    """

    name: str
    out: Path
    folder: Path
    run_file: Path
    code: Path
    bundle: Bundle
    resources: Resources


def prepare(
    run: str,
    out: Path | None,
    overrides: list[str],
    resources: Resources,
    on_cluster: Path | None,
    included: Sequence[Path] = (),
) -> Job:
    """Resolve a run file and write what a job takes along.

    Where the run file does not score on Ray already, it is made to: with a worker for every GPU (or
    CPU core) that is asked for.

    Args:
        run: a run file's name or path.
        out: run folder, as this machine sees it; ``runs/NAME`` by default.
        overrides: ``key.path=value`` changes.
        resources: what the job asks for.
        on_cluster: the run folder as the cluster sees it, where that differs.
        included: files and folders that go along with the modules.

    Raises:
        InputError: something in the run file is wrong, a module that it names is not found, too
            much would go along, or a text cannot stand in a script.
    """
    config, _ = load_run_config(run, overrides)
    here = (out if out is not None else Path("runs") / config.name).resolve()
    _check_folder("--out", here)
    if on_cluster is not None:
        _check_folder("--cluster-out", on_cluster)
    for option, value in asdict(resources).items():
        check_line(f"--{option.removesuffix('_gb')}", str(value))
    config = _on_ray(config, resources)
    folder = here / LAUNCH
    code = folder / "code"
    named = {name.partition(".")[0] for name in config.extensions}
    bundle = collect(sorted(named | set(_modules(config.model_dump(mode="json")))), included)
    bundle.copy(code)
    run_file = folder / "run.yaml"
    write_text(run_file, dump_yaml(config.model_dump(mode="json", by_alias=True)))
    return Job(config.name, on_cluster or here, folder, run_file, code, bundle, resources)


def _check_folder(option: str, folder: Path) -> None:
    """Check that a run folder can be named in scripts and in ``PYTHONPATH``."""
    check_line(option, str(folder))
    if not folder.is_absolute() or ":" in str(folder) or ".." in folder.parts:
        raise InputError(
            option,
            f"got `{folder}`",
            "an absolute path without `..` and without a colon, which would end it in PYTHONPATH",
        )


def _on_ray(config: RunConfig, resources: Resources) -> RunConfig:
    if config.executor.kind == "ray":
        return config
    executor = config.executor.model_copy(
        update={
            "kind": "ray",
            "workers": resources.workers,
            "cpus": float(resources.worker_cpus),
            "gpus": 1.0 if resources.gpus else 0.0,
            "address": None,  # the job's environment names it
            "wait_s": float(_WAIT_SECONDS),
        }
    )
    return config.model_copy(update={"executor": executor})


def _modules(value: Any) -> Iterator[str]:
    """Modules of all ``module:function`` texts of a run file."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _modules(part)
    elif isinstance(value, list):
        for part in value:
            yield from _modules(part)
    elif isinstance(value, str) and _MODULE.fullmatch(value):
        name = value.partition(":")[0]
        if name not in LIBRARIES:
            yield name.partition(".")[0]
