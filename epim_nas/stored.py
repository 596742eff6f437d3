"""Files that are read back later: a digest is noted when they are written, compared when read.

The digest of ``DIR/NAME`` stands in ``DIR/.digests/NAME.sha256``, for any format. A line there is a
SHA-256 and the number of bytes that it covers. It is noted *before* the file is replaced, beside
that of the old file, which is dropped afterwards: whenever a process is killed, the file is one of
those that are noted.

A file that was removed is no fault: that is how users have something computed again. A file without
a note (of an earlier version, or of the user) is taken as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epim_nas.errors import InputError
from epim_nas.files import atomic_path, file_digest, read_bytes, write_text

log = logging.getLogger(__name__)

DIGESTS = ".digests"
"""Folder, beside the files, of their digests."""

_LINE = re.compile(r"([0-9a-f]{64}) (\d{1,18})")

Digest = tuple[str, int]
"""SHA-256 (hex), and the number of bytes from the start of the file that it covers."""


def digest_file(path: Path) -> Path:
    """The file with the digest of a file."""
    return path.parent / DIGESTS / f"{path.name}.sha256"


@contextmanager
def store_path(path: str | Path) -> Iterator[Path]:
    """As :func:`~epim_nas.files.atomic_path`, for a file that is read back: notes its digest."""
    path = Path(path)
    with atomic_path(path) as temporary:
        yield temporary
        new = _digest_of(temporary)
        old = (_noted(path) or [_digest_of(path)]) if path.exists() else []
        _note(path, [new, *old])
    _note(path, [new])


def store_text(path: str | Path, text: str) -> None:
    """Replace ``path`` atomically by ``text`` (UTF-8), and note its digest."""
    with store_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def store_json(path: str | Path, data: Any) -> None:
    """Replace ``path`` atomically by ``data`` as JSON, and note its digest."""
    store_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def remove_stored(path: Path) -> None:
    """Remove a file and its digest; either may be missing."""
    path.unlink(missing_ok=True)
    digest_file(path).unlink(missing_ok=True)


def check_stored(path: str | Path, hint: str = "", folder: Path | None = None) -> None:
    """Check that a file is as it was stored.

    Args:
        path: the file.
        hint: what to do where it is not.
        folder: the folder whose files should all have a digest; where this one has none, it is
            said, once.

    Raises:
        InputError: the file is not what was stored, or cannot be read.
    """
    path = Path(path)
    noted = _noted(path)
    while True:
        content = read_bytes(path)
        if (hashlib.sha256(content).hexdigest(), len(content)) in noted:
            return
        before, noted = noted, _noted(path)
        if noted == before:  # else it was replaced meanwhile, by a search that goes on
            break
    if noted:
        raise _damaged(path, hint)
    if folder is not None:
        _say_unchecked(folder)


class Growing:
    """The digest of a file to which lines are appended, such as a journal.

    It covers what was there after the last append but for a moment: a kill in between leaves a
    line more, which is fine. The digest before the last append is noted as well, so that a last
    line that is torn can be told from one that is gone.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = hashlib.sha256()
        self._size = 0

    def check(self, hint: str = "") -> None:
        """Check that the lines that were noted are there, unchanged; others may follow.

        Raises:
            InputError: they are not.
        """
        # The other way round, a running search could append and note in between.
        noted = _noted(self._path)
        if not self._path.exists():
            return
        content = read_bytes(self._path)
        if not noted:
            if content:
                _say_unchecked(self._path.parent)
            return
        found = next((digest for digest in noted if _covers(digest, content)), None)
        torn = content[found[1] :] if found is not None and found != noted[0] else None
        if found is None or (
            torn is not None and (not torn or b"\n" in torn or len(content) >= noted[0][1])
        ):
            raise _damaged(self._path, hint, "lines are missing, doubled or changed")
        if torn:
            log.warning("%s: the last line is torn and is left out", self._path)
        self._advance(content[: found[1]])

    def note(self) -> None:
        """Note the file as it is, up to the end of its last whole line."""
        with open(self._path, "rb") as file:
            file.seek(self._size)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        if new:
            before = (self._sha256.hexdigest(), self._size)
            self._advance(new)
            _note(self._path, [(self._sha256.hexdigest(), self._size), before])

    def _advance(self, content: bytes) -> None:
        self._sha256.update(content)
        self._size += len(content)


def _digest_of(path: Path) -> Digest:
    return file_digest(path), path.stat().st_size


def _covers(digest: Digest, content: bytes) -> bool:
    sha256, size = digest
    return len(content) >= size and hashlib.sha256(content[:size]).hexdigest() == sha256


def _damaged(path: Path, hint: str, what: str = "its content has changed") -> InputError:
    return InputError(
        str(path),
        f"is damaged: {what} since it was stored",
        "the file whose SHA-256 is in " + str(digest_file(path)),
        hint or "Restore it from a copy; or remove that digest to use the file as it is.",
    )


@functools.cache
def _say_unchecked(folder: Path) -> None:
    log.warning("%s has files without digests, of an earlier version: they are not checked", folder)


def _note(path: Path, digests: Sequence[Digest]) -> None:
    write_text(digest_file(path), "".join(f"{sha256} {size}\n" for sha256, size in digests))


def _noted(path: Path) -> list[Digest]:
    """The digests of a file, the newest first; one that no file has where the note is damaged."""
    try:
        lines = digest_file(path).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        lines = []
    found = [_LINE.fullmatch(line) for line in lines]
    return [(match[1], int(match[2])) for match in found if match] or [("", -1)]
