"""A Ray cluster of several nodes on this machine, started as a user would: ``ray start``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path (sockets lie in it), removed at the end."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start_daemon(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """A process in a group of its own, to be killed with all that it starts."""
    with open(log, "wb") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=log.parent,
            start_new_session=True,
        )  # fmt: skip


class Cluster:
    """A head without CPUs for work, and nodes that can be added and killed.

    Args:
        folder: Ray's files; its path must be short, since sockets lie in it.
        token: whether clients have to show a token.
        dashboard: whether the job server runs.
    """

    def __init__(self, folder: Path, token: bool = True, dashboard: bool = False) -> None:
        self.folder = folder
        self.port, self.dashboard_port = free_port(), free_port()
        self.environment = {
            **os.environ,
            "HOME": str(folder),  # Ray keeps its token there
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token" if token else "disabled",
            "RAY_AUTH_TOKEN": "a-token-of-this-test-that-is-long-enough" if token else "",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        if not token:
            del self.environment["RAY_AUTH_TOKEN"]
        self.environment.pop("RAY_ADDRESS", None)
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._start(
            "--head", f"--port={self.port}", "--num-cpus=0", f"--temp-dir={folder}/ray",
            f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    @property
    def address(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self.port}"

    def add_node(self, cpus: int) -> int:
        """Start a node and wait until it has joined; returns its index."""
        log = self._start(
            f"--address={self.address}", f"--num-cpus={cpus}",
            f"--dashboard-agent-listen-port={free_port()}",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return len(self._nodes) - 1

    def kill_node(self, index: int) -> None:
        """SIGKILL a node's raylet and everything that it started."""
        os.killpg(self._nodes[index].pid, signal.SIGKILL)
        self._nodes[index].wait()

    def close(self) -> None:
        """End everything."""
        for node in reversed(self._nodes):
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()

    def _start(self, *arguments: str) -> Path:
        """Start a node; returns its log."""
        ray = Path(sys.executable).parent / "ray"
        command = [str(ray), "start", "--block", "--node-ip-address=127.0.0.1", *arguments]
        log = self.folder / f"node-{len(self._nodes)}.log"
        self._nodes.append(start_daemon(command, self.environment, log))
        return log
