"""What a sampler knows of a study: followed as it grows, not read again for every proposal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from epim_nas.solver.metrics import METRICS, is_maximised, metric_of
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row

FloatArray = npt.NDArray[np.float64]

METRICS_ATTRIBUTE = "metrics"
"""User attribute of a trial that holds all of its metrics."""


def distributions(problem: SearchProblem) -> dict[str, BaseDistribution]:
    """One integer parameter per group: the index of its choice."""
    return {group.name: IntDistribution(0, len(group) - 1) for group in problem.space.groups}


def row_of(params: Mapping[str, Any], problem: SearchProblem) -> Row:
    """The row of a trial's parameters."""
    return tuple([int(params[group.name]) for group in problem.space.groups])


def params_of(row: Sequence[int], problem: SearchProblem) -> dict[str, int]:
    """The parameters of a row."""
    return {group.name: int(index) for group, index in zip(problem.space.groups, row, strict=True)}


class History:
    """The designs of a study, its finished trials and their front.

    Args:
        problem: the problem that the study's parameters belong to.

    Attributes:
        proposed: rows of all trials so far but the one being sampled.
        finished: completed trials, in order of their numbers.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self.proposed: dict[Row, int] = {}
        self.finished: list[FrozenTrial] = []
        self._rows: dict[int, Row] = {}
        self._open: list[int] = []
        self._seen = 0
        self._front: list[tuple[int, Row]] = []
        self._losses = np.empty((0, 0))
        self._table = np.empty((0, len(problem.space)), dtype=np.int64)
        self._table_is_old = False
        objectives = problem.objectives
        self._signs = np.array([-1.0 if is_maximised(name) else 1.0 for name in objectives])
        metrics = [METRICS[metric_of(name)] for name in objectives]
        self._measured = np.array([m.measured and m.function is None for m in metrics])

    def follow(self, study: optuna.Study, number: int) -> None:
        """Take in what has happened since the last call.

        Args:
            study: the study; always the same one.
            number: the trial that is being sampled.
        """
        trials = study.get_trials(deepcopy=False)
        size = len(self._problem.space)
        waiting = sorted([*self._open, *range(self._seen, len(trials))])
        self._seen, self._open = len(trials), []
        news = []
        for index in waiting:
            trial = trials[index]
            # A waiting trial has no parameters yet, nor has a failed ask.
            if index not in self._rows and index != number and len(trial.params) == size:
                self._rows[index] = row_of(trial.params, self._problem)
                self.proposed.setdefault(self._rows[index], index)
            if not trial.state.is_finished():
                self._open.append(index)
            elif trial.state == TrialState.COMPLETE:
                news.append(trial)
        if news:
            late = bool(self.finished) and news[0].number < self.finished[-1].number
            self.finished.extend(news)
            if late:  # with several workers trials finish out of order
                self.finished.sort(key=lambda trial: trial.number)
            self._extend_front(news)

    def row(self, trial: FrozenTrial) -> Row:
        """The design of a finished trial."""
        return self._rows[trial.number]

    @property
    def front(self) -> list[Row]:
        """Rows of the non-dominated feasible trials, in order of their numbers."""
        return [row for _, row in self._front]

    @property
    def front_table(self) -> npt.NDArray[np.int64]:
        """(front, groups) the same as an array."""
        if self._table_is_old:
            self._table, self._table_is_old = np.array(self.front, dtype=np.int64), False
        return self._table

    @property
    def front_losses(self) -> FloatArray:
        """(front, objectives), less is better."""
        return self._losses

    def measured(self, metric: str, begin: int, end: int) -> tuple[list[Row], FloatArray]:
        """Designs of some completed trials, and what was noted of them."""
        rows, values = [], []
        for trial in self.finished[begin:end]:
            metrics = trial.user_attrs.get(METRICS_ATTRIBUTE, {})
            if metric in metrics and np.isfinite(metrics[metric]):
                rows.append(self.row(trial))
                values.append(float(metrics[metric]))
        return rows, np.array(values)

    def losses(self, begin: int, end: int, *, ranked: bool) -> FloatArray:
        """(trials, objectives) what some completed trials reached; less is better.

        Args:
            begin: the first of :attr:`finished`.
            end: the one after the last.
            ranked: judge how well a network works by its expected order, as the front does.
        """
        judge = self._loss if ranked else self._plain_loss
        return np.array([judge(trial) for trial in self.finished[begin:end]])

    def _extend_front(self, news: Sequence[FrozenTrial]) -> None:
        entries = list(zip(self._front, self._losses, strict=True))
        changed = False
        for trial in news:
            if not is_feasible(trial):
                continue
            loss = self._loss(trial)
            others = np.array([other for _, other in entries])
            if len(entries) and bool((others <= loss).all(axis=1).any()):
                continue
            changed = True
            entries = [entry for entry in entries if not bool((loss <= entry[1]).all())]
            entries.append(((trial.number, self._rows[trial.number]), loss))
        if not changed:
            return
        self._table_is_old = True
        entries.sort(key=lambda entry: entry[0][0])
        self._front = [entry for entry, _ in entries]
        self._losses = np.array([loss for _, loss in entries])

    def _loss(self, trial: FrozenTrial) -> FloatArray:
        """(objectives) what the trial reached; less is better.

        How well a network works is judged by its expected order after training where that is
        noted: accuracy with shared weights orders designs less well (docs/sensitivity.md).
        """
        metrics = trial.user_attrs.get(METRICS_ATTRIBUTE, {})
        losses = self._plain_loss(trial)
        if "expected_rank" in metrics:
            losses[self._measured] = -float(metrics["expected_rank"])
        return losses

    def _plain_loss(self, trial: FrozenTrial) -> FloatArray:
        return np.array(trial.values, dtype=np.float64) * self._signs


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a finished trial keeps every limit."""
    return all(value <= 0 for value in trial.constraints.values())
