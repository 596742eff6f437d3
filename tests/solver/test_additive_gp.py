"""Additive scores that are corrected by measured designs, on problems with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from epim_nas.solver.additive_gp import fit_additive
from epim_nas.solver.sensitivity_update import LEAST, corrected


def truth(seed: int, groups: int = 10, choices: int = 6) -> tuple[list, list, np.ndarray]:
    """Prior scores, true scores that differ by factors of groups and choices, and designs."""
    rng = np.random.default_rng(seed)
    prior = [rng.gamma(2.0, size=choices) for _ in range(groups)]
    true = [p * np.exp(0.7 * rng.normal() + 0.2 * rng.normal(size=choices)) for p in prior]
    rows = rng.integers(0, choices, size=(400, groups))
    return prior, true, rows


def totals(scores: list, rows: np.ndarray) -> np.ndarray:
    return np.sum([score[rows[:, group]] for group, score in enumerate(scores)], axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_it_learns_what_the_prior_gets_wrong(seed: int) -> None:
    prior, true, rows = truth(seed)
    noise = np.random.default_rng(seed).normal(size=80)
    values = 7.0 + totals(true, rows[:80]) + 0.1 * noise
    model = fit_additive(rows[:80], values, prior)
    unseen = rows[80:]
    error = np.std(model.predict(unseen) - 7.0 - totals(true, unseen))
    before = totals(prior, unseen)
    slope, intercept = np.polyfit(before, totals(true, unseen), 1)
    best_line = np.std(slope * before + intercept - totals(true, unseen))
    assert error < 0.35 * best_line
    assert model.error < 0.6
    # Additive again: the model is its scores and a constant.
    assert model.predict(unseen) == pytest.approx(totals(model.scores, unseen) + model.constant)


def test_with_few_designs_it_stays_at_the_prior() -> None:
    prior, _, rows = truth(1)
    rng = np.random.default_rng(0)
    values = 3.0 * totals(prior, rows[:12]) + 5.0
    model = fit_additive(rows[:12], values + 1e-6 * rng.normal(size=12), prior)
    for fitted, score in zip(model.scores, prior, strict=True):
        assert fitted == pytest.approx(3.0 * score, rel=0.02)
    assert model.constant == pytest.approx(5.0, rel=0.05)


def test_the_left_out_error_is_that_of_leaving_out() -> None:
    prior, true, rows = truth(2, groups=4, choices=3)
    values = totals(true, rows[:20])
    model = fit_additive(rows[:20], values, prior)
    # Designs whose values are noise: nothing can be learned, and the error says so.
    noise = np.random.default_rng(1).normal(size=20)
    assert model.error < 0.5 < fit_additive(rows[:20], noise, prior).error


def test_equal_designs_and_constant_scores_are_no_trouble() -> None:
    prior = [np.ones(3), np.ones(2)]
    rows = np.array([[0, 0], [1, 1], [2, 0], [2, 0]])
    model = fit_additive(rows, [1.0, 2.0, 3.0, 3.0], prior)
    assert np.isfinite(model.predict(rows)).all()
    with pytest.raises(ValueError, match="too few"):
        fit_additive(rows[:2], [1.0, 2.0], prior)


@pytest.mark.parametrize("seed", range(4))
def test_corrected_sensitivity_ranks_unseen_designs_better(seed: int) -> None:
    prior, true, rows = truth(seed)
    # What is measured saturates and has another scale, as a loss with shared weights has.
    losses = 0.3 * totals(true, rows) ** 0.5
    known = [tuple(map(int, row)) for row in rows[:60]]
    result = corrected(prior, known, losses[:60])
    unseen = rows[60:]
    before = spearmanr(totals(prior, unseen), losses[60:]).statistic
    after = spearmanr(totals(result.scores, unseen), losses[60:]).statistic
    assert after > 0.97 > before


def test_too_few_or_equal_measurements_leave_the_table() -> None:
    prior, _, rows = truth(0)
    few = [tuple(map(int, row)) for row in rows[: LEAST - 1]]
    assert corrected(prior, few, np.arange(LEAST - 1.0) + 1).scores == prior
    many = [tuple(map(int, row)) for row in rows[:30]]
    assert corrected(prior, many, np.full(30, 2.3)).scores == prior


def test_drawn_scores_differ_and_come_from_the_generator() -> None:
    prior, _, _ = truth(0)
    uncertain = corrected(prior, [], np.array([]), error=0.1)
    first = uncertain.drawn(np.random.default_rng(1))
    assert all((score > 0).all() for score in first)
    again = uncertain.drawn(np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    other = uncertain.drawn(np.random.default_rng(2))
    assert not np.allclose(np.concatenate(first), np.concatenate(other))
