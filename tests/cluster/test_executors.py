"""Every executor passes the same contract."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from epim_nas import InputError
from epim_nas.cluster import Executor, LocalExecutor


class Worker:
    """Runs in the executor's processes."""

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, value: int) -> int:
        return self.base + value

    def fail(self, text: str) -> None:
        raise RuntimeError(text)

    def refuse(self) -> None:
        raise InputError("field", "got this", "that")

    def die_once(self, marker: str) -> int:
        """Kill the worker's process the first time."""
        if not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), 9)
        return os.getpid()

    def pid(self) -> int:
        return os.getpid()


def make_local() -> Executor:
    return LocalExecutor(partial(Worker, 10))


def make_ray() -> Executor:
    pytest.importorskip("ray")
    from epim_nas.cluster.ray_executor import PoolSettings, RayExecutor

    return RayExecutor(partial(Worker, 10), PoolSettings(workers=2, cpus=0.5))


@pytest.fixture(scope="module", params=[make_local, make_ray], ids=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    make: Callable[[], Executor] = request.param
    with make() as made:
        yield made


def collect(executor: Executor, count: int) -> dict[Any, Any]:
    return {outcome.key: outcome for outcome in (executor.wait() for _ in range(count))}


def test_every_call_has_one_outcome(executor: Executor) -> None:
    for value in range(7):
        executor.submit(value, "add", value)
    outcomes = collect(executor, 7)
    assert {key: outcome.value for key, outcome in outcomes.items()} == {
        value: 10 + value for value in range(7)
    }
    assert all(outcome.seconds >= 0 and not outcome.error for outcome in outcomes.values())


def test_an_error_is_an_outcome_and_work_goes_on(executor: Executor) -> None:
    executor.submit("bad", "fail", "no such thing")
    executor.submit("good", "add", 1)
    outcomes = collect(executor, 2)
    assert "no such thing" in outcomes["bad"].error
    assert outcomes["bad"].value is None
    assert outcomes["good"].value == 11


def test_wrong_input_reaches_the_user(executor: Executor) -> None:
    executor.submit(0, "refuse")
    with pytest.raises(InputError) as caught:
        executor.wait()
    assert (caught.value.field, caught.value.allowed) == ("field", "that")


def test_waiting_for_nothing_is_an_error(executor: Executor) -> None:
    with pytest.raises(RuntimeError):
        executor.wait()


def test_capacity_has_a_call_for_every_worker(executor: Executor) -> None:
    workers = 1 if isinstance(executor, LocalExecutor) else 2
    deadline = time.monotonic() + 60
    while executor.capacity < workers and time.monotonic() < deadline:
        executor.submit("x", "pid")
        executor.wait()
    assert workers <= executor.capacity <= 2 * workers


def test_a_killed_ray_worker_comes_back(executor: Executor, tmp_path: Path) -> None:
    if isinstance(executor, LocalExecutor):
        executor.submit(0, "pid")
        assert executor.wait().value == os.getpid(), "local work runs in this process"
        return
    executor.submit(0, "die_once", str(tmp_path / "died"))
    outcome = executor.wait()
    assert not outcome.error
    assert outcome.value != os.getpid()
    assert (tmp_path / "died").exists()
