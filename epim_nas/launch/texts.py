"""Texts of the user in shell scripts, batch directives and printed commands."""

from __future__ import annotations

import re
import shlex
import unicodedata

from epim_nas.errors import InputError

_NOT_IN_LINES = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's control characters, halves of characters (undecodable names), ends of lines."""


def check_line(field: str, text: str) -> None:
    """Check that a text fits into a line of a script, where no quotes help against its end.

    Raises:
        InputError: it has a control character or is not Unicode.
    """
    wrong = next((c for c in text if unicodedata.category(c) in _NOT_IN_LINES), None)
    if wrong is not None:
        raise InputError(field, f"{text!a} has the character {wrong!a}", "printable characters")


def command_line(*parts: object) -> str:
    """A command that can be pasted into a shell."""
    return shlex.join(str(part) for part in parts)


def directive(name: str, value: object = None) -> str:
    r"""A line ``#SBATCH --NAME=VALUE``, quoted as ``sbatch`` reads it.

    It takes a backslash for the next character, also inside of quotes; only quotes keep spaces; and
    it blanks ``hetjob`` and ``packjob`` wherever a line has them (``_get_argument`` of its
    ``opt.c``).
    """
    if value is None:
        return f"#SBATCH --{name}"
    text = str(value)
    if not re.fullmatch(r"[\w.,/:@%+=-]+", text, re.ASCII):
        text = '"' + re.sub(r"([^\w.,/:@%+= -])", r"\\\1", text) + '"'
    return f"#SBATCH --{name}=" + re.sub("(?i)(het|pack)(?=job)", r"\1\\", text)
