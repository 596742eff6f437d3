"""Whether a worker sees the driver's files."""

from __future__ import annotations

import socket
from pathlib import Path

from epim_nas.errors import InputError


def check_visible(file: Path) -> None:
    """Check, in a worker, that it sees a file of the driver's run folder.

    Raises:
        InputError: it does not.
    """
    if not file.exists():
        raise InputError(
            "--out",
            f"the worker on {socket.gethostname()} does not see {file.parent}",
            "a folder on a file system that all machines of the cluster share",
            "Put the run there, by its absolute path.",
        )
