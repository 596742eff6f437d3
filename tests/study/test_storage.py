"""URLs of storages: what a run file may hold, and what a message may say."""

from __future__ import annotations

import resource
import signal
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.study import storage
from epim_nas.study.inflight import Pending
from epim_nas.study.storage import StorageDown, open_url, patiently
from epim_nas.study.storage_url import HARMLESS, check_url, expanded, without_secrets
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


SECRET_PARTS = [
    "postgresql://user:SECRET@host/db",
    "postgresql://:SECRET@host/db",
    "postgresql://user@host/db?password=SECRET",
    "postgresql://user@host/db?Password=SECRET",
    "postgresql://user@host/db?sslmode=require&sslpassword=SECRET",
    "postgresql://user@host/db?passfile=SECRET",
    "mysql+pymysql://user@host/db?ssl_key=SECRET",
    "mssql+pyodbc://?odbc_connect=DRIVER%3D%7BX%7D%3BPWD%3DSECRET",
    "mssql+pyodbc://user@host/db?driver=X&password=a&password=SECRET",
    "sqlite+pysqlcipher://:SECRET@/trials.db",
    "postgresql://user@host/db?SECRET",
    "postgresql://user@host/db?SECRET=",
    "postgresql://user@host/db?sslmode=require&SECRET",
    "postgresql:///user:SECRET@host/db",
    "postgresql://user:pass@host:SECRET@host/db",
    "postgresql://user@host:SECRET/db",
    "postgresql://host/db;PWD=SECRET",
    "postgresql://user@host/db?sslmode=require\n&password=SECRET",
]
"""Where a secret may stand in a URL, also in one that is not well-formed."""


@pytest.mark.parametrize("url", SECRET_PARTS)
@pytest.mark.parametrize("secret", ["hunter2", "hunter2${SET}", "hunter2%40"])
def test_a_secret_is_neither_taken_nor_shown(url: str, secret: str) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url.replace("SECRET", secret))
    assert "hunter2" not in str(caught.value)
    assert caught.value.field == "search.storage"


@given(key=st.from_regex(r"[A-Za-z_]{1,12}", fullmatch=True))
def test_what_is_not_known_to_be_harmless_is_hidden(key: str) -> None:
    url = f"postgresql://user@host/db?{key}=hunter2"
    if key.casefold() in HARMLESS:
        assert check_url(url) == url
    else:
        with pytest.raises(InputError, match="password or another secret"):
            check_url(url)
        assert check_url(url.replace("hunter2", "${SECRET}"))


def test_no_secret_reaches_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    change = "search.storage=mysql+pymysql://me@host/db?ssl_key=hunter2"
    assert run_command(["search", "demo", "--out", str(out), "--set", change]) == 2
    captured = capsys.readouterr()
    assert "search.storage" in captured.err
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "hunter2" not in captured.out + captured.err + written


PLACES = {
    "drivername": "${X}://user@host/db",
    "username": "postgresql://${X}@host/db",
    "password": "postgresql://user:${X}@host/db",
    "host": "postgresql://user@${X}/db",
    "port": "postgresql://user@host:${X}/db",
    "database": "postgresql://user@host/${X}",
    "query": "postgresql://user@host/db?sslmode=${X}",
}


@given(
    place=st.sampled_from(sorted(PLACES)),
    value=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
    | st.sampled_from(["5432", "p@ss/wo:rd", "a b", "x%40y", "[::1]", "${Y}", "a&b=c", "{0}"]),
)
def test_a_variable_works_in_every_part_or_is_refused(place: str, value: str) -> None:
    url = PLACES[place]
    assert check_url(url) == url
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("X", value)
        refused = ""
        try:
            found = make_url(expanded(url))
        except InputError as error:
            refused = str(error)
    if refused:
        assert "`X`" in refused
        assert place not in ("username", "password", "query")
        return
    whole = make_url(url.replace("${X}", "1"))
    assert (found.query["sslmode"] if place == "query" else str(getattr(found, place))) == value
    if place != "query":
        assert found.query == whole.query
    others = set(PLACES) - {place, "query"}
    assert all(getattr(found, other) == getattr(whole, other) for other in others)


def test_a_variable_may_hold_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_url("${EPIM_TEST_URL}") == "${EPIM_TEST_URL}"
    monkeypatch.setenv("EPIM_TEST_URL", "postgresql://user:hunter2@host/db?sslpassword=dolphin")
    assert make_url(expanded("${EPIM_TEST_URL}")).password == "hunter2"
    said = "no: user hunter2 at postgresql://user:hunter2@host/db, dolphin"
    assert "hunter2" not in without_secrets(said)
    assert "dolphin" not in without_secrets(said)
    monkeypatch.setenv("EPIM_TEST_URL", "hunter3")
    with pytest.raises(InputError, match="is not the URL") as caught:
        expanded("${EPIM_TEST_URL}")
    assert "hunter3" not in str(caught.value)
    with pytest.raises(InputError, match=r"the name of a variable"):
        check_url("sqlite:///${A-B}.db")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:trials?mode=memory&uri=true",
        "sqlite:///file:trials?mode=memory&cache=shared&uri=true",
        "sqlite:///file:/trials?vfs=memdb&uri=true",
        "sqlite:///file:?uri=true",
        "${EPIM_TEST_URL}",
    ],
)
def test_a_database_in_memory_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPIM_TEST_URL", "sqlite://")
    with pytest.raises(InputError, match="is a database in memory"):
        open_url(check_url(url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["sqlite:///a b.db", "sqlite:///file:c.db?mode=rwc&uri=true"])
def test_a_database_in_a_file_is_not(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_url(url)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("version", "words"),
    [("v2.6.0.a", "optuna storage upgrade"), ("v99.0.0.a", "Install a newer Optuna")],
)
def test_tables_of_another_optuna_are_named(
    version: str, words: str, problem: SearchProblem, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    open_url(url)
    with sqlite3.connect(tmp_path / "trials.db") as database:
        database.execute("update alembic_version set version_num = ?", [version])
    for settings in (None, {"seed": 1}):  # as `pareto` and as `search`
        with pytest.raises(InputError, match=words) as caught:
            TrialStore(
                tmp_path / "study.journal", ["accuracy"], problem.space, settings,
                read_only=settings is None, storage=url,
            )  # fmt: skip
        assert caught.value.problem.startswith(f"`{url}` holds tables of")


def test_what_a_driver_refuses_is_no_bug(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/a.db?timeout=soon", f"sqlite:///{tmp_path}/no/a.db"):
        with pytest.raises(InputError, match=r"search\.storage"):
            open_url(url)


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
