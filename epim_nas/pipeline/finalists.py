"""The finalists: which designs of the front are trained on their own, and what became of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from epim_nas.cluster.executor import Executor
from epim_nas.files import write_json
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Advance, Reporter
from epim_nas.pipeline.setup import Setup
from epim_nas.pipeline.stages import timed
from epim_nas.space.space import SearchSpace
from epim_nas.study.pareto import front_numbers, select
from epim_nas.study.results import Finalist, TrialRecord
from epim_nas.study.score import expected_rank
from epim_nas.supernet.scorer import FinetuneResult, Scorer

log = logging.getLogger(__name__)


def choose_finalists(
    records: Sequence[TrialRecord], objectives: Sequence[str], count: int
) -> list[TrialRecord]:
    """Designs to train on their own: at most ``count``.

    First the feasible one that is expected to be the best after training
    (:func:`~epim_nas.study.score.expected_rank`), then the named selections of the front, then
    the rest of the front evenly.
    """
    by_number = {record.number: record for record in records}
    front = [by_number[number] for number in front_numbers(records, objectives)]
    if not front:
        return []
    hopeful = max(
        (record for record in records if record.feasible),
        key=lambda record: (expected_rank(record.metrics), -record.number),
    )
    reasons: dict[int, str] = {hopeful.number: "expected to be the best after training"}
    for which in ("best-accuracy", "knee", "best-latency", "best-energy"):
        reasons.setdefault(select(front, which, objectives).number, which)
    for index in np.round(np.linspace(0, len(front) - 1, min(len(front), count))).astype(int):
        reasons.setdefault(front[index].number, "spread over the front")
    chosen = list(reasons)[:count]
    log.info(
        "%d of %d designs on the front; to be trained on their own: %s",
        len(front),
        len(records),
        ", ".join(f"trial {number} ({reasons[number]})" for number in chosen) or "none",
    )
    return [by_number[number] for number in chosen]


def finetune_finalists(
    setup: Setup,
    space: SearchSpace,
    finalists: Sequence[TrialRecord],
    folder: RunFolder,
    executor: Executor,
    scorer: Scorer,
    reporter: Reporter,
    on_finalist: Callable[[Finalist], None] = lambda finalist: None,
) -> list[Finalist]:
    """Train the finalists on their own; those that are stored are not trained again."""
    settings = setup.config.finalists
    steps = settings.steps
    config = settings.train_config(steps, setup.config.data.batch_size)
    folder.finalists.mkdir(parents=True, exist_ok=True)
    waiting: dict[int, TrialRecord] = {}
    for record in finalists:
        if not finalist_file(folder, record.number).exists():
            waiting[record.number] = record
    started = len(finalists) - len(waiting)
    with (
        timed(folder, "finalists"),
        reporter.stage("Finalists", len(finalists) * steps, started * steps) as advance,
    ):
        for record in waiting.values():
            weights = finalist_file(folder, record.number).with_suffix(".safetensors")
            executor.submit(
                record.number,
                "finetune",
                space.row(record.design),
                config,
                setup.config.seed + 4,
                str(weights.with_suffix(".state").resolve()),
                str(weights.resolve()),
                settings.lr,
            )
        for done in range(started, len(finalists)):
            # Steps are seen where the work is done in this process; elsewhere, whole designs.
            scorer.progress = partial(_advance_from, advance, done * steps)
            outcome = executor.wait()
            assert isinstance(outcome.key, int)
            if outcome.error:
                log.warning("fine-tuning of trial %d failed: %s", outcome.key, outcome.error)
                continue
            result: FinetuneResult = outcome.value
            path = finalist_file(folder, outcome.key)
            write_json(path, {"trial": outcome.key, **asdict(result)})
            path.with_suffix(".state").unlink(missing_ok=True)
            advance((done + 1) * steps, f"top-1 {100 * result.validation_accuracy:.1f} %")
    stored = load_finalists(folder, finalists)
    for finalist in stored:
        on_finalist(finalist)
    return stored


def _advance_from(advance: Advance, start: int, step: int, loss: float) -> None:
    advance(start + step, f"loss {loss:.3f}")


def finalist_file(folder: RunFolder, number: int) -> Path:
    """The file of a finalist's result."""
    return folder.finalists / f"trial-{number:04d}.json"


def load_finalists(folder: RunFolder, records: Sequence[TrialRecord]) -> list[Finalist]:
    """The stored finalists among ``records``, by falling validation accuracy."""
    found = []
    for record in records:
        path = finalist_file(folder, record.number)
        if path.exists():
            result = folder.read_json(path)
            found.append(
                Finalist(
                    number=record.number,
                    design=record.design,
                    metrics=record.metrics,
                    steps=result["steps"],
                    validation_accuracy=result["validation_accuracy"],
                    test_accuracy=result["test_accuracy"],
                    curve=tuple((int(step), float(loss)) for step, loss in result["curve"]),
                    weights=str(path.with_suffix(".safetensors").relative_to(folder.path)),
                )
            )
    return sorted(found, key=lambda finalist: -finalist.validation_accuracy)
