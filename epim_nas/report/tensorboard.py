"""The TensorBoard dashboard that grows while the search runs.

Runs in the dashboard: ``search`` (hypervolume, best accuracy, the front as a figure),
``trials/0007`` (one HParams row each, up to a limit), ``supernet`` and ``finalists/0007``
(training curves) and ``result`` (the final front, the layers of the selected design, how to
reproduce it).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from epim_nas.epitome.design import FLOAT_BITS, Design
from epim_nas.errors import InputError
from epim_nas.network.spec import Network
from epim_nas.records import Baseline, Finalist, RunResult, TrialRecord
from epim_nas.report import events, notes
from epim_nas.report.escape import markdown_code, markdown_text
from epim_nas.report.layers import LayerRow, NetworkCostLike, layer_rows
from epim_nas.report.serve import TRIALS
from epim_nas.report.tables import markdown_table
from epim_nas.solver.metrics import metric_of
from epim_nas.solver.pareto import HypervolumeTracker, ReferenceBox, front_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

PANELS = ("latency_ns", "energy_nj", "crossbars")
"""Costs against which the front's figures show the accuracy; each is a picture of its own, since
TensorBoard shows pictures small."""

UNITS = {"latency_ns": ("latency_ms", 1e-6), "energy_nj": ("energy_mj", 1e-6)}
"""Metric -> (name shown, factor); other metrics are shown as they are."""

BUDGET_LEVELS = (1.0, 0.75, 0.5)
"""Fractions of the crossbar budget for which the best accuracy is followed."""

MAX_ROWS = 2_000
"""So many trials get an HParams row each; of later ones only those that raise the hypervolume.

