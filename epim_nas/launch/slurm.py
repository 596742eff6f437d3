"""SLURM: an sbatch script around ``ray symmetric-run``, which goes on where it was preempted."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from string import Template

from epim_nas.files import write_text
from epim_nas.launch.job import Job
from epim_nas.launch.sending import send

_SCRIPT = Template("""#!/bin/bash
# Written by `epim-nas launch --on slurm`; read and change it. Send it with: sbatch $script
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
    bash -c 'trap : TERM; RAY_ADDRESS=$$1 $search; echo $$? > "$$0"' "$$code_file" "$$head:$$port"
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
    echo "interrupted; the job is queued again and goes on in $out"
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$code"
""")

_WARNING_SECONDS = 90
"""How long before the end of its time a job is told."""


def write(job: Job) -> Path:
    """Write the script into the job's folder; returns its path."""
    program = Path(sys.executable).parent
    asked = job.resources
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
        "output": job.folder / "slurm-%j.log",
        "open-mode": "append",
        "signal": f"TERM@{_WARNING_SECONDS}",
        "requeue": "",
    }
    lines = [
        f"#SBATCH --{name}" + (f"={value}" if value != "" else "")
        for name, value in directives.items()
        if value is not None
    ]
    search = ["epim-nas", "search", str(job.run_file), "--out", str(job.out)]
    script = job.folder / "job.sbatch"
    text = _SCRIPT.substitute(
        script=shlex.quote(str(script)), directives="\n".join(lines),
        code=shlex.quote(str(job.code)), folder=shlex.quote(str(job.folder)),
        python=shlex.quote(sys.executable), program=shlex.quote(str(program)),
        cpus=asked.cpus, gpus=asked.gpus, search=shlex.join(search).replace("'", "'\\''"),
        out=job.out,
    )  # fmt: skip
    write_text(script, text)
    return script


SEND = ("sbatch",)
"""What sends the script."""


def submit(script: Path) -> str:
    """Send a script; returns what SLURM says, with the number of the job. Errors: :func:`send`."""
    return send(SEND, script, "SLURM", "a login node of SLURM")
