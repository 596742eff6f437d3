"""The exceptions of the package: one root, and one class for everything the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


_LONGEST, _LONGEST_ADVICE = 500, 1500
"""Characters of a part of a message: of what was got, and of what is allowed."""


def shortened(text: str, longest: int = _LONGEST) -> str:
    """A text on one line, its middle left out where it is long, e.g. a value of a user's file."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    return f"{line[: longest // 2]} ... {line[-(longest // 2) :]}"


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
        self.field = shortened(field)
        self.problem = shortened(problem)
        self.allowed = shortened(allowed, _LONGEST_ADVICE)
        self.hint = shortened(hint, _LONGEST_ADVICE)
        field, problem, allowed, hint = self.field, self.problem, self.allowed, self.hint
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
    """
    return InputError(
        module,
        f"{purpose} needs the package `{module}`, which is not installed",
        hint=f"Install it with `pip install 'epim_nas[{extra}]'`.",
    )
