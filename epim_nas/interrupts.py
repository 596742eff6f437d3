"""SIGINT and SIGTERM: noticed from the first line of ``main`` until the last file is written.

Without imports that take time: this is loaded before everything else.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 130
"""Exit code of an interrupted command."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_arrived = False


def install() -> None:
    """Let SIGINT and SIGTERM interrupt this process, also where the first attempt is lost.

    An exception that a signal raises in the middle of an import can come out as an ImportError,
    which whoever imports something optional takes for its absence. Long work therefore looks
    again (:func:`check`), and so does the end of a command (:func:`arrived`).
    """
    global _arrived
    _arrived = False
    for kind in _SIGNALS:
        signal.signal(kind, _interrupt)
    sys.unraisablehook = _unraisable


def arrived() -> bool:
    """Whether a signal has come."""
    return _arrived


def check() -> None:
    """Raise again what may have been swallowed.

    Raises:
        KeyboardInterrupt: a signal has come.
    """
    if _arrived:
        raise KeyboardInterrupt


def forget() -> None:
    """Take the signals so far for handled, where they are the usual way to end."""
    global _arrived
    _arrived = False


def finish(code: int) -> None:
    """Let a signal from now on end this process at once with a code: all is written."""
    for kind in _SIGNALS:
        signal.signal(kind, lambda *_: os._exit(code))


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _arrived
    _arrived = True
    raise KeyboardInterrupt


def _unraisable(unraisable: Any) -> None:
    """Pass on an interrupt that came in a finalizer, where Python would only print it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Not at once: in here it would be lost again.
        again = threading.Timer(0.01, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)
