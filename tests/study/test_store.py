"""The durable store: nothing finished is lost, whatever is cut off."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from epim_nas import InputError
from epim_nas.records import Finalist
from epim_nas.solver.problem import SearchProblem
from epim_nas.study import storage
from epim_nas.study.inflight import Pending
from epim_nas.study.storage import open_journal
from epim_nas.study.store import STUDY_NAME, TrialStore, as_in_memory

OBJECTIVES = ("accuracy", "latency_ns")


def open_store(path: Path, problem: SearchProblem, **settings: object) -> TrialStore:
    return TrialStore(path / "study.journal", OBJECTIVES, problem.space, settings or None)


def add(store: TrialStore, problem: SearchProblem, number: int, accuracy: float = 0.5) -> None:
    row = tuple((number + g) % 10 for g in range(8))
    pending = Pending(number, row, "seed" if number < 2 else "search")
    store.begin(pending)
    store.add(
        pending,
        {"accuracy": accuracy, "latency_ns": 10.0 + number, "crossbars": 5.0},
        constraints={"crossbars": float(number - 3)},
        finished_at=1000.0 + number,
        seconds=0.5,
    )


def test_stock_optuna_opens_the_journal(tmp_path: Path, problem: SearchProblem) -> None:
    store = open_store(tmp_path, problem)
    for number in range(6):
        add(store, problem, number, 0.5 + 0.01 * number)
    study = optuna.load_study(
        study_name=STUDY_NAME, storage=open_journal(tmp_path / "study.journal")
    )
    assert [trial.values for trial in study.trials] == [
        [0.5 + 0.01 * n, 10.0 + n] for n in range(6)
    ]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == list(OBJECTIVES)
    # By name, and by number as optuna-dashboard reads them.
    assert study.trials[5].constraints == {"0": 2.0, "crossbars": 2.0}
    assert as_in_memory(study.trials[5]).constraints == {"crossbars": 2.0}
    assert all(trial.constraints["crossbars"] <= 0 for trial in study.best_trials)


def test_stock_optuna_draws_the_front(tmp_path: Path, problem: SearchProblem) -> None:
    pytest.importorskip("plotly", reason="needs the extra `plot`")
    store = open_store(tmp_path, problem)
    for number in range(6):
        add(store, problem, number, 0.5 + 0.01 * number)
    study = optuna.load_study(
        study_name=STUDY_NAME, storage=open_journal(tmp_path / "study.journal")
    )
    figure = optuna.visualization.plot_pareto_front(study)
    names = [axis.title.text for axis in (figure.layout.xaxis, figure.layout.yaxis)]
    assert names == list(OBJECTIVES)
    # Numbers 4 and 5 break their limit; of the others each is more accurate and slower.
    assert [len(trace.x) for trace in figure.data] == [2, 0, 4]


def test_records_come_back_with_their_designs(tmp_path: Path, problem: SearchProblem) -> None:
    store = open_store(tmp_path, problem)
    add(store, problem, 0)
    add(store, problem, 5)
    first, second = open_store(tmp_path, problem).records()
    assert first.origin == "seed"
    assert second.origin == "search"
    assert first.feasible
    assert not second.feasible
    assert second.metrics["latency_ns"] == 15.0
    assert problem.space.row(second.design) == tuple((5 + g) % 10 for g in range(8))
    assert second.finished_at == 1005.0


def test_a_long_study_is_read_once_and_not_copied(
    tmp_path: Path, problem: SearchProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty thousand trials would take minutes otherwise."""
    store = open_store(tmp_path, problem)
    for number in range(4):
        add(store, problem, number)
    stored = open_store(tmp_path, problem)
    first = stored.records()
    add(stored, problem, 4)
    assert [id(record) for record in stored.records()[:4]] == [id(record) for record in first]
    assert [record.number for record in stored.records()] == [0, 1, 2, 3, 4]
    assert gc.isenabled()

    def no_copy(self: object, memo: object) -> None:
        raise AssertionError("a distribution is copied with its trial")

    study = optuna.create_study(directions=stored.study.directions)
    monkeypatch.setattr(
        optuna.distributions.IntDistribution, "__deepcopy__", no_copy, raising=False
    )
    for trial in stored.trials():
        study.add_trial(as_in_memory(trial))
    for copied, trial in zip(study.get_trials(deepcopy=False), stored.trials(), strict=True):
        assert copied.params == trial.params
        assert copied.distributions == trial.distributions
        assert copied.user_attrs == {"metrics": trial.user_attrs["metrics"]}  # as in a live search


def test_what_was_in_flight_is_left_over_once(tmp_path: Path, problem: SearchProblem) -> None:
    store = open_store(tmp_path, problem)
    add(store, problem, 0)
    for number in (1, 2):
        store.begin(Pending(number, (number,) * 8, "search"))
    reopened = open_store(tmp_path, problem)
    assert [p.asked for p in reopened.left_over()] == [1, 2]
    assert reopened.left_over()[0].row == (1,) * 8
    for pending in reopened.left_over():
        reopened.begin(pending)
    add(reopened, problem, 1)
    assert [p.asked for p in open_store(tmp_path, problem).left_over()] == [2]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_cut(tmp_path: Path, problem: SearchProblem, cut: int) -> None:
    store = open_store(tmp_path, problem)
    for number in range(3):
        add(store, problem, number)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    reopened = open_store(tmp_path, problem)
    assert len(reopened.records()) >= 2
    add(reopened, problem, 7)
    assert len(open_store(tmp_path, problem).records()) == len(reopened.records())


def lines_of(journal: Path) -> list[bytes]:
    return journal.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("how", ["gone", "doubled", "swapped", "edited"])
