"""Descent on relaxed choices: what it reaches, its limits, and that it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from epim_nas.errors import InputError
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.supernet.descent import Descent, _drawn, additive_loss, gradient_rows
from tests.solver.problems import make_problem

DESCENT = Descent(steps=120, checkpoint_every=10)


@pytest.mark.parametrize("seed", range(3))
def test_on_an_additive_loss_it_comes_near_the_optimum(seed: int) -> None:
    problem = replace(make_problem(seed=seed, slack=25), objectives=("accuracy",))
    (row,) = gradient_rows(
        FeasibleSolver(problem), 1, additive_loss(problem), replace(DESCENT, steps=300), seed
    )
    assert problem.is_feasible(row)
    optimum = FeasibleSolver(problem).solve(problem.sensitivity).loss
    worst = sum(float(score.max()) for score in problem.sensitivity)
    assert problem.total(problem.sensitivity, row) - optimum < 0.1 * (worst - optimum)


def test_designs_go_from_accurate_to_cheap() -> None:
    problem = replace(make_problem(slack=40), objectives=("accuracy", "energy_nj"))
    rows = gradient_rows(
        FeasibleSolver(problem), 6, additive_loss(problem), replace(DESCENT, steps=300), seed=1
    )
    energy = [problem.total(problem.costs["energy_nj"], row) for row in rows]
    assert len(set(rows)) == len(rows) > 3
    assert energy[-1] < 0.7 * energy[0]


def test_killed_at_any_step_it_ends_with_the_same_designs(tmp_path: Path) -> None:
    problem = make_problem()
    loss = additive_loss(problem)
    whole = gradient_rows(FeasibleSolver(problem), 5, loss, DESCENT, seed=2)

    def failing(at: int) -> object:
        def task(draws: Sequence[Tensor], step: int) -> Tensor:
            if step == at:
                raise KeyboardInterrupt
            return loss(draws, step)

        return task

    checkpoint = tmp_path / "gradient.state"
    for at in (7, 64, 91):
        with pytest.raises(KeyboardInterrupt):
            gradient_rows(
                FeasibleSolver(problem), 5, failing(at), DESCENT, 2, checkpoint=checkpoint
            )
    assert (
        gradient_rows(FeasibleSolver(problem), 5, loss, DESCENT, 2, checkpoint=checkpoint) == whole
    )
    # Finished, it is read back without another step.
    assert (
        gradient_rows(FeasibleSolver(problem), 5, failing(0), DESCENT, 2, checkpoint=checkpoint)
        == whole
    )


def test_more_designs_than_a_finished_descent_has_are_descended_for(tmp_path: Path) -> None:
    problem, checkpoint = make_problem(), tmp_path / "gradient.state"
    loss = additive_loss(problem)
    gradient_rows(FeasibleSolver(problem), 3, loss, DESCENT, 2, checkpoint=checkpoint)
    more = gradient_rows(FeasibleSolver(problem), 12, loss, DESCENT, 2, checkpoint=checkpoint)
    assert more == gradient_rows(FeasibleSolver(problem), 12, loss, DESCENT, 2)
    assert len(more) > 3


@pytest.mark.parametrize("changed", ["problem", "seed", "descent"])
def test_another_descent_is_not_gone_on_with(tmp_path: Path, changed: str) -> None:
    problem, checkpoint = make_problem(), tmp_path / "gradient.state"
    gradient_rows(
        FeasibleSolver(problem), 3, additive_loss(problem), DESCENT, 2, checkpoint=checkpoint
    )
    problem = make_problem(seed=1) if changed == "problem" else problem
    descent = replace(DESCENT, lr=0.1) if changed == "descent" else DESCENT
    seed = 3 if changed == "seed" else 2
    loss = additive_loss(problem)
    rows = gradient_rows(FeasibleSolver(problem), 3, loss, descent, seed, checkpoint=checkpoint)
    assert rows == gradient_rows(FeasibleSolver(problem), 3, loss, descent, seed)


def test_a_damaged_descent_is_named(tmp_path: Path) -> None:
    problem, checkpoint = make_problem(), tmp_path / "gradient.state"
    for content in (b"", b"half a file", b"."):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match=r"gradient\.state: cannot be read.*Remove the file"):
            gradient_rows(
                FeasibleSolver(problem),
                3,
                additive_loss(problem),
                DESCENT,
                2,
                checkpoint=checkpoint,
            )
    torch.save([1, 2], checkpoint)
    with pytest.raises(InputError, match=r"gradient\.state: is not a descent"):
        gradient_rows(
            FeasibleSolver(problem), 3, additive_loss(problem), DESCENT, 2, checkpoint=checkpoint
        )


def test_draws_have_the_probabilities_of_the_logits() -> None:
    logit = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([_drawn(logit, 0.5, generator) for _ in range(4000)])
    assert set(draws.detach().unique().round(decimals=9).tolist()) == {0.0, 1.0}
    expected = torch.softmax(logit, 0)
    assert torch.allclose(draws.mean(dim=0), expected, atol=0.03)


def test_temperature_falls_geometrically() -> None:
    descent = Descent(steps=11, temperature=4.0, end_temperature=1.0)
    assert [descent.temperature_at(step) for step in (0, 5, 10)] == pytest.approx([4.0, 2.0, 1.0])
