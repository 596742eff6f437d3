"""Clusters that cannot be used: one message each, within seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from epim_nas import InputError

ray = pytest.importorskip("ray")

from ray._private.utils import check_version_info  # noqa: E402

from epim_nas.cluster.connection import connect, fitting  # noqa: E402
from epim_nas.cluster.ray_train import run_on_workers  # noqa: E402
from epim_nas.cluster.visibility import check_visible  # noqa: E402


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:9", "http://127.0.0.1:8265"])
def test_a_cluster_that_is_not_there_is_said_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        connect(address, "a test")
    assert caught.value.field == "executor.address"
    assert address in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_signal_while_ray_starts_interrupts_and_leaves_the_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]

    def stopped(**options: object) -> None:
        for kind in kinds:  # as Ray does
            signal.signal(kind, lambda number, frame: sys.exit(1))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(ray, "init", stopped)
    with pytest.raises(KeyboardInterrupt):
        connect(None, "a test")
    assert [signal.getsignal(kind) for kind in kinds] == before


def node(alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources}


def test_workers_fit_on_machines_not_on_their_sum() -> None:
    nodes = [node(CPU=3.0, GPU=1.0), node(CPU=3.0), node(alive=False, CPU=100.0)]
    assert fitting(nodes, cpus=2, gpus=0) == 2
    assert fitting(nodes, cpus=1, gpus=0) == 6
    assert fitting(nodes, cpus=1, gpus=0.5) == 2
    assert fitting(nodes, cpus=4, gpus=0) == 0


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own words, as it says them when it joins a cluster of another version."""

    def refuse(**_: object) -> None:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.9.1"}, "This process")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr("epim_nas.cluster.connection.refusal", lambda host, port: "")
    with pytest.raises(InputError) as caught:
        connect("127.0.0.1:6379", "a test")
    assert "Ray: 2.1.0" in str(caught.value)
    assert f"ray=={ray.__version__}" in str(caught.value)


def test_a_run_folder_that_a_worker_does_not_see_is_named(tmp_path: Path) -> None:
    """Through Ray Train, from the worker's process to the user."""
    with pytest.raises(InputError) as caught:
        run_on_workers(check_visible, tmp_path / "not" / "there", workers=1, storage=tmp_path)
    assert caught.value.field == "--out"
    assert str(tmp_path / "not") in str(caught.value)
