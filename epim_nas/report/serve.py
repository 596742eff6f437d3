"""TensorBoard on a run's event files."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from epim_nas.errors import EpimError, InputError

log = logging.getLogger(__name__)


def serve_tensorboard(folder: Path, host: str, port: int) -> None:
    """Run TensorBoard until it is interrupted.

    Args:
        folder: the event files.
        host: address to listen on; loopback unless the user wants others to reach it.
        port: port; 0 takes a free one.

    Raises:
        InputError: there are no event files yet, or the port is out of range.
        EpimError: TensorBoard ended with an error.
    """
    if not 0 <= port <= 65535:
        raise InputError("--port", f"got {port}", "0 to 65535")
    if not any(folder.rglob("events.out.tfevents.*")):
        raise InputError(
            str(folder), "holds no TensorBoard events yet", hint="Start the search first."
        )
    if host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("everyone who reaches %s:%d can see this dashboard", host, port)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", host, "--port", str(port)]
    if port:
        log.info("TensorBoard on http://%s:%d (Ctrl-C ends it)", host, port)
    try:
        status = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return
    if status:
        raise EpimError(f"TensorBoard ended with exit code {status}; is port {port} in use?")
