"""A PostgreSQL server of its own for tests, from the binaries of the system."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path


def find_binary(name: str) -> str | None:
    """A binary of PostgreSQL; Debian keeps them outside of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Postgres:
    """A server on a free port of loopback, its data in a folder.

    PostgreSQL refuses to run as root: then it runs as `postgres`, or else as `nobody`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user: pwd.struct_passwd | None = None
        if os.getuid() == 0:
            self._user = _user("postgres") or _user("nobody")
            assert self._user is not None
            # Every folder above has to be passable for that user.
            for parent in [folder, *folder.parents]:
                if parent != Path("/") and parent.owner() == "root":
                    parent.chmod(parent.stat().st_mode | 0o711)
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run(
            "initdb", "-D", "data", "-U", "tester", "--auth=trust", "--no-sync", "--encoding=UTF8"
        )

    @property
    def url(self) -> str:
        """As a run file names it."""
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "server.log", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop", check=False)

    def _run(self, name: str, *arguments: str, check: bool = True) -> None:
        binary = find_binary(name)
        assert binary is not None, name
        done = subprocess.run(
            [binary, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self.folder)},
            preexec_fn=None if self._user is None else partial(_become, self._user),
            stdout=subprocess.PIPE if name == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if name == "initdb" else subprocess.DEVNULL,
            timeout=120,
        )
        assert not check or done.returncode == 0, (name, done.stdout)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _become(user: pwd.struct_passwd) -> None:
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
