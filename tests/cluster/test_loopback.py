"""Ray that a search starts by itself, looked at from its sockets."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from epim_nas.cluster.connection import connected  # noqa: E402
from epim_nas.cluster.ray_executor import PoolSettings, make_ray_executor  # noqa: E402
from epim_nas.cluster.ray_train import run_on_workers  # noqa: E402
from tests.cluster import sockets  # noqa: E402

_KEYS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
_STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    print("reached", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None))
except Exception as error:
    print(type(error).__name__, error)
"""


class Worker:
    def square(self, number: int) -> int:
        return number**2


def test_only_this_machine_and_this_user_reach_what_a_search_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # for clusters that others have started
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {key: os.environ.get(key) for key in _KEYS}
    with connected(None, "a test", 2):
        assert {key: os.environ.get(key) for key in _KEYS} == before
        with make_ray_executor(Worker, PoolSettings(workers=1), None) as executor:
            executor.submit(1, "square", 3)
            assert executor.wait().value == 9
            found = sockets.of_this_and_its_children()
            head = ray.get_runtime_context().gcs_address
            known = _connect(head, **_environment_of(found))
            stranger = _connect(head, RAY_AUTH_MODE="disabled")
            wrong = _connect(head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64)
            answers = {_status(port) for ports in found.values() for _, port in ports}
        notes = tmp_path / "notes"
        notes.mkdir()
        run_on_workers(sockets.note_in_group, notes, workers=2, storage=tmp_path / "ray")
    seen = [json.loads(file.read_text()) for file in notes.iterdir()]

    # The head's, the node's, the driver's and the worker's own, metrics, ...
    assert len(found) >= 6
    addresses = {address for places in found.values() for address, _ in places}
    assert all(sockets.on_loopback(address) for address in addresses), found

    # The store of the group and what its two members listen on.
    assert [worker["sum"] for worker in seen] == [2.0, 2.0]
    in_group = [address for worker in seen for address, _ in worker["listening"]]
    assert len(in_group) >= 5  # two of gloo, one of the store, one of Ray in each
    assert all(sockets.on_loopback(address) for address in in_group), seen

    assert "reached" in known
    assert "Authentication" in wrong, wrong
    assert "Authentication" in stranger, stranger
    assert 401 in answers  # and metrics, which are read without a token
    assert not (home / ".ray").exists()  # the token is in no file


def _environment_of(processes: Iterable[int]) -> dict[str, str]:
    """What the processes that Ray has started were told about the token."""
    for process in processes:
        if process != os.getpid():
            entries = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            told = dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)
            if "RAY_AUTH_TOKEN" in told:
                return {key: told[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    raise AssertionError("no process was told a token")


def _connect(address: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _STRANGER, address], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def _status(port: int) -> int:
    """How a port answers a plain HTTP request; 0 where it speaks another protocol."""
    try:
        return int(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return 0
