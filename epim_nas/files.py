"""Files: atomic replacement, safe YAML, digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from epim_nas.documents import dump_yaml as dump_yaml
from epim_nas.documents import parse_json, parse_yaml, yaml_problem
from epim_nas.errors import EpimError, InputError, os_error

_TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[^.]*)?", re.DOTALL)
"""Names of the temporary files of :func:`atomic_path`."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

_held: dict[Path, os.stat_result] = {}
"""Folders that this process has locked, without links -> what they were then."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block succeeds.

    A reader sees the old file or the whole new one, also after a crash; on an exception the
    temporary file is removed and ``path`` is left as it was.

    Raises:
        InputError: ``path`` is there and no regular file (see :func:`check_replaceable`).
        OSError: it cannot be written, however the writing library says so; with its name.
    """
    path = Path(path)
    check_replaceable(path)
    make_parents(path)
    with naming(path):
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            # mkstemp makes files that only the owner can read; results are for the group as well.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give the operating system's errors of the block the name of the file that it writes.

    Raises:
        OSError: with a name, also where a library has wrapped it in an error of its own.
    """
    try:
        yield
    except EpimError:
        raise
    except Exception as error:
        cause = os_error(error)
        if cause is None or (cause is error and not _is_nameless(cause)):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _is_nameless(error: OSError) -> bool:
    """Whether an error says no name, or the temporary one."""
    name = error.filename
    return name is None or bool(_TEMPORARY.fullmatch(os.path.basename(os.fsdecode(name))))


def check_replaceable(path: Path, field: str | None = None) -> None:
    """Check that a path is free, or a regular file: only these may be replaced by a file.

    Args:
        path: the path.
        field: option that gave it, for the message; by default the path itself.

    Raises:
        InputError: a folder, a device, a FIFO, a socket, or a symbolic link, dangling or not.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # whoever writes it says why it cannot be
        return
    kinds = {
        "a folder": stat.S_ISDIR,
        "a symbolic link": stat.S_ISLNK,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
        "a FIFO": stat.S_ISFIFO,
    }
    if stat.S_ISREG(mode):
        return
    kind = next((kind for kind, is_one in kinds.items() if is_one(mode)), "no regular file")
    problem = f"is {kind}" if field is None else f"`{path}` is {kind}"
    raise InputError(
        field or str(path), f"{problem}, which is not replaced", "a regular file, or a new one"
    )


def make_parents(path: Path) -> None:
    """Make the folders that a file is to lie in.

    Raises:
        OSError: they cannot be made; or they belong to a folder that this process holds
            (:func:`locked`) and that is gone: a part of it is not made again.
    """
    parents = Path(os.path.realpath(path)).parents
    for folder, found in _held.items():
        if folder in parents and not _is_there(folder, found):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    path.parent.mkdir(parents=True, exist_ok=True)


