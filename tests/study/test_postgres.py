"""Trials in a real PostgreSQL: complete, resumed, and not lost when the server goes down."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from epim_nas import InputError
from epim_nas.solver.problem import SearchProblem
from epim_nas.study import storage
from epim_nas.study.inflight import Pending
from epim_nas.study.storage import StorageDown
from epim_nas.study.store import TrialStore
from tests.pipeline.test_trials import OBJECTIVES, rows, search
from tests.solver.problems import make_problem
from tests.study.postgres import Postgres, find_binary

pytest.importorskip("psycopg", reason="needs the extra `postgresql`")
pytestmark = pytest.mark.skipif(
    find_binary("initdb") is None, reason="no PostgreSQL server is installed"
)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def problem() -> SearchProblem:
    return make_problem(groups=6, choices=8, slack=12)


def test_a_search_is_stored_and_goes_on(
    server: Postgres, problem: SearchProblem, tmp_path: Path
) -> None:
    whole = search(tmp_path / "file", problem, "epitome", 30)
    search(tmp_path / "a", problem, "epitome", 30, calls=11, storage=server.url)
    trials = search(tmp_path / "a", problem, "epitome", 30, storage=server.url)
    assert rows(trials) == rows(whole)
    assert [trial.values for trial in trials] == [trial.values for trial in whole]
    # Stock Optuna opens it.
    study = optuna.load_study(study_name="epim_nas", storage=server.url)
    assert len(study.trials) == 30
    assert study.metric_names == list(OBJECTIVES)
    assert not (tmp_path / "a" / "study.journal").exists()


def test_a_server_that_goes_down_for_a_while_is_waited_for(
    server: Postgres,
    problem: SearchProblem,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE_SECONDS", 0.2)
    # Optuna tries five times itself, with random pauses of up to two seconds.
    monkeypatch.setattr(random, "random", lambda: 0.0)

    def restart() -> None:
        time.sleep(1.0)
        server.start()

    def crash(calls: int) -> None:
        if calls == 9:
            server.stop()
            threading.Thread(target=restart).start()

    trials = search(tmp_path, problem, "epitome", 20, storage=server.url, before_call=crash)
    assert "does not answer" in caplog.text
    assert "trying again in" in caplog.text
    assert rows(trials) == rows(search(tmp_path / "file", problem, "epitome", 20))


def test_a_server_that_stays_down_loses_nothing(
    server: Postgres,
    problem: SearchProblem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.5)
    measured: list[int] = []

    def crash(calls: int) -> None:
        measured.append(calls)
        if calls == 9:
            server.stop()

    with pytest.raises(StorageDown, match=r"is kept in .*unsaved\.json"):
        search(tmp_path, problem, "epitome", 20, storage=server.url, before_call=crash)
    assert len(measured) == 9
    server.start()
    measured.clear()
    trials = search(
        tmp_path, problem, "epitome", 20, storage=server.url, before_call=measured.append
    )
    # The trial that could not be stored was not evaluated again.
    assert len(measured) == 11
    assert not (tmp_path / "unsaved.json").exists()
    assert rows(trials) == rows(search(tmp_path / "file", problem, "epitome", 20))


def test_a_server_that_is_down_at_the_start_is_one_clear_error(
    server: Postgres, problem: SearchProblem, tmp_path: Path
) -> None:
    server.stop()
    with pytest.raises(InputError) as caught:
        TrialStore(tmp_path / "x", OBJECTIVES, problem.space, {}, storage=server.url)
    message = str(caught.value)
    assert message.startswith("search.storage: `postgresql+psycopg://tester@127.0.0.1")
    assert "does not answer" in message
    assert "Check that the server runs" in message


def test_two_runs_in_one_database_keep_apart(
    server: Postgres, problem: SearchProblem, tmp_path: Path
) -> None:
    stores = [
        TrialStore(
            tmp_path / name / "study.journal",
            OBJECTIVES,
            problem.space,
            {"seed": 1},
            storage=server.url,
            study_name=name,
        )
        for name in ("one", "two")
    ]
    measured = dict.fromkeys(OBJECTIVES, 0.5)
    stores[0].add(
        Pending(0, (0,) * 6, "seed"), measured, constraints={}, finished_at=1.0, seconds=1.0
    )
    assert [len(store.trials()) for store in stores] == [1, 0]
    with pytest.raises(InputError, match="another seed"):
        TrialStore(
            tmp_path / "x", OBJECTIVES, problem.space, {"seed": 2},
            storage=server.url, study_name="one",
        )  # fmt: skip
