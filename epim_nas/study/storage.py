"""Where trials are kept: a journal file, or any Optuna storage by its URL."""

from __future__ import annotations

import gc
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from epim_nas.errors import EpimError, InputError
from epim_nas.stored import Growing
from epim_nas.study.storage_url import FIELD, expanded, without_secrets

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""How long a storage that does not answer is tried again."""
_FIRST_PAUSE_SECONDS = 1.0
_CONNECT_SECONDS = 10


class StorageDown(EpimError):
    """The storage did not answer, however often it was asked."""


def open_url(url: str) -> RDBStorage:
    """The database behind a URL, its tables made where they are missing.

    Args:
        url: as in the run file; messages name it as it stands there, without its secrets.

    Raises:
        InputError: its driver is not installed, it does not answer, its tables are of another
            version of Optuna, or it lives in this process's memory.
    """
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    full = expanded(url)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if full.startswith(("postgresql", "mysql")):
        options["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}
    if full.startswith("sqlite"):
        # No connection outlives its use, so that a database in memory has lost the tables when
        # Optuna looks at them again: that holds for every form of its URL.
        options["poolclass"] = NullPool
    try:
        # Optuna's own check raises RuntimeError with a text alone.
        storage = RDBStorage(full, engine_kwargs=options, skip_compatibility_check=True)
        _check_version(storage, url)
        return storage
    except InputError:
        raise
    except ImportError as error:
        # Optuna wraps the driver's error in one of its own, with advice.
        module = getattr(error.__cause__ or error, "name", None) or "the database's driver"
        raise InputError(
            FIELD,
            f"`{url}` needs the package `{module}`, which is not installed",
            hint="Install `epim_nas[postgresql]` or `epim_nas[mysql]`, or the driver itself.",
        ) from None
    except (DBAPIError, StorageInternalError) as error:
        if "no such table" in _reason(error):
            raise InputError(
                FIELD,
                f"`{url}` is a database in memory: its trials would be lost with this process",
                "a database that another process can open, such as sqlite:///trials.db",
            ) from None
        raise InputError(
            FIELD,
            f"`{url}` does not answer ({_reason(error)})",
            hint="Check that the server runs, that the database exists, that no other process has "
            "locked it, and its user's password.",
        ) from None
    except Exception as error:  # what a driver raises at a wrong part of the URL is its own affair
        raise InputError(FIELD, f"`{url}`: {_reason(error)}") from None


def _check_version(storage: RDBStorage, url: str) -> None:
    found, needed = storage.get_current_version(), storage.get_head_version()
    if found == needed:
        return
    older = found in storage.get_all_versions()
    raise InputError(
        FIELD,
        f"`{url}` holds tables of {'an older' if older else 'a newer'} version of Optuna than "
        f"{optuna.__version__} ({found})",
        f"tables of {needed}",
        f'Type `optuna storage upgrade --storage "{url}"`, or name another database.'
        if older
        else "Install a newer Optuna, or name another database.",
    )


class _NotedFile(JournalFileBackend):
    """A journal file whose digest is noted with every line."""

    def __init__(self, path: Path, digest: Growing | None) -> None:
        # The lock is a file that dies with its owner's stale age.
        super().__init__(str(path), lock_obj=JournalFileOpenLock(str(path)))
        self._digest = digest

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        super().append_logs(logs)
        if self._digest is not None:
            self._digest.note()


def open_journal(path: Path, digest: Growing | None = None) -> JournalStorage:
    """The storage of a journal file.

    Args:
        path: the file.
        digest: notes the digest of what is written.
    """
    with collector_paused():
        return JournalStorage(_NotedFile(path, digest))


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without Python's garbage collector: it would go through all trials again and again.

    For what makes many objects at once that stay.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def repair_journal(path: Path) -> None:
    """Make a killed writer's journal writable: cut a torn last line, remove its lock."""
    cut_torn_line(path)
    for lock in path.parent.glob(f"{path.name}.lock*"):
        # The run folder is locked by this process, so a journal lock is a dead driver's.
        lock.unlink(missing_ok=True)


def cut_torn_line(path: Path) -> None:
    """Cut a last line without an end, which a kill or a full disk leaves.

    What is written after it would be a part of it, and the journal unreadable.
    """
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            log.warning("%s: the last line is torn; cut it", path)
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())


def patiently(action: Callable[[], T], what: str) -> T:
    """What an action returns, tried again with growing pauses while the storage does not answer.

    Args:
        action: may be repeated.
        what: the storage, for messages.

    Raises:
        StorageDown: it did not answer for :data:`PATIENCE_SECONDS`.
        OSError: a file that may not be read or written, or a folder that is gone.
    """
    from sqlalchemy.exc import DBAPIError

    started, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except (PermissionError, FileNotFoundError):
            raise  # a file's: waiting does not help
        except (DBAPIError, StorageInternalError, OSError) as error:
            waited = time.monotonic() - started
            if waited + pause > PATIENCE_SECONDS:
                raise StorageDown(
                    f"{what} did not answer for {waited:.0f} s ({_reason(error)})"
                ) from None
            log.warning(
                "%s does not answer (%s); trying again in %.0f s", what, _reason(error), pause
            )
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE_SECONDS / 4)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; SQL statements and parameters are left out."""
    cause = error
    while (inner := getattr(cause, "orig", None) or cause.__cause__) is not None:
        cause = inner
    lines = str(cause).strip().splitlines()
    return without_secrets(lines[0].strip().rstrip(".") if lines else type(cause).__name__)


def quiet_metric_names(set_names: Callable[[], None]) -> None:
    """Call ``Study.set_metric_names`` without its warning: it only names the values."""
    with warnings.catch_warnings():
        # "Experimental" in Optuna since 3.2.
        warnings.simplefilter("ignore", ExperimentalWarning)
        set_names()
