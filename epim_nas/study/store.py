"""Durable trials: one write per finished trial, and a note of what is in flight.

The driver searches on a study in memory; a finished trial becomes one ``add_trial`` to a journal
file that stock Optuna opens, or to a database. Proposals that are being evaluated stand in a small
file in the run folder, so that a resumed search evaluates exactly those again. What a database that
is down cannot take waits in another one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from epim_nas.errors import InputError
from epim_nas.files import load_json, make_parents
from epim_nas.records import Finalist, TrialRecord
from epim_nas.solver.metrics import maximised, metric_of
from epim_nas.space.space import SearchSpace
from epim_nas.stored import Growing, check_stored, remove_stored, store_json
from epim_nas.study.history import METRICS_ATTRIBUTE
from epim_nas.study.inflight import InFlight, Pending
from epim_nas.study.storage import (
    StorageDown,
    collector_paused,
    cut_torn_line,
    open_journal,
    open_url,
    patiently,
    quiet_metric_names,
    repair_journal,
)

log = logging.getLogger(__name__)

STUDY_NAME = "epim_nas"
"""Name of the study in a journal file."""

DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)

LEGACY_CONSTRAINTS = "constraints"
"""System attribute in which optuna-dashboard looks for constraints: their values alone."""


@dataclass(frozen=True)
class Finished:
    """A finished evaluation.

    Attributes:
        pending: the proposal.
        metrics: what was measured; None where it failed.
        constraints: name -> value; at most 0 where the constraint is kept.
        finished_at: seconds since 1970.
        seconds: seconds that the evaluation took.
        error: why it failed.
    """

    pending: Pending
    metrics: Mapping[str, float] | None
    constraints: Mapping[str, float]
    finished_at: float
    seconds: float
    error: str = ""


class TrialStore:
    """The finished trials of a run, on disk or in a database.

    Args:
        path: the journal file; what is in flight is noted beside it.
        objectives: objective names.
        space: the search space, to turn parameters into designs.
        settings: what identifies the search; stored with the study and compared on reopening.
        read_only: read the trials of a run that another process may be writing: nothing on disk
            is touched.
        storage: URL of a database to take instead of the file.
        study_name: name of the study there.

    Raises:
        InputError: the journal belongs to another search, or is not a journal; or the database
            cannot be reached.
    """

    def __init__(
        self,
        path: Path,
        objectives: Sequence[str],
        space: SearchSpace,
        settings: Mapping[str, Any] | None = None,
        *,
        read_only: bool = False,
        storage: str | None = None,
        study_name: str = STUDY_NAME,
    ) -> None:
        self.path = path
        self.place = f"the storage {storage}" if storage else str(path)
        self._journal = storage is None
        self.objectives = tuple(objectives)
        self._space = space
        self._unsaved_file = path.with_name("unsaved.json")
        self._records: dict[int, TrialRecord] = {}
        self._in_flight = InFlight(path.with_name("inflight.jsonl"))
        self._digest = Growing(path)
        self._storage, self.study = self._open(storage, study_name, read_only)
        self._study_id = patiently(
            lambda: self._storage.get_study_id_from_name(self.study.study_name), self.place
        )
        identity = {"space": space.digest, "objectives": list(self.objectives)}
        self._check_trials()
        if self._journal and not read_only:
            self._digest.note()  # of lines that were written just before a kill
        self._check_settings(identity | dict(settings or {}), read_only)
        if not read_only:
            self._save_unsaved()

    def _open(
        self, storage: str | None, name: str, read_only: bool
    ) -> tuple[BaseStorage, optuna.Study]:
        if not read_only:
            make_parents(self.path)
        if storage is None:
            self._digest.check()
            if not read_only:
                repair_journal(self.path)
        try:
            opened = open_journal(self.path, self._digest) if storage is None else open_url(storage)
            return opened, patiently(lambda: self._study_of(opened, name, read_only), self.place)
        except InputError:
            raise
        except OSError as error:
            raise InputError(
                str(self.path), f"cannot be read: {error.strerror}", hint="Check who may read it."
            ) from None
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            if storage is not None:
                raise InputError(
                    "search.storage",
                    f"`{storage}` has no study `{name}` of this run ({error})",
                    hint="Take the storage that the run was made with.",
                ) from None
            raise InputError(
                str(self.path),
                f"is not an Optuna journal ({error})",
                hint="Move the file away, or give another run folder.",
            ) from None

    def _study_of(self, opened: BaseStorage, name: str, read_only: bool) -> optuna.Study:
        try:
            # Not left to `create_study`: to a journal it writes a line each time.
            return optuna.load_study(study_name=name, storage=opened)
        except KeyError:
            if read_only:
                raise
        return optuna.create_study(
            study_name=name,
            storage=opened,
            directions=[DIRECTIONS[more] for more in maximised(self.objectives)],
        )

    def _check_settings(self, settings: dict[str, Any], read_only: bool) -> None:
        stored = patiently(lambda: self.study.user_attrs, self.place).get("settings")
        if stored is None and read_only:
            return  # the driver has not noted them yet, and a reader does not know them all
        if stored is None:
            self.study.set_user_attr("settings", settings)
            quiet_metric_names(lambda: self.study.set_metric_names(list(self.objectives)))
            return
        changed = [key for key in settings if stored.get(key) != settings[key]]
        if changed:
            raise InputError(
                self.place,
                f"the folder holds a search with another {' and '.join(changed)}",
                hint="Use the run file it was made with, or another --out folder.",
            )

    def _check_trials(self) -> None:
        """Check that every trial is one of this search's, and there once."""
        asked = [trial.user_attrs.get("asked") for trial in self.trials()]
        if None in asked or len(set(asked)) < len(asked):
            raise InputError(
                self.place,
                "holds trials that the search did not store, or one of them twice",
                hint="Restore it from a copy, or use another --out folder.",
            )

    @property
    def own_metrics(self) -> set[str]:
        """Names of the metrics that users had registered in the search."""
        settings = patiently(lambda: self.study.user_attrs, self.place).get("settings") or {}
        return set(settings.get("metrics") or ())

    def trials(self) -> list[FrozenTrial]:
        """The stored trials in order.

        Raises:
            StorageDown: the storage does not answer.
        """
        return patiently(lambda: self.study.get_trials(deepcopy=False), self.place)

    def records(self) -> list[TrialRecord]:
        """The completed trials with their designs."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        with collector_paused():
            return [self.record(trial) for trial in complete]

    def record(self, trial: FrozenTrial) -> TrialRecord:
        """A stored trial as a :class:`TrialRecord`; it is finished and never changes."""
        known = self._records.get(trial.number)
        if known is None:
            known = self._records[trial.number] = self._record(trial)
        return known

    def _record(self, trial: FrozenTrial) -> TrialRecord:
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
        """Store a finished trial durably; the arguments are those of :class:`Finished`.

        Returns:
            The stored trial, with its number.

        Raises:
            StorageDown: the storage does not take it; it is kept in the run folder, and stored
                when the store is opened again.
        """
        finished = Finished(pending, metrics, constraints, finished_at, seconds, error)
        try:
            stored = self._store(finished)
        except StorageDown as down:
            store_json(self._unsaved_file, [asdict(f) for f in (*self._unsaved(), finished)])
            raise StorageDown(
                f"{down}. What was finished is stored; the trial that could not be is kept in "
                f"{self._unsaved_file} and stored when the search goes on. Type the same command "
                "once the storage is back"
            ) from None
        # Its note may stay in the file: what is stored is not left over.
        self._in_flight.end(pending.asked)
        return stored

    def note_finalists(self, finalists: Sequence[Finalist]) -> None:
        """Note in the study what fine-tuning made of some trials (``finalists``, by number)."""
        noted = {
            str(finalist.number): {
                "steps": finalist.steps,
                "validation_accuracy": finalist.validation_accuracy,
                "test_accuracy": finalist.test_accuracy,
            }
            for finalist in finalists
        }

        def note() -> None:
            if self.study.user_attrs.get("finalists") != noted:
                self.study.set_user_attr("finalists", noted)

        patiently(note, self.place)

    def _store(self, finished: Finished) -> FrozenTrial:
        trial = self._trial(finished)
        tried = False

        def store() -> FrozenTrial:
            nonlocal tried
            if tried and self._journal:
                cut_torn_line(self.path)  # of the attempt before, on a disk that was full
            # An answer may have been lost after the trial was stored.
            known = self._stored(finished.pending.asked) if tried else None
            if known is not None:
                return known
            tried = True
            # As `Study.add_trial`, which does not say which trial it became: to look for it would
            # take longer with every trial.
            stored = self._storage.create_new_trial(self._study_id, template_trial=trial)
            return self._storage.get_trial(stored)

        return patiently(store, self.place)

    def _trial(self, finished: Finished) -> FrozenTrial:
        pending, metrics = finished.pending, finished.metrics
        params = {
            group.name: index for group, index in zip(self._space.groups, pending.row, strict=True)
        }
        attributes: dict[str, Any] = {
            "asked": pending.asked,
            "origin": pending.origin,
            "finished_at": finished.finished_at,
            "seconds": finished.seconds,
            "design": {name: str(c) for name, c in self._space.design(pending.row).choices.items()},
        }
        if metrics is None:
            state, values = TrialState.FAIL, None
            attributes["error"] = finished.error
        else:
            state = TrialState.COMPLETE
            values = [metrics[metric_of(name)] for name in self.objectives]
            attributes["metrics"] = dict(metrics)
        legacy = {LEGACY_CONSTRAINTS: list(finished.constraints.values())}
        return create_trial(
            state=state,
            values=values,
            params=params,
            distributions={
                group.name: optuna.distributions.IntDistribution(0, len(group) - 1)
                for group in self._space.groups
            },
            user_attrs=attributes,
            system_attrs=dict(pending.sampler_state) | legacy,
            constraints=dict(finished.constraints),
        )

    def _stored(self, asked: int) -> FrozenTrial | None:
        """The trial of a proposal, if it is stored."""
        return next((t for t in self.trials() if t.user_attrs.get("asked") == asked), None)

    def begin(self, pending: Pending) -> None:
        """Note that a proposal is being evaluated."""
        self._in_flight.begin(pending)

    def left_over(self) -> list[Pending]:
        """Proposals that an earlier, killed driver had in flight and that are not stored."""
        return self._in_flight.left_over(trial.user_attrs["asked"] for trial in self.trials())

    def _unsaved(self) -> list[Finished]:
        return _entries(self._unsaved_file)

    def _save_unsaved(self) -> None:
        """Store what an earlier driver could not."""
        for finished in self._unsaved():
            if self._stored(finished.pending.asked) is None:
                self._store(finished)
                log.info("stored a trial that %s could not take before", self.place)
        remove_stored(self._unsaved_file)


def _entries(file: Path) -> list[Finished]:
    """The trials that a database could not take; none where the file is missing.

    None, with a warning, where it is damaged as well: they are still noted as in flight.
    """
    if not file.exists():
        return []
    try:
        entries = load_json(file)
        check_stored(file)
        return [
            Finished(**{**entry, "pending": Pending.from_dict(entry["pending"])})
            for entry in entries
        ]
    except (InputError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read (%s): its trials are evaluated again", file, error)
        return []


def as_in_memory(trial: FrozenTrial) -> FrozenTrial:
    """A stored trial as it was in memory, where samplers see it.

    Of its attributes they know the metrics alone. Constraints are there by name only: with both
    forms, samplers would count every one twice that was stored before.
    """
    kept = {k: v for k, v in trial.user_attrs.items() if k == METRICS_ATTRIBUTE}
    attributes = {k: v for k, v in trial.system_attrs.items() if k != LEGACY_CONSTRAINTS}
    made = create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=kept,
        system_attrs=attributes,
    )
    made.distributions = _Unchanging(made.distributions)
    return made


class _Unchanging(dict[str, BaseDistribution]):
    """A mapping that is not copied with the trial; copies took most of the time of a resume."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unchanging:
        return self
