"""Designs by gradient descent: a Gumbel-softmax relaxation of every choice.

Every group has logits; a step draws one choice of each group from their softmax with Gumbel noise
(Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712) and descends

    task loss + trade-off x expected costs + sum over limits of multiplier x relative excess,

the gradient of the task loss passing straight through the draw. Multipliers rise where a limit is
exceeded and fall where it is not (dual ascent). At times the logits are rounded exactly: the row of
largest probability that keeps every limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from epim_nas.errors import InputError
from epim_nas.files import digest
from epim_nas.solver.exact import Scores
from epim_nas.solver.exact_front import judges_accuracy
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.knapsack import FloatArray
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row
from epim_nas.supernet.checkpoint import load_saved, write_saved

TaskLoss = Callable[[Sequence[Tensor], int], Tensor]
"""(groups of (choices,) one-hot draws, step) -> loss (nats); gradients flow to the draws."""


@dataclass(frozen=True)
class Descent:
    """How long and how fast to descend.

    Attributes:
        steps: steps in all.
        lr: learning rate of the logits (Adam).
        dual_lr: by how much a multiplier rises at an excess of 100 %.
        temperature: of the softmax at the first step.
        end_temperature: at the last one; it falls geometrically between them.
        checkpoint_every: steps that a kill may cost.
    """

    steps: int = 200
    lr: float = 0.05
    dual_lr: float = 0.1
    temperature: float = 2.0
    end_temperature: float = 0.3
    checkpoint_every: int = 25

    def temperature_at(self, step: int) -> float:
        """The temperature of a step."""
        share = step / max(1, self.steps - 1)
        return float(self.temperature * (self.end_temperature / self.temperature) ** share)


def additive_loss(problem: SearchProblem) -> TaskLoss:
    """The expected sensitivity, where there is no supernet to measure with."""
    scores = [torch.as_tensor(score, dtype=torch.float64) for score in problem.sensitivity]

    def loss(draws: Sequence[Tensor], step: int) -> Tensor:
        return torch.stack([draw @ s for draw, s in zip(draws, scores, strict=True)]).sum()

    return loss


def gradient_rows(
    solver: FeasibleSolver,
    count: int,
    task_loss: TaskLoss,
    descent: Descent,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> list[Row]:
    """Different feasible designs along one descent, from accurate to cheap.

    The first half of the steps has no costs in its loss; then the trade-off between them and the
    task rises over four decades, and ``count - 1`` more designs are rounded at even distances.

    Args:
        solver: the solver of the problem.
        count: how many designs at most.
        task_loss: what the network loses under a draw.
        descent: how to descend.
        seed: seed of the draws.
        checkpoint: file of the descent; it is resumed where there is one of the same problem,
            count, seed and descent. It stays: only who has stored the designs can delete it
            without losing them.
        progress: called with (step, loss).

    Raises:
        Infeasible: no row keeps the limit.
        Unreachable: no row keeps all limits.
        InputError: the checkpoint is damaged.
    """
    problem = solver.problem
    state = _State.start(problem, descent.lr)
    identity = _identity(problem, count, descent, seed)
    if checkpoint is not None and checkpoint.exists():
        stored = _read(checkpoint)
        # Another count rounds at other steps: the descent starts anew.
        if stored.get("identity") == identity:
            state.load(stored)
    costs = _Costs(problem)
    warm = descent.steps // 2 if count > 1 else descent.steps
    rounded_at = np.unique(np.linspace(warm, descent.steps, count).round().astype(int))
    judges = judges_accuracy(problem) or not problem.objective_costs
    for step in range(state.step, descent.steps):
        strength = 0.0
        if step >= warm or not judges:
            share = (step - warm) / max(1, descent.steps - warm)
            strength = 1.0 if not judges else 10.0 ** (4 * share - 2)
        loss = _step(state, costs, task_loss if judges else None, descent, strength, seed)
        progress(step + 1, loss)
        if step + 1 in rounded_at:
            state.rows.append(_rounded(solver, state, seed))
        last = step + 1 == descent.steps
        if checkpoint is not None and (last or (step + 1) % descent.checkpoint_every == 0):
            write_saved(checkpoint, {**state.dump(), "identity": identity})
    return list(dict.fromkeys(state.rows))[:count]


def _identity(problem: SearchProblem, count: int, descent: Descent, seed: int) -> str:
    """What a stored descent has to agree in to be gone on with."""
    scores = [problem.sensitivity, *problem.objective_costs.values()]
    limits = [(limit.bound, limit.scores) for limit in problem.additive_limits.values()]
    numbers = [
        [[float(value) for value in group] for group in table]
        for table in [*scores, *(scores for _, scores in limits)]
    ]
    bounds = [float(bound) for bound, _ in limits]
    return digest([problem.objectives, numbers, bounds, count, asdict(descent), seed])


def _read(checkpoint: Path) -> dict[str, object]:
    """A stored descent.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    hint = "Remove the file to descend from the beginning."
    stored = load_saved(checkpoint, hint)
    if not isinstance(stored, dict):
        raise InputError(str(checkpoint), "is not a descent", hint=hint)
    return stored


