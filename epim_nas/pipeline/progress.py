"""Progress of long work: bars on a terminal, a line now and then elsewhere. All on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from epim_nas import interrupts
from epim_nas.units import duration

log = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Called with how much is done, and a short text such as the loss."""

_QUIET_SECONDS = 15.0
"""Seconds between lines where there is no terminal."""


class Reporter:
    """Shows the stages of a run.

    Args:
        console: where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @contextmanager
    def stage(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a stage of ``total`` steps while the block runs; yields the advance function."""
        if self.console.is_terminal:
            yield from self._bar(title, total, done)
        else:
            yield from self._lines(title, total, done)

    def _bar(self, title: str, total: int, done: int) -> Iterator[Advance]:
        columns = (
            TextColumn("[bold]{task.description:<24}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, completed=done, text="")

            def advance(finished: int, text: str = "") -> None:
                interrupts.check()
                progress.update(task, completed=finished, text=text)

            yield advance

    def _lines(self, title: str, total: int, done: int) -> Iterator[Advance]:
        started = last = time.monotonic()
        log.info("%s: %d steps%s", title, total, f", {done} done before" if done else "")

        def advance(finished: int, text: str = "") -> None:
            nonlocal last
            interrupts.check()
            now = time.monotonic()
            if now - last >= _QUIET_SECONDS and finished < total:
                last = now
                rate = max(finished - done, 1) / (now - started)
                log.info(
                    "%s: %d of %d %s (%s left)",
                    title,
                    finished,
                    total,
                    text,
                    duration((total - finished) / rate),
                )

        yield advance
        log.info("%s: done in %s", title, duration(time.monotonic() - started))


class _LogFile(logging.FileHandler):
    """A log file whose disk may be full: that is said once, and the work goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger("epim_nas").removeHandler(self)
        log.warning("%s cannot be written (%s)", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):  # what could not be written is tried again
            super().close()


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append the package's log to a file while the block runs; the file may not exist yet."""
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("epim_nas")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def setup_logging(verbosity: int) -> None:
    """Send the package's log to stderr.

    Args:
        verbosity: -1 warnings only, 0 progress, 1 everything.
    """
    import optuna
    from rich.logging import RichHandler

    # Trials are shown by our own progress; Optuna would add two lines for each.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    root = logging.getLogger("epim_nas")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    console = Console(stderr=True)
    screen: logging.Handler
    if console.is_terminal:
        screen = RichHandler(console=console, show_path=False, show_time=False)
    else:
        screen = logging.StreamHandler()
        screen.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
    screen.setLevel(level)
    root.addHandler(screen)
