"""Files: atomic replacement, safe YAML, digests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from epim_nas.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block succeeds.

    A reader sees the old file or the whole new one, also after a crash; on an exception the
    temporary file is removed and ``path`` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
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


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while the block runs; the lock ends with the process, however it ends.

    Args:
        folder: the folder; it has to exist.
        what: what runs in it, for the message.

    Raises:
        InputError: another process holds it.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                str(folder),
                f"another {what} is running in this folder",
                hint="Wait for it, or use another --out folder.",
            ) from None
        yield
    finally:
        os.close(descriptor)


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
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(str(path), f"is damaged: not valid JSON at {where}", hint=hint) from None


def dump_yaml(data: Any) -> str:
    """``data`` as YAML in insertion order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` is given twice", key_node.start_mark
                )
            if isinstance(key, (str, int, float)):
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, as PyYAML reads it, takes `1e-3` for text; everyone means the number (YAML 1.2).
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, or a key is given twice.
    """
    return yaml.load(text, Loader=_UniqueKeyLoader)


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: the file is missing, unreadable or not YAML.
    """
    text = read_text(path)
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise InputError(str(path), f"not valid YAML{where}: {problem}") from None


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: the file is missing, a folder, or not readable as text.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(str(path), "not a text file (UTF-8)") from None


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: the file is missing, a folder, or not readable.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(str(path), "no such file", hint="Check the path.") from None
    except IsADirectoryError:
        raise InputError(str(path), "is a folder, not a file") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


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
