"""The exceptions of the package: one root, and one class for everything the user can mend."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from epim_nas.interrupts import check as check_interrupted

T = TypeVar("T")

_MOST_SHOWN = 500
"""Characters of each part of a message: a message is a few lines."""


def shortened(text: str, most: int = _MOST_SHOWN) -> str:
    """A text from outside as part of a message: one line, printable, its middle left out.

    Args:
        text: the text: a value of a user's file, what a library says.
        most: characters that it may have.
    """
    cut = text if len(text) <= 8 * most else text[: 4 * most] + text[-4 * most :]
    line = " ".join(cut.split()) if len(cut.splitlines()) > 1 else cut
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) <= most and len(cut) == len(text):
        return line
    tail = most // 3
    return f"{line[: most - tail - 5]} ... {line[len(line) - tail :]}"


class EpimError(Exception):
    """Root of every exception that this package raises on purpose (exit code 1)."""

    exit_code = 1


class InputError(EpimError, ValueError):
    """Something that came from outside is wrong (exit code 2).

    The message names the field, what was got, what is allowed, and what to do next.

    Args:
        field: dotted path of the field, option or file, e.g. ``run.yaml: budget.crossbars``.
        problem: what was got and why it is wrong.
        allowed: what would be right.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, field: str, problem: str, allowed: str = "", hint: str = "") -> None:
        self.field = field
        self.problem = problem
        self.allowed = allowed
        self.hint = hint
        field, problem, allowed, hint = map(shortened, (field, problem, allowed, hint))
        parts = [f"{field}: {problem}"]
        if allowed:
            parts.append(f"Allowed: {allowed}.")
        if hint:
            parts.append(hint)
        super().__init__(
            " ".join(part if part.endswith((".", "?")) else part + "." for part in parts)
        )

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        # Exceptions cross process boundaries (Ray workers); the default would lose the fields.
        return type(self), (self.field, self.problem, self.allowed, self.hint)


class Inexpressible(InputError):
    """A network or design that a format, or a tool that writes it, cannot express."""


class InterruptedRun(EpimError):
    """The user interrupted a run; everything finished so far is saved (exit code 130)."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word closest to ``word``, or the empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean `{match[0]}`?" if match else ""


def find_named(table: Mapping[str, T], name: str, field: str, what: str) -> T:
    """The entry of a name.

    Args:
        table: name -> entry.
        name: what was given.
        field: where it was given.
        what: what it should be the name of, with its article.

    Raises:
        InputError: there is no such name.
    """
    if name not in table:
        known = ", ".join(f"`{known}`" for known in table)
        raise InputError(field, f"`{name}` is not {what}", known, nearest(name, table))
    return table[name]


def missing_extra(module: str, extra: str, purpose: str) -> InputError:
    """The error for an optional dependency that is not installed.

    Args:
        module: the module that could not be imported.
        extra: the extra of this package that installs it.
        purpose: what it is needed for.

    Raises:
        KeyboardInterrupt: a signal came while it was imported, and was taken for its absence.
    """
    check_interrupted()
    return InputError(
        module,
        f"{purpose} needs the package `{module}`, which is not installed",
        hint=f"Install it with `pip install 'epim_nas[{extra}]'`.",
    )


_TO_DO = {
    errno.ENOSPC: "Make room there, and type the same command again.",
    errno.EDQUOT: "Make room there, and type the same command again.",
    errno.EACCES: "Check who may read and write it.",
    errno.EPERM: "Check who may read and write it.",
    errno.EROFS: "Its disk is read-only: write elsewhere.",
    errno.EMFILE: "Allow more open files (`ulimit -n`).",
    errno.EIO: "Its disk may be failing.",
}
_OF_RUST = re.compile(r"\(os error (\d+)\)")


def os_error(error: BaseException) -> OSError | None:
    """The operating system's error behind an exception; None where there is none.

    Libraries wrap it: torch raises a RuntimeError in its wake, safetensors has its number in a
    text.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        found = _OF_RUST.search(str(cause))
        if found:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        cause = cause.__cause__ or cause.__context__
    return None


def machine_fault(error: BaseException) -> str | None:
    """What to say of an error that is the machine's: a full disk, a file that may not be read.

    Returns:
        The message, with the file's name where it is known; None where it is no such error.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory. Use smaller batches, or a machine with more of it."
    if not isinstance(error, OSError):
        return None
    try:
        os.getcwd()
    except OSError:
        return "the current folder was deleted or moved. Change to another one (`cd`)."
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return " ".join(filter(None, [f"{where}{reason}.", _TO_DO.get(error.errno or 0)]))
