"""Files below a folder: through links, and with a word about what is left out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from epim_nas.errors import InputError

_SHOWN = 3

_LOOPS = "link(s) back to a folder above"
_HIDDEN = "hidden file(s) or folder(s)"
_OTHER = "other file(s)"


class Listing:
    """Finds files below a folder, and remembers what it has passed over.

    Hidden names are passed over on every level. Links are followed; one that leads back to a folder
    that it lies in is passed over, one that leads nowhere is an error.

    Args:
        root: the folder; messages name what is left out from here.
        suffixes: how the names of wanted files end, in lower case.
        field: where the folder was given, for messages.
    """

    def __init__(self, root: Path, suffixes: Collection[str], field: str) -> None:
        self.root = root
        self.suffixes = suffixes
        self.field = field
        self._left_out: defaultdict[str, dict[str, None]] = defaultdict(dict)  # sets in order
        absolute = root.absolute()
        self._above = {_identity(path) for start in (absolute, absolute.resolve())
                       for path in (start, *start.parents)}  # fmt: skip

    def folders(self) -> tuple[str, ...]:
        """Names of the folders in the root, sorted."""
        names = []
        for entry in self._visible(self.root):
            if entry.is_dir():
                names.append(entry.name)
            else:
                self._pass_over(_OTHER, entry.path)
        return tuple(names)

    def loose(self) -> tuple[str, ...]:
        """Names of the wanted files that lie in the root itself, sorted."""
        return tuple(
            entry.name
            for entry in self._visible(self.root)
            if entry.is_file() and self._is_wanted(entry.name)
        )

    def files(self, name: str) -> list[str]:
        """Paths of the wanted files below one of the root's folders, on any level, sorted."""
        found: list[str] = []
        first = self.root / name
        waiting = [(first, self._above)]
        while waiting:
            folder, above = waiting.pop()
            identity = _identity(folder)
            if identity in above:
                self._pass_over(_LOOPS, str(folder))
                continue
            for entry in self._visible(folder):
                if entry.is_dir():
                    waiting.append((Path(entry.path), above | {identity}))
                elif entry.is_file() and self._is_wanted(entry.name):
                    found.append(entry.path)
                else:
                    self._pass_over(_OTHER, entry.path)
        return sorted(found)

    def left_out(self) -> str:
        """What was passed over so far, in words; empty if nothing was."""
        return ", ".join(
            f"{len(paths)} {what} ("
            + ", ".join(f"`{os.path.relpath(path, self.root)}`" for path in islice(paths, _SHOWN))
            + (", ...)" if len(paths) > _SHOWN else ")")
            for what, paths in self._left_out.items()
        )

    def _visible(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"{self.field}: {folder}",
                f"cannot be read: {error.strerror}",
                hint="Check its permissions.",
            ) from None
        for entry in listed:
            if entry.name.startswith("."):
                # Files such as .DS_Store are of no interest, images are.
                if entry.is_dir(follow_symlinks=False) or self._is_wanted(entry.name):
                    self._pass_over(_HIDDEN, entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(
                    f"{self.field}: {entry.path}",
                    f"is a link that leads nowhere, to `{os.readlink(entry.path)}`",
                    hint="Mend or remove the link.",
                )
            else:
                yield entry

    def _pass_over(self, what: str, path: str) -> None:
        self._left_out[what][path] = None

    def _is_wanted(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.suffixes


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
