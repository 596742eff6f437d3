"""SLURM: an sbatch script around ``ray symmetric-run``, which goes on where it was preempted."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from string import Template

from epim_nas.errors import InputError
from epim_nas.files import write_text
from epim_nas.launch.job import Job
from epim_nas.launch.sending import send
from epim_nas.launch.texts import command_line, directive

_SCRIPT = Template("""#!/bin/bash
# Written by `epim-nas launch --on slurm`; read and change it. Send it with: $send
$directives
set -u
cd $code
export PATH=$program:$$PATH
export PYTHONPATH=$code$${PYTHONPATH:+:$$PYTHONPATH}

# Ray listens on all interfaces of the nodes: whoever connects has to show this token.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$folder/token
if [ ! -s "$$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077; $python -c "import secrets; print(secrets.token_hex(32))" > "$$RAY_AUTH_TOKEN_PATH")
fi

head=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
port=$$((20000 + SLURM_JOB_ID % 10000))
code_file=$folder/exit-code
rm -f "$$code_file"

# What `search` is told by SIGTERM (preemption, the end of the time) it takes as Ctrl-C: everything
# finished is saved, and it ends with 130.
srun --nodes="$$SLURM_JOB_NUM_NODES" --ntasks="$$SLURM_JOB_NUM_NODES" \\
    ray symmetric-run --address "$$head:$$port" --min-nodes "$$SLURM_JOB_NUM_NODES" \\
    --num-cpus=$cpus --num-gpus=$gpus --disable-usage-stats -- \\
    bash -c 'trap : TERM; export RAY_ADDRESS=$$1; shift; "$$@"; echo $$? > "$$0"' \\
    "$$code_file" "$$head:$$port" $search
status=$$?
# Those who start the search die of the signal at once; the search takes some seconds to save.
if [ "$$status" -gt 128 ]; then
    for _ in $$(seq 60); do
        [ -s "$$code_file" ] && break
        sleep 1
    done
    # They had no time to end what they started.
    timeout 60 srun --overlap --nodes="$$SLURM_JOB_NUM_NODES" --ntasks="$$SLURM_JOB_NUM_NODES" \\
        ray stop > /dev/null 2>&1 || ray stop > /dev/null 2>&1
fi
code=$$(cat "$$code_file" 2>/dev/null || echo "$$status")
if [ "$$code" = 130 ]; then
    printf '%s\\n' $interrupted
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$code"
""")

_WARNING_SECONDS = 90
"""How long before the end of its time a job is told."""


SEND = ("sbatch",)
"""What sends the script."""


def write(job: Job) -> Path:
    """Write the script into the job's folder; returns its path.

    Raises:
        InputError: SLURM cannot write into the folder's path.
    """
    program = Path(sys.executable).parent
    asked = job.resources
    if "\\" in str(job.folder):
        raise InputError(
            "--out", f"got `{job.folder}`", "a path without a backslash, which SLURM would drop"
        )
    logs = str(job.folder).replace("%", "%%")  # else a pattern of SLURM's, such as %j
    directives = {
        "job-name": job.name,
        "nodes": asked.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": asked.cpus,
        "gpus-per-node": asked.gpus or None,
        "mem": f"{asked.memory_gb}G" if asked.memory_gb else None,
        "time": asked.time,
        "account": asked.account,
        "partition": asked.partition,
        "output": f"{logs}/slurm-%j.log",
        "open-mode": "append",
        "signal": f"TERM@{_WARNING_SECONDS}",
    }
    lines = [directive(name, value) for name, value in directives.items() if value is not None]
    script = job.folder / "job.sbatch"
    interrupted = f"interrupted; the job is queued again and goes on in {job.out}"
    text = _SCRIPT.substitute(
        send=command_line(*SEND, script), directives="\n".join([*lines, directive("requeue")]),
        code=shlex.quote(str(job.code)), folder=shlex.quote(str(job.folder)),
        python=shlex.quote(sys.executable), program=shlex.quote(str(program)),
        cpus=asked.cpus, gpus=asked.gpus, interrupted=shlex.quote(interrupted),
        search=command_line("epim-nas", "search", job.run_file, "--out", job.out),
    )  # fmt: skip
    write_text(script, text)
    return script


def submit(script: Path) -> str:
    """Send a script; returns what SLURM says, with the number of the job. Errors: :func:`send`."""
    return send(SEND, script, "SLURM", "a login node of SLURM")
