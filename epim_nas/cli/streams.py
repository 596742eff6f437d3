"""Standard output and error, whatever they are: closed, full, of any encoding, a pipe to ``head``.

Without imports that take time: this is loaded before everything else.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

from epim_nas.errors import EpimError

_ERRORS = "epim_nas.plain"
_PLAIN = {"–": "-", "—": "-", "…": "...", "×": "x", "µ": "u", "²": "2", "“": '"', "”": '"'}


class ReaderGone(EpimError):
    """Nobody reads the output any more (``| head``); that is the reader's right."""

    exit_code = 0


class _Output(io.FileIO):
    """A standard stream whose faults are told once, by their name, and then no more.

    Not as OSErrors, of which Click and Rich end the process with an exit code of their own.
    """

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            descriptor = self.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            if descriptor == 2:  # nobody can be told
                return len(memoryview(data))  # type: ignore[arg-type]
            if isinstance(error, BrokenPipeError):
                raise ReaderGone("the reader of the output is gone") from None
            raise EpimError(f"stdout: {error.strerror}. The output could not be written.") from None


def guard() -> None:
    """Make the standard streams of this process ones that can be written to in any case.

    A character that the stream's encoding lacks becomes a plain one, or an escape. A stream that
    is closed takes everything and shows nothing; files that are opened later do not get its number.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error(_ERRORS, _plain)
    sys.stdout = _guarded(sys.stdout, 1)
    sys.stderr = _guarded(sys.stderr, 2)


def _guarded(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is not None:
        stream.flush()
    raw = _Output(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=_ERRORS,
        line_buffering=descriptor == 2 or raw.isatty(),
    )


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written in place of characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    if all("\udc80" <= sign <= "\udcff" for sign in text):  # bytes of a file's name
        return text.encode("ascii", "surrogateescape"), error.end
    plain = "".join(_PLAIN.get(sign, sign) for sign in text)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end