class _State:
    """Logits, their optimizer, multipliers, the step, and the designs so far."""

    def __init__(self, sizes: Sequence[int], limits: int, lr: float) -> None:
        self.logits = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in sizes]
        self.optimizer = torch.optim.Adam(self.logits, lr=lr, betas=(0.9, 0.99))
        self.multipliers = torch.zeros(limits, dtype=torch.float64)
        self.step = 0
        self.scale = 0.0
        self.rows: list[Row] = []

    @classmethod
    def start(cls, problem: SearchProblem, lr: float) -> _State:
        sizes = [len(group) for group in problem.space.groups]
        return cls(sizes, len(problem.additive_limits), lr)

    def dump(self) -> dict[str, object]:
        return {
            "logits": [logit.detach() for logit in self.logits],
            "optimizer": self.optimizer.state_dict(),
            "multipliers": self.multipliers,
            "step": self.step,
            "scale": self.scale,
            "rows": [list(row) for row in self.rows],
        }

    def load(self, stored: dict[str, object]) -> None:
        with torch.no_grad():
            for logit, value in zip(self.logits, stored["logits"], strict=True):  # type: ignore[call-overload]
                logit.copy_(value)
        self.optimizer.load_state_dict(stored["optimizer"])  # type: ignore[arg-type]
        self.multipliers = stored["multipliers"]  # type: ignore[assignment]
        self.step, self.scale = stored["step"], stored["scale"]  # type: ignore[assignment]
        self.rows = [tuple(row) for row in stored["rows"]]  # type: ignore[attr-defined]


class _Costs:
    """Expected additive costs, each divided by its range or its limit."""

    def __init__(self, problem: SearchProblem) -> None:
        self.objectives = [
            self._scaled(scores, _spread(scores)) for scores in problem.objective_costs.values()
        ]
        limits = list(problem.additive_limits.values())
        self.limits = [self._scaled(limit.scores, abs(limit.bound) or 1.0) for limit in limits]
        self.bounds = torch.tensor(
            [np.sign(limit.bound) if limit.bound else 0.0 for limit in limits], dtype=torch.float64
        )

    @staticmethod
    def _scaled(scores: Scores, size: float) -> list[Tensor]:
        return [torch.as_tensor(np.asarray(score, dtype=float) / size) for score in scores]

    @staticmethod
    def expected(scores: Sequence[Tensor], probabilities: Sequence[Tensor]) -> Tensor:
        return torch.stack([p @ s for p, s in zip(probabilities, scores, strict=True)]).sum()


def _spread(scores: Sequence[FloatArray]) -> float:
    return float(sum(np.ptp(score) for score in scores)) or 1.0


def _step(
    state: _State,
    costs: _Costs,
    task_loss: TaskLoss | None,
    descent: Descent,
    strength: float,
    seed: int,
) -> float:
    """One step of descent on the logits and of ascent on the multipliers; returns the task loss."""
    temperature = descent.temperature_at(state.step)
    generator = torch.Generator().manual_seed(_mixed(seed, state.step))
    probabilities = [F.softmax(logit, dim=0) for logit in state.logits]
    loss = torch.zeros((), dtype=torch.float64)
    if task_loss is not None:
        draws = [_drawn(logit, temperature, generator) for logit in state.logits]
        task = task_loss(draws, state.step)
        # The loss of the first steps sets the scale: multipliers and costs are relative numbers.
        state.scale = state.scale or max(float(task.detach()), 1e-6)
        loss = loss + task.double() / state.scale
    if costs.limits:
        expected = [costs.expected(scores, probabilities) for scores in costs.limits]
        over = torch.stack(expected) - costs.bounds
        loss = loss + (state.multipliers * over).sum()
        state.multipliers = (state.multipliers + descent.dual_lr * over.detach()).clamp(min=0)
    for scores in costs.objectives if strength else ():
        loss = loss + strength * costs.expected(scores, probabilities)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.step += 1
    return float(task.detach()) if task_loss is not None else float(loss.detach())


def _drawn(logit: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """(choices,) one-hot draw, straight-through to the relaxed one."""
    uniform = torch.rand(logit.shape, generator=generator, dtype=logit.dtype)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
    soft = F.softmax((logit + gumbel) / temperature, dim=0)
    hard = F.one_hot(soft.argmax(), len(soft)).to(soft)
    return hard + soft - soft.detach()


def _rounded(solver: FeasibleSolver, state: _State, seed: int) -> Row:
    """The most probable row that keeps every limit and is not among the others yet.

    Where it is, the probabilities are drawn with more and more Gumbel noise until it is not.
    """
    logits = [logit.detach().numpy() for logit in state.logits]
    rng = np.random.default_rng([seed, state.step])
    row: Row = ()
    for attempt in range(20):
        noisy = [v + 0.1 * attempt * rng.gumbel(size=v.shape) for v in logits]
        row = solver.solve([_surprise(v) for v in noisy]).row
        if row not in state.rows:
            break
    return row


def _surprise(logits: FloatArray) -> FloatArray:
    """-log softmax."""
    shifted = logits - logits.max()
    result: FloatArray = np.log(np.exp(shifted).sum()) - shifted
    return result


def _mixed(seed: int, step: int) -> int:
    """One seed from two numbers."""
    return int(np.random.default_rng([seed, 13, step]).integers(2**62))
