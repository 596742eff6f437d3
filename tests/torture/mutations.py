"""Damage to YAML and INI texts that keeps most of their structure, from a seed.

A YAML text is read, one or a few nodes are changed, and it is written again in flow style, in which
any node can be replaced by any text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from epim_nas.documents import parse_yaml


@dataclass
class Raw:
    """A piece of YAML as it stands."""

    text: str


@dataclass
class Pairs:
    """A mapping; unlike a dict, it may have a key twice."""

    items: list[tuple[Any, Any]]


Node = Any
"""A plain value, a list of nodes, :class:`Pairs` or :class:`Raw`."""

GROWING = (
    "[&a0 {x: 1}, "
    + ", ".join(f"&a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}" for n in range(1, 30))
    + "]"
)
NASTY = [
    *("null", "~", "true", "no", "''", '""', "' '", "[]", "{}", "[[]]", "{a: 1}", "[1, 2, 3]"),
    *("0", "-0", "1", "-1", "1.5", "0.0", "1e-320", "1e300", "-1e300", "1e400", ".nan", ".inf"),
    *("-.inf", "2147483648", "4294967296", "1000000000", "99999999999", "9223372036854775807"),
    *("9223372036854775808", "1" + "0" * 30, "9" * 5000, "0x" + "f" * 64, "0x_", "0b_", "1_000"),
    *("1e5", "1.0e-3", "2026-01-01", "2026-13-45", "12:30:45", "=", "<<", "!!int x", "!!float []"),
    *("!!str 1", "!!binary aGk=", "!!set {a}", "!!timestamp x", "!!bool maybe", "!unknown x"),
    *("!!python/object/apply:os.system [true]", "{<<: {a: 1}}", "{<<: 1}", "{? [a] : 1}", "*none"),
    *(
        "&a [*a]",
        "&b {c: *b}",
        "[&c 1, *c]",
        GROWING,
        "a" * 20_000,
        "'a: b'",
        "'../../x'",
        "/dev/zero",
    ),
    *("/etc/passwd", "~nobody_of_this_name/x", '"a\\0b"', '"\\e[31m"', '"\\ud800"', '"\\u2028"'),
    *("'$(touch /tmp/x)'", "'`id`'", "'{{1}}'", "'%s'", "'[red]'", "w3a3", "auto", "input", "none"),
    *("1/2", "0/1", "1/0", "3/2", "-1/2", "2 crossbars", "0 crossbars", "1e9 crossbars", "8x8"),
    *("99999999x99999999", "0x0", "'*'", "'['", "'('", "os:system", "os.path:join", "a:b:c", ":"),
    *("[" * 60 + "]" * 60, "[" * 3000, "{a: " * 60 + "1" + "}" * 60, "[1, [2, [3]]]"),
]
"""Values that a file should not have, and some that it may have somewhere else."""
KEYS = ["''", "null", "1", "1.5", "true", "schema", "name", "<<", "[a]", "{a: 1}", "a" * 5000]
"""Keys that a file should not have."""


def parsed(text: str) -> Node:
    """The nodes of a YAML text."""
    return _node(parse_yaml(text))


def _node(data: Any) -> Node:
    if isinstance(data, dict):
        return Pairs([(key, _node(value)) for key, value in data.items()])
    return [_node(value) for value in data] if isinstance(data, list) else data


def written(node: Node) -> str:
    """Nodes as YAML in flow style, one entry of the outermost mapping a line."""
    if isinstance(node, Pairs):
        return "{" + ", ".join(f"{_key(key)}: {written(value)}" for key, value in node.items) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(written, node)) + "]"
    return node.text if isinstance(node, Raw) else json.dumps(node, ensure_ascii=False)


def _key(key: Any) -> str:
    # A long key, or one that is no text, needs the question mark.
    text = written(key)
    return f"? {text} " if isinstance(key, Raw) or len(text) > 100 else text


def _places(node: Node) -> list[tuple[Any, int]]:
    """(holder, position) of every node but the root."""
    parts = node.items if isinstance(node, Pairs) else node if isinstance(node, list) else []
    found: list[tuple[Any, int]] = []
    for index, part in enumerate(parts):
        found.append((parts, index))
        found += _places(part[1] if isinstance(node, Pairs) else part)
    return found


def _value(holder: Any, index: int) -> Node:
    part = holder[index]
    return part[1] if isinstance(part, tuple) else part


def _put(holder: Any, index: int, node: Node) -> None:
    part = holder[index]
    holder[index] = (part[0], node) if isinstance(part, tuple) else node


def _delete(rng: Random, holder: Any, index: int) -> None:
    del holder[index]


def _duplicate(rng: Random, holder: Any, index: int) -> None:
    holder[index:index] = [holder[index]] * rng.choice([1, 2, 300])


def _replace(rng: Random, holder: Any, index: int) -> None:
    _put(holder, index, Raw(rng.choice(NASTY)))


def _scale(rng: Random, holder: Any, index: int) -> None:
    value = _value(holder, index)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _replace(rng, holder, index)
        return
    factor = rng.choice([-1, 0, 2, 10, 1000, 10**6, 10**9, 10**15, 1e-3, 1e-9, 0.5, 1 / 3])
    scaled = value * factor
    is_whole = isinstance(value, int) and rng.random() < 0.7
    _put(holder, index, int(scaled) if is_whole else float(scaled))


def _change(rng: Random, holder: Any, index: int) -> None:
    """Another value of the same type, which may well be right."""
    value = _value(holder, index)
    if isinstance(value, bool):
        _put(holder, index, not value)
    elif isinstance(value, int):
        _put(holder, index, rng.choice([1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 63, 64, 65, 255, 1024]))
    elif isinstance(value, float):
        _put(holder, index, rng.choice([1e-6, 1e-3, 0.1, 0.5, 1.0, 3.3, 64.0, 1e3, 1e6, 1e9]))
    elif isinstance(value, str):
        _put(holder, index, rng.choice(["c1", "c2", "conv", "fc", "last", "1/3", "stages", value]))
    else:
        _duplicate(rng, holder, index)


def _wrap(rng: Random, holder: Any, index: int) -> None:
    value = _value(holder, index)
    shapes: list[Node] = [[value], [value, value], Pairs([("a", value)]), [[value]], str(value)]
    _put(holder, index, rng.choice(shapes))


def _rename(rng: Random, holder: Any, index: int) -> None:
    part = holder[index]
    if not isinstance(part, tuple):
        _replace(rng, holder, index)
        return
    known = str(part[0])
    names = [known + "s", known[:-1], known.upper(), Raw(rng.choice(KEYS))]
    holder[index] = (rng.choice(names), part[1])


def _add(rng: Random, holder: Any, index: int) -> None:
    node = Raw(rng.choice(NASTY))
    holder.insert(index, (f"added_{index}", node) if isinstance(holder[index], tuple) else node)


def _deepen(rng: Random, holder: Any, index: int) -> None:
    value = _value(holder, index)
    for _ in range(rng.choice([3, 30, 100])):
        value = [value] if rng.random() < 0.5 else Pairs([("a", value)])
    _put(holder, index, value)


CHANGES: list[Callable[[Random, Any, int], None]] = [
    *(_replace, _replace, _replace, _scale, _scale, _scale, _change, _change, _change, _change),
    *(_delete, _duplicate, _wrap, _rename, _add, _deepen),
]


def mutated_yaml(text: str, rng: Random) -> str:
    """A YAML text with one to three changes, now and then also to the text itself."""
    root = parsed(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(root)
        if not places:
            break
        if rng.random() < 0.1:  # two values change places
            (first, i), (second, j) = rng.choice(places), rng.choice(places)
            one, other = _value(first, i), _value(second, j)
            if not (isinstance(one, (list, Pairs)) or isinstance(other, (list, Pairs))):
                _put(first, i, other)
                _put(second, j, one)
                continue
        holder, index = rng.choice(places)
        rng.choice(CHANGES)(rng, holder, index)
    result = written(root)
    return damaged_text(result, rng) if rng.random() < 0.05 else result


def damaged_text(text: str, rng: Random) -> str:
    """A text with characters lost, doubled or put in."""
    at = rng.randrange(len(text) + 1)
    end = min(len(text), at + rng.choice([1, 1, 5, 50]))
    odd = rng.choice(
        ["\t", "\0", "\x1b", "\u2028", "\ufeff", "%", "@", "`", "---\n", "...", "\r", "&a "]
    )
    return rng.choice(
        [
            text[:at],
            text[at:],
            text[:at] + text[end:],
            text[:end] + text[at:],
            text[:at] + odd + text[at:],
        ]
    )


def mutated_ini(text: str, rng: Random) -> str:
    """The text of an INI file with one to three lines changed."""
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(lines))
        key, equals, value = lines[at].partition(" = ")
        change = rng.choice(["delete", "value", "value", "value", "key", "double", "scale", "swap"])
        if change == "delete":
            del lines[at]
        elif change == "double":
            lines.insert(at, lines[at])
        elif change == "swap":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif change == "key":
            lines[at] = rng.choice(KEYS) + equals + value
        elif change == "scale" and value.replace(".", "").isdigit():
            factor = rng.choice([-1, 0, 10, 1e9, 1e-9, 10**30])
            lines[at] = f"{key}{equals}{float(value) * factor:g}"
        else:
            lines[at] = f"{key} = {rng.choice(NASTY)}"
    result = "\n".join(lines) + "\n"
    return damaged_text(result, rng) if rng.random() < 0.1 else result
