"""Clusters that cannot be used: one message each, within seconds."""

from __future__ import annotations

import time

import pytest

from epim_nas import InputError

pytest.importorskip("ray")

from epim_nas.cluster.connection import connect, fitting


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:9", "http://127.0.0.1:8265"])
def test_a_cluster_that_is_not_there_is_said_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        connect(address, "a test")
    assert caught.value.field == "executor.address"
    assert address in str(caught.value)
    assert time.monotonic() - started < 10


def node(alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources}


def test_workers_fit_on_machines_not_on_their_sum() -> None:
    nodes = [node(CPU=3.0, GPU=1.0), node(CPU=3.0), node(alive=False, CPU=100.0)]
    assert fitting(nodes, cpus=2, gpus=0) == 2
    assert fitting(nodes, cpus=1, gpus=0) == 6
    assert fitting(nodes, cpus=1, gpus=0.5) == 2
    assert fitting(nodes, cpus=4, gpus=0) == 0
