"""What a job takes along: Python sources of the user's modules, and the files that are listed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from epim_nas.errors import InputError
from epim_nas.imports import here_importable

_MOST_FILES = 1000
_MOST_BYTES = 20_000_000
_SHOWN = 40
_INSTALLED = {"site-packages", "dist-packages"}
RESERVED = ("run.yaml", "job.sh")
"""Names that the job's own files have beside what it takes along."""


@dataclass(frozen=True)
class Bundle:
    """Files that go along.

    Attributes:
        files: path as the job sees it -> the file here.
    """

    files: dict[PurePosixPath, Path]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.stat().st_size for file in self.files.values())

    def copy(self, folder: Path) -> None:
        """Make ``folder`` hold these files and no others."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, file in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)

    def lines(self) -> list[str]:
        """The files and their sizes, to be read before they are sent."""
        if not self.files:
            return ["No modules or files go along."]
        lines = [f"{len(self.files)} files go along, {self.size} bytes in all:"]
        listed = sorted(self.files.items())
        lines += [f"  {name}  {file.stat().st_size}" for name, file in listed[:_SHOWN]]
        return lines + ([f"  and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else [])


def collect(modules: Iterable[str], included: Iterable[Path]) -> Bundle:
    """Find what goes along.

    Args:
        modules: names of modules and packages; those that are installed stay where they are. Of the
            others only the Python sources are taken.
        included: files and folders that are listed; of a folder all files whose names, and those
            of their folders, do not begin with a dot.

    Raises:
        InputError: one is not found, or they are too many or too large.
    """
    files: dict[PurePosixPath, Path] = {}
    for module in modules:
        for place in _places(module):
            files |= _below(place, PurePosixPath(place.name), sources=True)
    for path in included:
        if not path.exists():
            raise InputError("--include", f"`{path}` is not there", "files and folders")
        # As it is seen from here, since the job starts where its modules lie.
        absolute = Path(os.path.abspath(path))
        inside = absolute.is_relative_to(Path.cwd()) and absolute != Path.cwd()
        name = absolute.relative_to(Path.cwd()) if inside else Path(absolute.name)
        files |= _below(absolute, PurePosixPath(name.as_posix()), sources=False)
    taken = [name for name in RESERVED if PurePosixPath(name) in files]
    if taken:
        raise InputError("--include", f"`{taken[0]}` is a name of the job's own files")
    bundle = Bundle(files)
    if len(files) > _MOST_FILES or bundle.size > _MOST_BYTES:
        largest = max(files.values(), key=lambda file: file.stat().st_size)
        raise InputError(
            "run file",
            f"{len(files)} files with {bundle.size} bytes would go along; the largest is {largest}",
            f"at most {_MOST_FILES} files and {_MOST_BYTES} bytes",
            "Install large packages on the cluster, and put data where its machines see it.",
        )
    return bundle


def _places(module: str) -> Iterator[Path]:
    """Where a module of the user lies: a file, or the folders of a package."""
    with here_importable():  # where `epim-nas search` looks as well
        found = importlib.util.find_spec(module)
    if found is None:
        raise InputError(
            "run file",
            f"its module `{module}` is not found from {Path.cwd()}",
            "a module in the current folder, or an installed one",
        )
    standard = sysconfig.get_paths()["stdlib"]
    for place in found.submodule_search_locations or ([found.origin] if found.origin else []):
        path = Path(place)
        # Also those of the user and of the system, which a virtual environment may see.
        installed = path.is_relative_to(standard) or _INSTALLED & set(path.parts)
        if installed or module == "epim_nas":
            return
        if path.exists():  # not `built-in`
            yield path


def _below(path: Path, name: PurePosixPath, sources: bool) -> dict[PurePosixPath, Path]:
    """The regular files at a path: name -> file.

    Args:
        path: a file or a folder.
        name: what it is called in the job.
        sources: take only what Python can import by name.
    """
    if not path.is_dir():
        return {name: path} if path.is_file() else {}
    found = {}
    seen = set()
    for folder, inner, files in os.walk(path, followlinks=True):
        here = Path(folder)
        seen.add(here.resolve())
        inner[:] = sorted(
            each
            for each in inner
            if (each.isidentifier() and each != "__pycache__" if sources else each[0] != ".")
            and (here / each).resolve() not in seen  # a link to a folder around it
            and not (sources and (here / each / "pyvenv.cfg").exists())
        )
        for each in sorted(files):
            wanted = each.endswith(".py") if sources else True
            if wanted and each[0] != "." and (here / each).is_file():
                found[name / (here / each).relative_to(path).as_posix()] = here / each
    return found
