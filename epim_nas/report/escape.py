"""Text from outside (names of networks, chips, layers) in reports: one function a format.

HTML is Jinja's: its templates escape by themselves.
"""

from __future__ import annotations

import re

_MARKDOWN = re.compile(r"[\\`*{}\[\]]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {
    "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "~": "&#126;", "$": "&#36;",
    "://": "&#58;//",
}  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
}


def one_line(text: str) -> str:
    """Text without line breaks and signs that cannot be seen."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def markdown_text(text: str) -> str:
    """Text that markdown shows as it is, in a paragraph, a list or a cell of a table."""
    text = _MARKDOWN.sub(r"\\\g<0>", one_line(text))
    text = re.sub("|".join(map(re.escape, _ENTITIES)), lambda found: _ENTITIES[found[0]], text)
    return re.sub(r"^(\s*)([#+-]|\d+[.)])", _at_the_beginning, text)


def _at_the_beginning(found: re.Match[str]) -> str:
    """What begins a heading, a list or a rule, as a text."""
    return f"{found[1]}{found[2][:-1]}\\{found[2][-1]}"


def markdown_code(text: str) -> str:
    """Text as a block of code."""
    lines = text.splitlines() or [""]
    return "\n".join(f"    {line}" for line in lines)


def latex_text(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))


def figure_text(text: str) -> str:
    """Text that matplotlib draws as it is: between two dollars it would be mathematics."""
    return one_line(text).replace("$", r"\$")