def safe_name(name: str) -> str:
    """A name from outside as the name of a file or folder, another one for every name.

    Names of layers, chips and designs may hold anything: ``/``, ``..``, line breaks, thousands of
    characters. Simple ones stay as they are; others get a digest at their end.
    """
    if _SAFE_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80].lstrip("-") or "_"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def make_folder(path: str | Path, field: str) -> Path:
    """Make a folder for results, with its parents; one that is there is fine.

    Args:
        path: the folder.
        field: option that gave it, for the message.

    Raises:
        InputError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(field, f"`{path}` is a file", "a folder, there or not yet") from None
    except OSError as error:
        raise InputError(
            field, f"`{path}` cannot be made: {error.strerror}", "a folder that can be written"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(field, f"`{path}` cannot be written", "a folder that can be written")
    return path


def check_file_out(path: Path, field: str, hint: str = "") -> None:
    """Check that a file can be written, before it is computed.

    Args:
        path: the file.
        field: what gave it, for the message.
        hint: what to do where it cannot be written.

    Raises:
        InputError: there is something else in its place, or its folder cannot be made or written.
    """
    check_replaceable(path, field)
    try:
        make_folder(path.parent, field)
    except InputError as error:
        raise InputError(field, error.problem, error.allowed, hint or error.hint) from None


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while the block runs; the lock ends with the process, however it ends.

    Temporary files that a killed process has left in it are removed.

    Args:
        folder: the folder; it has to exist.
        what: what runs in it, for the message.

    Raises:
        InputError: another process holds it.
        EpimError: it was moved or deleted meanwhile.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    held = Path(os.path.realpath(folder))
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                str(folder),
                f"another {what} is running in this folder",
                hint="Wait for it, or use another --out folder.",
            ) from None
        _remove_temporary(folder)
        _held[held] = found = os.stat(held)
        try:
            yield
        except Exception:
            if _is_there(held, found):
                raise
            raise EpimError(
                f"{folder}: the folder was moved or deleted while the {what} wrote into it. Move "
                "it back, or give its new place with --out, and type the command again."
            ) from None
    finally:
        _held.pop(held, None)
        os.close(descriptor)


def _is_there(folder: Path, found: os.stat_result) -> bool:
    """Whether a folder is still the one that was found there."""
    try:
        return os.path.samestat(os.stat(folder), found)
    except OSError:
        return False


def _remove_temporary(folder: Path) -> None:
    """Remove what a killed process has left of :func:`atomic_path`."""
    for path in folder.rglob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` atomically by ``text`` (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Replace ``path`` atomically by ``data`` as JSON."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def load_json(path: str | Path, hint: str = "") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        hint: what to do where it is damaged.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise InputError(str(path), f"is damaged: {error}", hint=hint) from None


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: the file is missing, unreadable or not YAML of plain values.
    """
    text = read_text(path, _MOST_YAML_BYTES)
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(str(path), f"not valid YAML{yaml_problem(error)}") from None


_MOST_BYTES = 2**31
"""Largest text file that is read (2 GiB)."""
_MOST_YAML_BYTES = 2**23
"""Largest YAML file (8 MiB, a minute of reading); a network of 10,000 layers has a tenth of it."""


def read_text(path: str | Path, most: int = _MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        InputError: the file is missing, no regular file, too large, or not readable as text.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(str(path), "not a text file (UTF-8)") from None


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        most: bytes that it may have.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        InputError: the file is missing, no regular file, too large, or not readable.
    """
    try:
        # A pipe without a writer would wait for one; what is no file is refused below.
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(str(path), "is a device, a pipe or a socket", "a regular file")
            if most is not None and status.st_size > most:
                raise InputError(
                    str(path), f"has {status.st_size:,} bytes", f"at most {most:,} bytes"
                )
            return file.read()
    except FileNotFoundError:
        raise InputError(str(path), "no such file", hint="Check the path.") from None
    except IsADirectoryError:
        raise InputError(str(path), "is a folder, not a file") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(repr(str(path)), "is not a path: it has a NUL") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def user_path(text: str | Path, field: str) -> Path:
    """A path that a user gave, with ``~`` and ``~name`` replaced by the home folder.

    Args:
        text: the path.
        field: where it was given, for the message.

    Raises:
        InputError: it is empty, or it cannot be a path: it has a character that names of files
            cannot have (NUL), a name is too long, or there is no such user.
    """
    given = str(text)
    if not given.strip():
        raise InputError(field, "is empty", "a path", "Give a path, or leave it out.")
    try:
        path = Path(given).expanduser()
        os.lstat(path)
    except RuntimeError:
        user = Path(given).parts[0][1:]
        raise InputError(field, f"`{given}`: no user `{user}`", hint="Check the path.") from None
    except (OSError, ValueError) as error:
        # Whether the path is there, or may be read, is the reader's question.
        if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                field, f"`{given}`: no path ({reason})", hint="Check the path."
            ) from None
    return path


def digest(data: Any) -> str:
    """SHA-256 (hex) of ``data`` as canonical JSON: the identity of a configuration."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )
