"""Workers that die, hang, come late or leave: every call has one outcome all the same."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from epim_nas import InputError
from epim_nas.cluster.executor import Outcome

ray = pytest.importorskip("ray")

from epim_nas.cluster.ray_executor import PoolSettings, RayExecutor  # noqa: E402


def mapping_of(address: int) -> str:
    """Permissions of the memory at an address: `s` at the end: shared, `p`: private."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split()[:2]
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return permissions
    raise AssertionError("no such memory")


class Worker:
    """Runs in the actors."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))
        self.images = np.ones((100, 300), dtype=np.float32)

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang_once(self, marker: str) -> str:
        if not Path(marker).exists():
            Path(marker).touch()
            time.sleep(600)
        return "done"

    def say(self, text: str) -> int:
        logging.getLogger("epim_nas.somewhere").warning(text)
        return len(text)

    def memory(self) -> dict[str, Any]:
        self.net.train()
        self.net(torch.from_numpy(np.array(self.images)))  # batch norm writes its statistics
        weight = self.net[0].weight
        return {
            "weight": mapping_of(weight.data_ptr()),
            "images": mapping_of(self.images.ctypes.data),
            "statistics": mapping_of(self.net[1].running_mean.data_ptr()),
            "mean": float(self.net[1].running_mean.abs().sum()),
            "grad": weight.requires_grad,
            "sum": float(weight.sum()),
        }


def collect(executor: RayExecutor, count: int) -> dict[Any, Outcome]:
    outcomes = [executor.wait() for _ in range(count)]
    assert len({outcome.key for outcome in outcomes}) == count
    return {outcome.key: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with RayExecutor(Worker, PoolSettings(workers=2, cpus=0.5, retries=2)) as made:
        yield made


def test_a_call_that_kills_its_workers_fails_and_the_others_do_not(executor: RayExecutor) -> None:
    executor.submit("poison", "die")
    for number in range(6):
        executor.submit(number, "sleep", 0.05)
    outcomes = collect(executor, 7)
    assert "given up after 3 attempts: its worker died on " in outcomes["poison"].error
    assert all(not outcomes[number].error for number in range(6))
    assert executor.state.lost >= 3


def test_what_workers_log_reaches_the_driver(
    executor: RayExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("epim_nas").propagate = True
    executor.submit(0, "say", "something is odd")
    assert executor.wait().value == len("something is odd")
    assert any("something is odd" in record.getMessage() for record in caplog.records)
    assert any("worker on " in record.getMessage() for record in caplog.records)


def test_parameters_and_images_are_shared_and_statistics_are_not(executor: RayExecutor) -> None:
    executor.submit(0, "memory")
    executor.submit(1, "memory")
    first, second = (outcome.value for outcome in collect(executor, 2).values())
    for memory in (first, second):
        assert memory["weight"][-1] == memory["images"][-1] == "s"
        assert memory["statistics"][-1] == "p"
        assert memory["mean"] > 0
        assert memory["grad"]
    assert first["sum"] == second["sum"]


def test_a_straggler_is_stopped_and_tried_again(tmp_path: Path) -> None:
    settings = PoolSettings(workers=2, cpus=0.5, timeout_s=2.0)
    with RayExecutor(Worker, settings) as executor:
        executor.submit("slow", "hang_once", str(tmp_path / "hung"))
        executor.submit("quick", "pid")
        outcomes = collect(executor, 2)
        assert outcomes["slow"].value == "done"
        assert executor.state.late == 1


def test_a_call_that_always_hangs_is_given_up() -> None:
    settings = PoolSettings(workers=1, cpus=0.5, timeout_s=1.0, retries=0)
    with RayExecutor(Worker, settings) as executor:
        executor.submit("slow", "sleep", 600)
        assert "took longer than 1 s" in executor.wait().error


def test_a_call_that_nothing_limits_is_not_taken_for_a_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("epim_nas.cluster.ray_executor._QUIET", 1.0)
    logging.getLogger("epim_nas").propagate = True
    caplog.set_level(logging.INFO, "epim_nas")
    with RayExecutor(Worker, PoolSettings(workers=1, cpus=0.5)) as executor:
        executor.submit("first", "sleep", 5.0)
        assert not executor.wait().error
    said = [r.getMessage() for r in caplog.records if "would limit it" in r.getMessage()]
    assert 1 <= len(said) <= 3, "after 1, 2 and 4 s"
    assert said[0].startswith("call first: ")


def test_room_that_is_not_there_is_said_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        RayExecutor(Worker, PoolSettings(workers=1, cpus=4096))
    assert "4096 CPU" in str(caught.value)
    assert time.monotonic() - started < 30


def test_a_cluster_that_never_grows_is_said_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epim_nas.cluster.ray_executor._GROWING_SECONDS", 1.0)
    with pytest.raises(InputError, match="no worker had room within 1 s"):
        RayExecutor(Worker, PoolSettings(workers="auto", cpus=4096, wait_s=1.0))
