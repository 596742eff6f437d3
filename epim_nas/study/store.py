"""Durable trials: one write per finished trial, and a note of what is in flight.

The driver searches on a study in memory; a finished trial becomes one ``add_trial`` to a
``JournalStorage`` file that stock Optuna opens. Proposals that are being evaluated stand in a small
file beside it, so that a resumed search evaluates exactly those again.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from epim_nas.errors import EpimError, InputError
from epim_nas.files import write_json
from epim_nas.space.space import Row, SearchSpace
from epim_nas.study.metrics import maximised, metric_of
from epim_nas.study.results import Origin, TrialRecord

log = logging.getLogger(__name__)

STUDY_NAME = "epim_nas"

DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)


@dataclass(frozen=True)
class Pending:
    """A proposal whose evaluation has not finished.

    Attributes:
        asked: number of the proposal.
        row: the design.
        origin: seed or search.
        sampler_state: what the sampler noted in the trial (NSGA-II and III: its generation); a
            resumed search needs it.
    """

    asked: int
    row: Row
    origin: Origin
    sampler_state: Mapping[str, Any] = field(default_factory=dict)


class TrialStore:
    """The finished trials of a run, on disk.

    Args:
        path: the journal file.
        objectives: objective names.
        space: the search space, to turn parameters into designs.
        settings: what identifies the search; stored with the study and compared on reopening.
        read_only: read the trials of a run that another process may be writing: nothing on disk
            is touched.

    Raises:
        InputError: the journal belongs to another search, or is not a journal.
    """

    def __init__(
        self,
        path: Path,
        objectives: Sequence[str],
        space: SearchSpace,
        settings: Mapping[str, Any] | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.objectives = tuple(objectives)
        self._space = space
        self._sidecar = path.with_name("inflight.json")
        self._pending: dict[int, Pending] = {}
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            repair_journal(path)
        directions = [DIRECTIONS[more] for more in maximised(self.objectives)]
        try:
            if read_only:
                self.study = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(path))
            else:
                self.study = optuna.create_study(
                    study_name=STUDY_NAME,
                    storage=open_journal(path),
                    directions=directions,
                    load_if_exists=True,
                )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise InputError(
                str(path),
                f"is not an Optuna journal ({error})",
                hint="Move the file away, or give another run folder.",
            ) from None
        identity = {"space": space.digest, "objectives": list(self.objectives)}
        self._check_settings(identity | dict(settings or {}), read_only)

    def _check_settings(self, settings: dict[str, Any], read_only: bool) -> None:
        stored = self.study.user_attrs.get("settings")
        if stored is None and read_only:
            return  # the driver has not noted them yet, and a reader does not know them all
        if stored is None:
            self.study.set_user_attr("settings", settings)
            with warnings.catch_warnings():
                # "Experimental" in Optuna since 3.2; it only names the values.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(list(self.objectives))
            return
        changed = [key for key in settings if stored.get(key) != settings[key]]
        if changed:
            raise InputError(
                str(self.path),
                f"the folder holds a search with another {' and '.join(changed)}",
                hint="Use the run file it was made with, or another --out folder.",
            )

    def trials(self) -> list[FrozenTrial]:
        """The stored trials in order."""
        return self.study.get_trials(deepcopy=False)

    def records(self) -> list[TrialRecord]:
        """The completed trials with their designs."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return [self.record(trial) for trial in complete]

    def record(self, trial: FrozenTrial) -> TrialRecord:
        """A stored trial as a :class:`TrialRecord`."""
        row = tuple(int(trial.params[group.name]) for group in self._space.groups)
        return TrialRecord(
            number=trial.number,
            design=self._space.design(row),
            metrics=dict(trial.user_attrs["metrics"]),
            feasible=all(value <= 0 for value in trial.constraints.values()),
            origin=trial.user_attrs["origin"],
            finished_at=float(trial.user_attrs["finished_at"]),
            seconds=float(trial.user_attrs["seconds"]),
        )

    def add(
        self,
        pending: Pending,
        metrics: Mapping[str, float] | None,
        *,
        constraints: Mapping[str, float],
        finished_at: float,
        seconds: float,
        error: str = "",
    ) -> FrozenTrial:
        """Store a finished trial durably; ``metrics`` None marks it failed.

        Args:
            pending: the proposal.
            metrics: what was measured.
            constraints: name -> value; at most 0 where the constraint is kept.
            finished_at: seconds since 1970.
            seconds: seconds that the evaluation took.
            error: why it failed.

        Returns:
            The stored trial, with its number.
        """
        params = {
            group.name: index for group, index in zip(self._space.groups, pending.row, strict=True)
        }
        attributes: dict[str, Any] = {
            "asked": pending.asked,
            "origin": pending.origin,
            "finished_at": finished_at,
            "seconds": seconds,
            "design": {name: str(c) for name, c in self._space.design(pending.row).choices.items()},
        }
        if metrics is None:
            state, values = TrialState.FAIL, None
            attributes["error"] = error
        else:
            state, values = (
                TrialState.COMPLETE,
                [metrics[metric_of(name)] for name in self.objectives],
            )
            attributes["metrics"] = dict(metrics)
        trial = create_trial(
            state=state,
            values=values,
            params=params,
            distributions={
                group.name: optuna.distributions.IntDistribution(0, len(group) - 1)
                for group in self._space.groups
            },
            user_attrs=attributes,
            system_attrs=dict(pending.sampler_state),
            constraints=dict(constraints),
        )
        self.study.add_trial(trial)
        stored = self.trials()[-1]
        # Its note stays in the file until the next one is written: what is stored is not left over.
        self._pending.pop(pending.asked, None)
        return stored

    def begin(self, pending: Pending) -> None:
        """Note that a proposal is being evaluated."""
        self._pending[pending.asked] = pending
        self._write_pending()

    def left_over(self) -> list[Pending]:
        """Proposals that an earlier, killed driver had in flight and that are not stored."""
        if not self._sidecar.exists():
            return []
        try:
            entries = json.loads(self._sidecar.read_text())
            found = [
                Pending(e["asked"], tuple(e["row"]), e["origin"], e.get("sampler_state", {}))
                for e in entries
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise EpimError(f"{self._sidecar}: cannot be read ({error}); delete it") from None
        stored = {trial.user_attrs.get("asked") for trial in self.trials()}
        left = [pending for pending in found if pending.asked not in stored]
        # Kept in the file until they are stored: this driver may be killed as well.
        self._pending = {pending.asked: pending for pending in left} | self._pending
        return left

    def _write_pending(self) -> None:
        entries = [
            {
                "asked": p.asked,
                "row": list(p.row),
                "origin": p.origin,
                "sampler_state": dict(p.sampler_state),
            }
            for p in self._pending.values()
        ]
        write_json(self._sidecar, entries)


def open_journal(path: Path) -> JournalStorage:
    """The storage of a journal file. The lock is a file that dies with its owner's stale age."""
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def repair_journal(path: Path) -> None:
    """Cut a torn last line, which a killed writer can leave, so that the journal is writable."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            log.warning("%s: the last line was torn by a crash; cut it", path)
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
    for lock in path.parent.glob(f"{path.name}.lock*"):
        # The run folder is locked by this process, so a journal lock is a dead driver's.
        lock.unlink(missing_ok=True)
