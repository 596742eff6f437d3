"""Where trials are kept: a journal file, or any Optuna storage by its URL."""

from __future__ import annotations

import logging
import os
import re
import time
import urllib.parse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from epim_nas.errors import EpimError, InputError
from epim_nas.stored import Growing

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""How long a storage that does not answer is tried again."""
_FIRST_PAUSE_SECONDS = 1.0
_CONNECT_SECONDS = 10

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_MARK = "variable"


class StorageDown(EpimError):
    """The storage did not answer, however often it was asked."""


def check_url(url: str) -> str:
    """A storage's URL as a run file may hold it.

    Raises:
        InputError: not a URL, or one with a password in it.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    example = "such as postgresql+psycopg://user:${PGPASSWORD}@host/database"
    try:
        # With a mark in place of each variable: a password has to be such a mark and no more.
        marked = make_url(_VARIABLE.sub(_MARK, url))
    except ArgumentError:
        raise InputError(
            "search.storage", "is not the URL of a storage", f"a database URL {example}"
        ) from None
    secrets = [marked.password, *(marked.query.get(key) for key in ("password", "passwd"))]
    if any(secret and secret != _MARK for secret in secrets):
        raise InputError(
            "search.storage",
            "holds a password, which would be stored with the results",
            f"the name of an environment variable in its place, {example}",
        )
    return url


def expanded(url: str) -> str:
    """The URL with the values of its environment variables, ``${NAME}``.

    Raises:
        InputError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise InputError(
                "search.storage",
                f"the environment variable `{match[1]}` is not set",
                hint=f"Type `export {match[1]}=...` first.",
            )
        if url == match[0]:  # the whole URL
            return os.environ[match[1]]
        return urllib.parse.quote(os.environ[match[1]], safe="")

    return _VARIABLE.sub(value, url)


def open_url(url: str) -> BaseStorage:
    """The database behind a URL, its tables made where they are missing.

    Args:
        url: as in the run file; messages name it as it stands there, without its secrets.

    Raises:
        InputError: its driver is not installed, or it does not answer.
    """
    from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

    full = expanded(url)
    options = {"pool_pre_ping": True}
    if full.startswith(("postgresql", "mysql")):
        options["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}  # type: ignore[assignment]
    try:
        return RDBStorage(full, engine_kwargs=options)
    except ImportError as error:
        # Optuna wraps the driver's error in one of its own, with advice.
        module = getattr(error.__cause__ or error, "name", None) or "the database's driver"
        raise InputError(
            "search.storage",
            f"`{url}` needs the package `{module}`, which is not installed",
            hint="Install `epim_nas[postgresql]` or `epim_nas[mysql]`, or the driver itself.",
        ) from None
    except (DBAPIError, StorageInternalError) as error:
        raise InputError(
            "search.storage",
            f"`{url}` does not answer ({_reason(error)})",
            hint="Check that the server runs, that the database exists, that no other process has "
            "locked it, and its user's password.",
        ) from None
    except (ArgumentError, SQLAlchemyError) as error:
        raise InputError("search.storage", f"`{url}`: {_reason(error)}") from None


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
    return JournalStorage(_NotedFile(path, digest))


def repair_journal(path: Path, digest: Growing) -> None:
    """Make a killed writer's journal writable: cut a torn last line, remove its lock."""
    cut_torn_line(path)
    if path.exists():
        digest.note()  # of a line that was written just before a kill
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
    return lines[0].strip().rstrip(".") if lines else type(cause).__name__


def quiet_metric_names(set_names: Callable[[], None]) -> None:
    """Call ``Study.set_metric_names`` without its warning: it only names the values."""
    with warnings.catch_warnings():
        # "Experimental" in Optuna since 3.2.
        warnings.simplefilter("ignore", ExperimentalWarning)
        set_names()
