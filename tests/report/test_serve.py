"""The dashboard, looked at from its sockets."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")  # brings psutil

from tests.cluster.sockets import listening, on_loopback

import psutil  # isort: skip

SERVE = """
import sys
from pathlib import Path
from epim_nas.report.serve import serve_tensorboard
serve_tensorboard(Path(sys.argv[1]), "127.0.0.1", 0)
"""


def test_the_dashboard_listens_on_loopback_alone(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").touch()
    served = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 90
        found: set[str] = set()
        while not found and time.monotonic() < until and served.poll() is None:
            time.sleep(0.2)
            all_ = [psutil.Process(served.pid), *psutil.Process(served.pid).children(True)]
            found = {address for process in all_ for address, _ in listening(process)}
    finally:
        served.terminate()
        served.wait()
    assert found
    assert all(map(on_loopback, found)), found
