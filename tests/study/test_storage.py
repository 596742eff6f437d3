"""URLs of storages: what a run file may hold, and what a message may say."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from epim_nas import InputError
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.study import storage
from epim_nas.study.inflight import Pending
from epim_nas.study.storage import StorageDown, check_url, expanded, open_url, patiently
from epim_nas.study.store import TrialStore


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:${SECRET}@host/database",
        "postgresql+psycopg2://user@host:5432/database",
        "mysql+pymysql://user:${SECRET}@host/database",
        "sqlite:///trials.db",
    ],
)
def test_urls_that_a_run_file_may_hold(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://user:hunter2@host/database", "holds a password"),
        ("postgresql://${USER}:hunter2@host/database", "holds a password"),
        ("postgresql://user:hunter2${SECRET}@host/database", "holds a password"),
        ("postgresql://user@host/database?password=hunter2", "holds a password"),
        ("trials.db", "is not the URL"),
        ("", "is not the URL"),
    ],
)
def test_urls_that_it_may_not(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_url(url)
    assert "hunter2" not in str(caught.value)


def test_variables_are_put_in_and_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://user:${EPIM_TEST_SECRET}@host/database"
    with pytest.raises(InputError, match="`EPIM_TEST_SECRET` is not set"):
        expanded(url)
    monkeypatch.setenv("EPIM_TEST_SECRET", "hunter2")
    assert expanded(url) == "postgresql://user:hunter2@host/database"
    monkeypatch.setenv("EPIM_TEST_SECRET", "p@ss/wo:rd")
    assert make_url(expanded(url)).password == "p@ss/wo:rd"
    assert make_url(expanded(url)).host == "host"


def test_a_secret_is_not_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("EPIM_TEST_SECRET", "hunter2")
    with pytest.raises(InputError, match="does not answer") as caught:
        open_url("postgresql+psycopg://user:${EPIM_TEST_SECRET}@127.0.0.1:9/database")
    assert "hunter2" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(InputError, match=r"not installed|does not answer"):
        open_url("mysql+pymysql://user@127.0.0.1:9/database")
    with pytest.raises(InputError, match="nosuchdatabase"):
        open_url("nosuchdatabase://user@host/database")


def test_patience_has_growing_pauses_and_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(storage.time, "sleep", sleep)

    def locked() -> None:
        raise OSError("the disk is full")

    with pytest.raises(StorageDown, match="the disk is full"):
        patiently(locked, "the storage")
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert 30 < sum(pauses) <= storage.PATIENCE_SECONDS
    outcomes = iter([OSError("locked"), OSError("locked"), None])

    def twice() -> str:
        error = next(outcomes)
        if error is not None:
            raise error
        return "stored"

    assert patiently(twice, "the storage") == "stored"


def test_sqlite_keeps_trials(problem: SearchProblem, tmp_path: Path) -> None:
    def opened(**options: bool) -> TrialStore:
        url = f"sqlite:///{tmp_path}/trials.db"
        settings = None if options else {"seed": 1}
        return TrialStore(
            tmp_path / "study.journal",
            ["accuracy"],
            problem.space,
            settings,
            storage=url,
            **options,
        )

    store = opened()
    pending = Pending(0, (1,) * 8, "seed", {"epim:how": "by hand"})
    store.begin(pending)
    store.add(
        pending, {"accuracy": 0.5}, constraints={"crossbars": -1.0}, finished_at=1.0, seconds=1.0
    )
    (record,) = opened(read_only=True).records()
    assert record.metrics == {"accuracy": 0.5}
    assert record.feasible


def test_a_disk_that_is_full_for_a_moment_tears_no_line(
    tmp_path: Path, problem: SearchProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt that fails leaves half a line; the next one must not be written behind it."""
    store = TrialStore(tmp_path / "study.journal", problem.objectives, problem.space, {})
    rows = [FeasibleSolver(problem).repair([choice] * 8) for choice in (9, 8, 7)]
    metrics = {"accuracy": 0.5, "latency_ns": 1.0, "energy_nj": 1.0}

    def add(number: int) -> None:
        pending = Pending(number, rows[number], "search", {})
        store.begin(pending)
        store.add(pending, metrics, constraints={}, finished_at=0.0, seconds=0.0)

    add(0)
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (tmp_path / "study.journal").stat().st_size

    def recovered(seconds: float) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)

    monkeypatch.setattr(storage.time, "sleep", recovered)
    pending = Pending(1, rows[1], "search", {})
    store.begin(pending)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, kept[1]))
        store.add(pending, metrics, constraints={}, finished_at=0.0, seconds=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, handler)
    add(2)
    again = TrialStore(tmp_path / "study.journal", problem.objectives, problem.space, {})
    assert [trial.user_attrs["asked"] for trial in again.trials()] == [0, 1, 2]