def test_lines_that_are_not_what_they_were_are_refused(
    how: str, tmp_path: Path, problem: SearchProblem
) -> None:
    store = open_store(tmp_path, problem)
    for number in range(3):
        add(store, problem, number)
    journal = tmp_path / "study.journal"
    whole = lines_of(journal)
    assert len(whole) >= 6
    for at, line in enumerate(whole):
        before, after = whole[:at], whole[at + 1 :]
        changed = {
            "gone": [*before, *after],
            "doubled": [*before, line, line, *after],
            "swapped": [*before, *after[:1], line, *after[1:]],
            "edited": [*before, line.replace(b"0", b"1", 1), *after],
        }[how]
        if changed == whole:
            continue
        journal.write_bytes(b"".join(changed))
        for read_only in (True, False):
            with pytest.raises(InputError, match=r"study\.journal"):
                TrialStore(journal, OBJECTIVES, problem.space, None, read_only=read_only)
        assert lines_of(journal) == changed, "what is damaged is left as it is"
    journal.write_bytes(b"".join(whole))
    assert len(open_store(tmp_path, problem).records()) == 3


def test_a_trial_that_the_search_did_not_store_is_refused(
    tmp_path: Path, problem: SearchProblem
) -> None:
    add(open_store(tmp_path, problem), problem, 0)
    study = optuna.load_study(
        study_name=STUDY_NAME, storage=open_journal(tmp_path / "study.journal")
    )
    study.set_user_attr("note", "of the dashboard")
    assert len(open_store(tmp_path, problem).records()) == 1
    study.add_trial(optuna.trial.create_trial(values=[0.1, 1.0]))
    with pytest.raises(InputError, match="trials that the search did not store"):
        open_store(tmp_path, problem)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"row": [1, ', b'"row": [2, '),
        (b'"asked": 1', b'"asked": 7'),
        (b"search", b"se\xffrch"),
        (b'"sha256": "', b'"sha256": "0'),
        (b"}\n", b"\n"),
    ],
)
def test_a_damaged_line_of_what_is_in_flight_is_left_out(
    old: bytes, new: bytes, tmp_path: Path, problem: SearchProblem, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path, problem)
    for number in (1, 2):
        store.begin(Pending(number, (number,) * 8, "search", {"how": 0.1}))
    file = tmp_path / "inflight.jsonl"
    content = file.read_bytes()
    assert content.count(old) >= 1
    file.write_bytes(content.replace(old, new, 1))
    with caplog.at_level(logging.WARNING):
        assert [p.asked for p in open_store(tmp_path, problem).left_over()] == [2]
    assert "inflight.jsonl, line 1: damaged" in caplog.text


def test_no_file_stays_open(tmp_path: Path, problem: SearchProblem) -> None:
    store = open_store(tmp_path, problem)
    for number in (1, 2):
        store.begin(Pending(number, (number,) * 8, "search"))
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if path.startswith(str(tmp_path))]


def test_a_lock_of_a_dead_writer_does_not_block(tmp_path: Path, problem: SearchProblem) -> None:
    add(open_store(tmp_path, problem), problem, 0)
    (tmp_path / "study.journal.lock").touch()
    add(open_store(tmp_path, problem), problem, 1)
    assert len(open_store(tmp_path, problem).records()) == 2


def test_failed_trials_are_stored_as_failed(tmp_path: Path, problem: SearchProblem) -> None:
    store = open_store(tmp_path, problem)
    stored = store.add(
        Pending(0, (0,) * 8, "search"),
        None,
        constraints={},
        finished_at=1.0,
        seconds=0.1,
        error="boom",
    )
    assert stored.state == TrialState.FAIL
    assert stored.user_attrs["error"] == "boom"
    assert open_store(tmp_path, problem).records() == []


def test_another_search_is_refused(tmp_path: Path, problem: SearchProblem) -> None:
    open_store(tmp_path, problem, budget=5)
    with pytest.raises(InputError, match="another budget"):
        open_store(tmp_path, problem, budget=6)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, problem: SearchProblem) -> None:
    (tmp_path / "study.journal").write_text("not a journal\n")
    with pytest.raises(InputError, match="journal"):
        open_store(tmp_path, problem)


def test_a_reader_that_comes_before_the_settings_writes_nothing(
    tmp_path: Path, problem: SearchProblem
) -> None:
    # As a driver leaves it that is killed between making the study and noting its settings.
    journal = tmp_path / "study.journal"
    optuna.create_study(
        study_name=STUDY_NAME, storage=open_journal(journal), directions=["maximize", "minimize"]
    )
    before = journal.read_bytes()
    reader = TrialStore(journal, OBJECTIVES, problem.space, read_only=True)
    assert reader.records() == []
    assert journal.read_bytes() == before
    open_store(tmp_path, problem, budget=7)
    open_store(tmp_path, problem, budget=7)


def test_a_short_outage_at_its_end_does_not_end_a_run(
    tmp_path: Path, problem: SearchProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    store = open_store(tmp_path, problem)
    add(store, problem, 0)
    finalist = Finalist(0, store.records()[0].design, {}, 10, 0.75, 0.5, (), "a.safetensors")
    read, outages = store._storage.get_study_user_attrs, [OSError("the server restarts")]

    def down_once(study_id: int) -> dict[str, Any]:
        if outages:
            raise outages.pop()
        return read(study_id)

    monkeypatch.setattr(store._storage, "get_study_user_attrs", down_once)
    store.note_finalists([finalist])
    assert not outages
    assert store.study.user_attrs["finalists"]["0"]["test_accuracy"] == 0.5
