"""The run folder: what lies where, and that one run at a time writes into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from epim_nas.documents import parse_json
from epim_nas.errors import InputError
from epim_nas.files import dump_yaml, load_yaml, locked, make_folder, read_bytes
from epim_nas.pipeline.config import CHANGED_RUN_FILE, RunConfig
from epim_nas.schema import STORED, load_json_as, validate
from epim_nas.stored import check_stored, store_json, store_text

T = TypeVar("T")

_DAMAGED = "Delete it and run the search again."

LAUNCH = "launch"
"""Folder, inside of a run folder, of what launchers write; it may be there before the run."""

CHANGEABLE = (
    "executor", "device", "reuse", "search.trials", "finalists.count", "supernet.workers"
)  # fmt: skip
"""Keys that may differ when a run is resumed: where it runs, and how long."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved run file."""
        return self.path / "run.yaml"

    @property
    def network(self) -> Path:
        """The traced network."""
        return self.path / "network.yaml"

    @property
    def space(self) -> Path:
        """The resolved search space."""
        return self.path / "space.json"

    @property
    def chip(self) -> Path:
        """The resolved chip."""
        return self.path / "chip.yaml"

    @property
    def baseline(self) -> Path:
        """Accuracy and cost of the dense network."""
        return self.path / "baseline.json"

    @property
    def budget(self) -> Path:
        """The limits that hold for every design."""
        return self.path / "budget.json"

    @property
    def supernet(self) -> Path:
        """Samples of the loss of the supernet's training."""
        return self.path / "supernet.json"

    @property
    def journal(self) -> Path:
        """The Optuna journal."""
        return self.path / "study.journal"

    @property
    def study(self) -> Path:
        """The name of the run's study, where its trials are in a database."""
        return self.path / "study.json"

    @property
    def checkpoints(self) -> Path:
        """Weights and states of trainings."""
        return self.path / "checkpoints"

    @property
    def finalists(self) -> Path:
        """One file per fine-tuned design."""
        return self.path / "finalists"

    @property
    def designs(self) -> Path:
        """One design file per design of the front."""
        return self.path / "designs"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def versions(self) -> Path:
        """Versions of the packages that the run was made with."""
        return self.path / "versions.json"

    @property
    def report(self) -> Path:
        """The interactive report."""
        return self.path / "report.html"

    @property
    def has_work(self) -> bool:
        """Whether anything is stored that took time to compute."""
        return (
            self.baseline.exists() or self.journal.exists() or any(self.checkpoints.glob("[!.]*"))
        )

    @property
    def log(self) -> Path:
        """The log."""
        return self.path / "log.txt"

    @property
    def progress(self) -> Path:
        """Seconds by stage."""
        return self.path / "stages.json"

    def parse(self, path: Path, make: Callable[[Any], T]) -> T:
        """What ``make`` makes of the content of a JSON file of this folder.

        Raises:
            InputError: the file is missing or damaged.
        """
        _check_there(path)
        content = read_bytes(path)
        try:
            value = make(parse_json(content))
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(str(path), f"is damaged ({reason})", hint=_DAMAGED) from None
        check_stored(path, _DAMAGED, self.path)
        return value

    def read(self, path: Path, load: Callable[[str], T]) -> T:
        """What ``load`` makes of another file of this folder; its errors name the file.

        Raises:
            InputError: the file is missing or damaged.
        """
        value = load(str(path))
        check_stored(path, _DAMAGED, self.path)
        return value

    def load(self, path: Path, kind: type[T]) -> T:
        """The content of a JSON file of this folder as a type of plain values.

        Args:
            path: the file.
            kind: such as ``dict[str, float]``.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        _check_there(path)
        return load_json_as(path, kind, _DAMAGED)

    def stored_versions(self) -> dict[str, str]:
        """Versions of the packages that the run was made with. Errors: :meth:`load`."""
        return self.load(self.versions, dict[str, str]) if self.versions.exists() else {}

    def stored_seconds(self) -> dict[str, float]:
        """Seconds by stage, over all resumed parts. Errors: :meth:`load`."""
        return self.load(self.progress, dict[str, float]) if self.progress.exists() else {}

    def load_config(self) -> RunConfig:
        """The stored run file; nothing that it names is imported.

        Raises:
            InputError: this is not a run folder.
        """
        if not self.path.is_dir():
            raise InputError(str(self.path), "no such folder", "the folder of a run")
        if not self.config.is_file():
            raise InputError(
                str(self.path),
                "is not the folder of a run: it has no run.yaml",
                hint="Give the folder that `epim-nas search` wrote.",
            )
        config = validate(RunConfig, load_yaml(self.config), str(self.config), STORED)
        check_stored(self.config, CHANGED_RUN_FILE, self.path)
        return config

    def adopt(self, config: RunConfig) -> None:
        """Make this the folder of ``config``, or check that it is.

        A folder whose run stopped before it computed anything (a wrong data path, a budget out of
        reach) takes any run file.

        Raises:
            InputError: it holds a run that was made with another run file, or other files; or one
                of the files that every stage adds to is damaged.
        """
        new = config.model_dump(mode="json", by_alias=True)
        if self.config.is_file() and self.has_work:
            old = self.load_config().model_dump(mode="json", by_alias=True)
            changed = [
                key
                for key in _different(old, new)
                if not any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE)
            ]
            if changed:
                raise InputError(
                    str(self.path),
                    f"holds a run made with another run file; {_list(changed)} differ",
                    "the same run file, where only "
                    + ", ".join(f"`{key}`" for key in CHANGEABLE)
                    + " may change",
                    "Use another --out folder, or delete this one.",
                )
        elif not self.config.is_file() and any(
            entry.name != LAUNCH for entry in self.path.glob("[!.]*")
        ):
            raise InputError(
                f"--out {self.path}",
                "exists and is not the folder of a run",
                "a new or empty folder, or one with an interrupted run",
            )
        # Read again at the end of a stage, when its work would be lost by an error.
        self.stored_versions()
        self.stored_seconds()
        store_text(self.config, dump_yaml(new))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the lock ends with the process, however it ends.

        Raises:
            InputError: another process holds it, or the folder cannot be written.
        """
        make_folder(self.path, "--out")
        with locked(self.path, "search"):
            yield

    def note_versions(self, versions: Mapping[str, str]) -> None:
        """Keep what the numbers of the run depend on; a resumed part adds what it has otherwise."""
        known = self.stored_versions()
        for name, version in versions.items():
            parts = known.get(name, version).split(", then ")
            known[name] = ", then ".join(parts if parts[-1] == version else [*parts, version])
        store_json(self.versions, known)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to the record, also when it is interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.note_seconds(stage, time.monotonic() - started)

    def note_seconds(self, stage: str, seconds: float) -> None:
        """Add the seconds that a stage took, over all resumed parts."""
        known = self.stored_seconds()
        known[stage] = round(known.get(stage, 0.0) + seconds, 3)
        store_json(self.progress, known)


def _check_there(path: Path) -> None:
    """Check that a run has written a file."""
    if not path.exists():
        raise InputError(
            str(path), "no such file", hint="Is this the folder of a run (epim-nas search)?"
        )


def _different(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            found
            for key in keys
            for found in _different(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [prefix.rstrip(".")]


def _list(keys: list[str]) -> str:
    shown = ", ".join(f"`{key}`" for key in keys[:4])
    return shown + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
