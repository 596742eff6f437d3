"""A SLURM cluster of one node on this machine: munge, slurmctld and slurmd of a folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.cluster.machines import free_port, start_daemon

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")


def missing() -> list[str]:
    """Programs that are not installed (Debian: slurm-wlm, munge)."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Slurm:
    """The daemons, with a partition `low` that jobs of `high` preempt by requeueing."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.folder = folder
        host = socket.gethostname().partition(".")[0]
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=requeue_delay=1
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 State=UP
"""
        )
        self.environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self._wait(lambda: (folder / "munge.socket").exists(), "munge")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        self._wait(lambda: "idle" in self.run("sinfo", "--noheader"), "an idle node")

    def run(self, *command: str) -> str:
        """What a command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    def state(self, job: str) -> str:
        """State of a job, and how often it was restarted."""
        shown = dict(
            part.split("=", 1)
            for part in self.run("scontrol", "show", "job", job).split()
            if "=" in part
        )
        return f"{shown.get('JobState', '?')} {shown.get('Restarts', '?')}"

    def close(self) -> None:
        """End the jobs and the daemons."""
        self.run("scancel", "--user=root", "--signal=KILL", "--full")
        time.sleep(1)
        for daemon in reversed(self._daemons):
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()

    def _start(self, *command: str) -> None:
        log = self.folder / f"{command[0]}.out"
        self._daemons.append(start_daemon(command, self.environment, log))

    def _wait(self, reached, what: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not reached():
            logs = "".join(path.read_text()[-800:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < until, f"no {what}: {logs}"
            time.sleep(0.3)
