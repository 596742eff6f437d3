"""TensorBoard's view of the workers: how many there are, what they lose, what they say."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from types import TracebackType

from epim_nas.cluster.executor import PoolState
from epim_nas.report.escape import markdown_code
from epim_nas.report.events import RunEvents

_LINES = 200
"""Newest lines that the log page keeps."""


class WorkersWriter(logging.Handler):
    """Writes the run ``workers``; collects what ``epim_nas.cluster`` logs while it is open.

    Args:
        folder: the dashboard's folder (``RUN/tensorboard``).
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(logging.INFO)
        self._events = RunEvents(Path(folder) / "workers")
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._news = False
        self._logger = logging.getLogger("epim_nas.cluster")

    def __enter__(self) -> WorkersWriter:
        self._logger.addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._logger.removeHandler(self)
        self._events.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line for the log page."""
        self._lines.append(f"{record.levelname[0]} {record.getMessage()}")
        self._news = True

    def add(self, state: PoolState, step: int, seconds: float) -> None:
        """Add what the workers do after so many results.

        Args:
            state: the workers.
            step: results so far.
            seconds: how long the last result took.
        """
        for name, value in (
            ("busy", state.busy), ("idle", state.idle), ("starting", state.starting),
            ("lost_calls", state.lost), ("late_calls", state.late), ("seconds", seconds),
        ):  # fmt: skip
            self._events.scalar(f"workers/{name}", value, step)
        if self._news:
            from torch.utils.tensorboard.summary import text

            self._news = False
            page = "\n".join(map(markdown_code, self._lines))
            self._events.add(text("workers/log", page), step)