Every row is a run of its own, and TensorBoard reads and draws all runs.
"""

DENSE_FIGURES = 40
"""From twice so many figures of the front on, each doubling of the study brings so many more."""

FIGURE_SECONDS = 5.0
"""At least so long between two figures of the front: drawing one takes longer than many trials."""

LAYOUT = {
    "Search": {
        "hypervolume over trials": ["Multiline", ["hypervolume/over_trials"]],
        "hypervolume over seconds": ["Multiline", ["hypervolume/over_seconds"]],
        "best accuracy within a budget over trials": ["Multiline", ["best_accuracy/.*"]],
        "best accuracy within a budget over seconds": [
            "Multiline",
            ["best_accuracy_over_seconds/.*"],
        ],
    },
    "Training": {
        "loss of supernet and finalists": ["Multiline", ["training/loss"]],
    },
}
"""The page "Custom scalars": chart -> tags."""


def design_hparams(design: Design) -> dict[str, float]:
    """The few numbers that tell designs apart at a glance, for the HParams table.

    Bits are averaged over layers, floating point counting as 32.
    """
    choices = list(design.choices.values())
    bits = [choice.weight_bits or FLOAT_BITS for choice in choices]
    return {
        "mean_weight_bits": sum(bits) / max(1, len(bits)),
        "epitome_layers": sum(choice.shape is not None for choice in choices),
        "wrapped_layers": sum(choice.wrap for choice in choices),
    }


class DashboardWriter:
    """Writes a search's events; every call may be repeated, also by a resumed process.

    A resumed driver hands in all stored trials again: what is on disk is skipped, and the curves
    go on where they ended. Use it as a context manager, or call :meth:`close`.

    Args:
        folder: the dashboard's folder (``RUN/tensorboard``).
        name: name of the run.
        objectives: objective names.
        budget: budget name -> limit.
        baseline: the dense network.
        figure_every: trials between two of the first figures of the front; the distance grows with
            the study, since a figure draws all its trials.
        reference: box of the hypervolume; by default set by the baseline's costs.

    Raises:
        InputError: the baseline lacks the cost of an objective.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        objectives: Sequence[str],
        budget: Mapping[str, float],
        baseline: Baseline,
        *,
        figure_every: int = 25,
        reference: ReferenceBox | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.name = name
        self.objectives = tuple(objectives)
        self.budget = dict(budget)
        self.baseline = baseline
        self.figure_every = max(1, figure_every)
        self.reference = reference or ReferenceBox.from_baseline(baseline.totals, self.objectives)
        self._tracker = HypervolumeTracker(self.reference)
        self._trials: dict[int, TrialRecord] = {}
        self._finalists: dict[int, Finalist] = {}
        self._best: dict[str, float] = {}
        self._started_at: float | None = None
        self._drawn_at = -math.inf
        self._figures = True
        self._search = events.RunEvents(self.folder / "search")
        self._supernet = events.RunEvents(self.folder / "supernet")
        self._write_layout()

    def __enter__(self) -> DashboardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_stored(self, records: Sequence[TrialRecord]) -> None:
        """Add the trials of an earlier driver, in their order, as :meth:`add_trial` does.

        It drew the front as they came. Of figures that are missing only that of the last trial is
        drawn, before which it may have been killed: hundreds would take minutes.
        """
        for record in records[:-1]:
            self._add(record, draw=False)
        for record in records[-1:]:
            self.add_trial(record)

    def add_trial(self, record: TrialRecord) -> None:
        """Add a scored design: its HParams row, and the next point of every curve.

        The curves' steps count results in the order in which they arrive (a number that was added
        before is ignored), since parallel trials do not finish in the order of their numbers.
        """
        self._add(record, draw=True)

    def _add(self, record: TrialRecord, *, draw: bool) -> None:
        if record.number in self._trials:
            return
        self._trials[record.number] = record
        before = self._tracker.volume
        self._write_curves(record)
        if len(self._trials) <= MAX_ROWS or self._tracker.volume > before:
            self._write_trial(record)
        # By the trials' own times, so that a resumed driver decides alike.
        rested = record.finished_at - self._drawn_at >= FIGURE_SECONDS
        if rested and len(self._trials) % self._figure_distance() == 0:
            self._drawn_at = record.finished_at
            if draw:
                self._write_front()

    def add_supernet_loss(self, step: int, loss: float) -> None:
        """Add a sample of the supernet's training curve."""
        self._supernet.scalar("training/loss", loss, step)

    def add_finalist(self, finalist: Finalist) -> None:
        """Add a fine-tuned design: its training curve and what it reached."""
        self._finalists[finalist.number] = finalist
        summaries = [
            (events.scalar_summary("training/loss", loss), step) for step, loss in finalist.curve
        ]
        reached = {
            "supernet_top1": finalist.metrics.get("accuracy"),
            "validation_top1": finalist.validation_accuracy,
            "test_top1": finalist.test_accuracy,
        }
        summaries += [
            (events.scalar_summary(f"finalist/{name}", value), finalist.steps)
            for name, value in reached.items()
            if value is not None
        ]
        events.write_run(self.folder / f"finalists/{finalist.number:04d}", summaries)

    def finish(
        self,
        result: RunResult,
        *,
        network: Network | None = None,
        cost: NetworkCostLike | None = None,
        run_folder: str | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Write the final figures and the text pages, replacing those of an earlier end.

        Args:
            result: the whole run.
            network: the network, for the layers' epitome sizes.
            cost: cost of the selected design (the knee), for the layers' bars.
            run_folder: the run folder as the commands should name it.
            texts: further pages: tag -> markdown.
        """
        self.add_stored(result.trials)
        for finalist in result.finalists:
            self.add_finalist(finalist)
        for step, loss in result.supernet_curve:
            self.add_supernet_loss(step, loss)
        step = len(self._trials)
        from torch.utils.tensorboard.summary import text

        pages = [*_pages(result, self.reference, run_folder), *(texts or {}).items()]
        summaries = [(text(tag, page), step) for tag, page in pages]
        summaries += [(summary, step) for summary in self._fronts(result)]
        selected = result.selected.get("knee")
        record_of = {trial.number: trial for trial in result.trials}
        if selected in record_of:
            design = record_of[selected].design
            rows = layer_rows(design, network, cost)
            for name, draw in (("layers", "layers_figure"), ("heat_map", "heat_map_figure")):
                png = self._draw(partial(_layers, draw, rows, f"knee: trial {selected}"))
                if png is not None:
                    tag = f"selected_design/{name}"
                    summaries.append((events.image_summary(tag, png), step))
        events.write_run(self.folder / "result", summaries)

    def close(self) -> None:
        """Close the event files."""
        self._search.close()
        self._supernet.close()

    def _write_layout(self) -> None:
        from torch.utils.tensorboard.summary import custom_scalars

        self._search.add(custom_scalars(LAYOUT), 0)

    def _figure_distance(self) -> int:
        doublings = len(self._trials) // (DENSE_FIGURES * self.figure_every)
        return int(self.figure_every * 2 ** max(0, doublings.bit_length() - 1))

    def _write_trial(self, record: TrialRecord) -> None:
        folder = self.folder / _trial_run(record.number)
        if (folder / events.EVENT_FILE).exists():
            return
        from torch.utils.tensorboard.summary import hparams

        shown = {}
        for name in dict.fromkeys((*map(metric_of, self.objectives), "crossbars", "compression")):
            if name in record.metrics:
                label, factor = UNITS.get(name, (name, 1.0))
                shown[label] = float(record.metrics[name]) * factor
        # The objectives are hparams too: the scatter view can put only hparams on its x axis.
        row = {
            "origin": record.origin,
            "feasible": "yes" if record.feasible else "no",
            **design_hparams(record.design),
            **shown,
        }
        metrics = {f"result/{name}": value for name, value in shown.items()}
        summaries = [(summary, 0) for summary in hparams(row, dict.fromkeys(metrics, 0.0))]
        summaries += [
            (events.scalar_summary(tag, value), record.number) for tag, value in metrics.items()
        ]
        events.write_run(folder, summaries, record.finished_at)

    def _write_curves(self, record: TrialRecord) -> None:
        step, at = len(self._trials), record.finished_at
        if self._started_at is None:
            self._started_at = at - record.seconds
        volume = self._tracker.add(record)
        self._search.scalar("hypervolume/over_trials", volume, step, at)
        seconds = max(0, round(at - self._started_at))
        self._search.scalar("hypervolume/over_seconds", volume, seconds, at)
        for level, best in self._best_accuracies(record):
            self._search.scalar(f"best_accuracy/{level}", best, step, at)
            self._search.scalar(f"best_accuracy_over_seconds/{level}", best, seconds, at)

    def _best_accuracies(self, record: TrialRecord) -> Iterable[tuple[str, float]]:
        """(level of the crossbar budget, best accuracy so far within it), where there is one."""
        accuracy = record.metrics.get("accuracy")
        limit = self.budget.get("crossbars")
        levels: dict[str, bool] = {"feasible": record.feasible}
        if limit is not None:
            for fraction in BUDGET_LEVELS:
                tag = f"within_{int(limit * fraction)}_crossbars"
                fits = float(record.metrics["crossbars"]) <= limit * fraction
                levels[tag] = record.feasible and fits
        for tag, counts in levels.items():
            if counts and accuracy is not None:
                self._best[tag] = max(self._best.get(tag, 0.0), float(accuracy))
            if tag in self._best:
                yield tag, self._best[tag]

    def _write_front(self) -> None:
        step = len(self._trials)
        if self._search.has(_front_tag(PANELS[-1]), step):
            return
        for summary in self._fronts(self._so_far()):
            self._search.add(summary, step)

    def _fronts(self, result: RunResult) -> Iterator[Any]:
        """The front's pictures, one against each cost."""
        for metric in PANELS:
            png = self._draw(partial(_front, result, metric))
            if png is not None:
                yield events.image_summary(_front_tag(metric), png)

    def _so_far(self) -> RunResult:
        trials = tuple(self._trials[number] for number in sorted(self._trials))
        return RunResult(
            name=self.name,
            config={},
            objectives=self.objectives,
            budget=self.budget,
            baseline=self.baseline,
            trials=trials,
            front=front_numbers(trials, self.objectives),
            finalists=tuple(self._finalists.values()),
            selected={},
        )

    def _draw(self, make: Callable[[], Figure]) -> bytes | None:
        """A figure as PNG, or None (with one warning) where matplotlib is missing."""
        if not self._figures:
            return None
        from epim_nas.report.figures import png_bytes

        try:
            return png_bytes(make())
        except InputError as error:
            if error.field != "matplotlib":
                raise
            self._figures = False
            log.warning("The dashboard has no figures. %s", error)
            return None


def _trial_run(number: int) -> str:
    return f"{TRIALS}/{number:04d}"


def _front_tag(metric: str) -> str:
    return f"front/{UNITS.get(metric, (metric, 1.0))[0]}"


def _front(result: RunResult, metric: str) -> Figure:
    from epim_nas.report.figures import front_figure

    title = f"{result.name}: {len(result.trials)} trials, {len(result.front)} on the front"
    return front_figure(result, [metric], title)


def _layers(draw: str, rows: Sequence[LayerRow], title: str) -> Figure:
    from epim_nas.report import figures

    figure: Figure = getattr(figures, draw)(rows, title)
    return figure


def _pages(
    result: RunResult, reference: ReferenceBox, run_folder: str | None
) -> list[tuple[str, str]]:
    """(tag, markdown) of the text pages."""
    typed = notes.commands(result, run_folder)
    lines = [f"**{purpose}**\n\n{markdown_code(command)}\n" for purpose, command in typed]
    measured = [*notes.measured(result), ("hypervolume", reference.describe())]
    how = [f"- **{markdown_text(name)}**: {markdown_text(text)}" for name, text in measured]
    return [
        ("front", markdown_table(result)),
        ("commands", "\n".join(lines)),
        ("how_measured", "\n".join(how)),
    ]
