"""Commands for clusters: ``launch``, ``jobs``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epim_nas.cli.output import console, print_json
from epim_nas.cli.run import RunFile, Set

if TYPE_CHECKING:
    from epim_nas.launch import Job
    from epim_nas.launch.ray_jobs import JobState


class Cluster(str, Enum):
    """Where a job can be sent."""

    ray = "ray"
    slurm = "slurm"
    kuberay = "kuberay"


Address = Annotated[
    str | None,
    typer.Option("--address", help="Dashboard of a Ray cluster, http://HOST:8265."),
]
_ASKED, _SLURM, _KUBERNETES = "What the job asks for", "SLURM", "Kubernetes"


def launch(
    run: RunFile,
    on: Annotated[Cluster, typer.Option("--on", help="Kind of cluster.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder, seen by all machines.")
    ] = None,
    set_: Set = None,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", help="A file or folder that goes along; repeatable."),
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Send the job as well.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show a Ray job's output until it ends.")
    ] = True,
    address: Address = None,
    cluster_out: Annotated[
        Path | None, typer.Option("--cluster-out", help="The run folder as the cluster sees it.")
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=1, help="Machines for workers.", rich_help_panel=_ASKED)
    ] = 1,
    cpus: Annotated[
        int, typer.Option("--cpus", min=1, help="CPU cores of each.", rich_help_panel=_ASKED)
    ] = 4,
    gpus: Annotated[
        int, typer.Option("--gpus", min=0, help="GPUs of each.", rich_help_panel=_ASKED)
    ] = 0,
    memory: Annotated[
        int | None,
        typer.Option("--memory", min=1, help="Memory of each (GB).", rich_help_panel=_ASKED),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", help="Longest time, e.g. 12:00:00.", rich_help_panel=_SLURM),
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", help="Account.", rich_help_panel=_SLURM)
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", help="Partition.", rich_help_panel=_SLURM)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", help="Image with epim_nas.", rich_help_panel=_KUBERNETES),
    ] = None,
    claim: Annotated[
        str,
        typer.Option(
            "--claim", help="Volume claim of the run folders.", rich_help_panel=_KUBERNETES
        ),
    ] = "epim-nas-runs",
    mount: Annotated[
        str, typer.Option("--mount", help="Where it is mounted.", rich_help_panel=_KUBERNETES)
    ] = "/runs",
) -> None:
    """Write the job of a search for a cluster, and send it with --submit.

    The files are in the run folder's `launch/`; read and change them before they are sent. Of your
    modules that the run file names, the Python sources go along; other files with --include.

        epim-nas launch my_run.yaml --on ray --address http://head:8265 --out /shared/mine --submit

        epim-nas launch my_run.yaml --on slurm --out /shared/mine --nodes 2 --gpus 4 --submit

        epim-nas launch my_run.yaml --on kuberay --image REGISTRY/epim-nas --cluster-out /runs/mine
    """
    from epim_nas.launch import Resources, kuberay, prepare, slurm
    from epim_nas.launch.texts import command_line

    if on is Cluster.kuberay:
        kuberay.ray_version()  # before anything is written
    resources = Resources(nodes, cpus, gpus, memory, time, account, partition, image, claim, mount)
    job = prepare(run, out, set_ or [], resources, cluster_out, include or [])
    for line in job.bundle.lines():
        typer.echo(line)
    if on is Cluster.ray:
        _launch_on_ray(job, address, submit, wait)
        return
    launcher = slurm if on is Cluster.slurm else kuberay
    file = launcher.write(job)
    typer.echo(f"Wrote {file}")
    if submit:
        typer.echo(launcher.submit(file))
    else:
        typer.echo(f"Send it with:\n  {command_line(*launcher.SEND, file)}")


def _launch_on_ray(job: Job, address: str | None, submit: bool, wait: bool) -> None:
    from epim_nas.launch import ray_jobs
    from epim_nas.launch.texts import command_line

    file = ray_jobs.write(job)
    typer.echo(f"Wrote {file} and what is beside it")
    if not submit:
        sending = command_line("ray", "job", "submit", "--working-dir", job.code, "--")
        typer.echo(f"Send it with --submit, or with:\n  {sending} sh {file.name}")
        return
    client = ray_jobs.JobClient(address)
    name = client.submit(job)
    typer.echo(f"Job {name}")
    if not wait:
        look = command_line("epim-nas", "jobs", name, "--address", client.address, "--logs")
        typer.echo(f"Look at it with:\n  {look}")
        return
    _end(client.follow(name, lambda part: typer.echo(part, nl=False)))


def jobs(
    job: Annotated[str | None, typer.Argument(metavar="ID", help="One job.")] = None,
    address: Address = None,
    logs: Annotated[bool, typer.Option("--logs", help="What it has printed.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="And what it prints yet.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it; it can go on later.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List the jobs of a Ray cluster, or look at one.

    epim-nas jobs --address http://head:8265

    epim-nas jobs raysubmit_8xK2 --follow
    """
    from dataclasses import asdict

    from epim_nas.errors import InputError
    from epim_nas.launch import ray_jobs

    client = ray_jobs.JobClient(address)
    if job is None:
        if logs or follow or stop:
            raise InputError("ID", "is missing", "one of `epim-nas jobs`")
        states = client.jobs()
    else:
        states = [client.job(job)]
        if stop:
            client.stop(job)
            states = [client.job(job)]
        if follow:
            _end(client.follow(job, lambda part: typer.echo(part, nl=False)))
            return
        if logs:
            typer.echo(client.logs(job), nl=False)
            return
    if json:
        print_json({"schema": "epim-nas/jobs@1", "jobs": [asdict(state) for state in states]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("job", "status", "run", "run folder", box=None)
    for state in states:
        table.add_row(*map(escape, (state.name, state.status, state.run, state.out)))
    console().print(table)


def _end(state: JobState) -> None:
    """End as the job has ended."""
    from epim_nas.errors import EpimError

    typer.echo(f"Job {state.name}: {state.status}")
    if state.status != "SUCCEEDED":
        reason = state.message.splitlines()[0] if state.message else state.status
        raise EpimError(f"the job did not succeed: {reason}")
