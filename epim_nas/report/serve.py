"""TensorBoard on a run's event files."""

from __future__ import annotations

import base64
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

from epim_nas import interrupts
from epim_nas.errors import EpimError, InputError

log = logging.getLogger(__name__)

TRIALS = "trials"
"""Folder of the runs of single trials."""


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
        log.info("TensorBoard, until Ctrl-C:")
        for what, link in links(folder, host, port).items():
            log.info("%s: %s", what, link)
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        interrupts.forget()  # it is the way to end
        return
    finally:
        # Whoever ends this process ends TensorBoard, which would keep the port.
        process.terminate()
        process.wait()
    if status not in (0, -signal.SIGTERM):
        raise EpimError(f"TensorBoard ended with exit code {status}; is port {port} in use?")


def links(folder: Path, host: str, port: int) -> dict[str, str]:
    """What a page shows -> its address, with the runs selected that it needs.

    With more than some twenty runs TensorBoard selects none, and every trial is a run: without the
    selection in the address the figures and curves would be empty at first.
    """
    shown = {
        str(path.parent.relative_to(folder)): True
        for path in sorted(folder.rglob("events.out.tfevents.*"))
        if path.relative_to(folder).parts[0] != TRIALS
    }
    text = json.dumps(shown, separators=(",", ":"))
    # TensorBoard splits its addresses at `=`: spaces at the end leave base64 without padding.
    state = base64.b64encode(text.ljust(len(text) + -len(text) % 3).encode()).decode()
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    return {
        "front and chosen design": f"{base}#images&runSelectionState={state}",
        "curves": f"{base}#custom_scalars&runSelectionState={state}",
        "tables": f"{base}#text&runSelectionState={state}",
        "all designs": f"{base}#hparams",
    }
