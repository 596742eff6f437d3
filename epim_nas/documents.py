"""YAML and JSON texts of plain values: null, truth values, numbers, text, lists and mappings.

What :func:`dump_yaml` writes, :func:`parse_yaml` reads back. What comes from outside is bounded:
a short text cannot fill the memory or overflow the stack.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import yaml

from epim_nas.errors import InputError, shortened

MOST_LEVELS = 50
"""Lists and mappings inside of each other; files of this package have fewer than 10."""
MOST_ALIASED = 100_000
"""Values that aliases may add to those that are written out."""
_LARGEST = 2**63 - 1
"""Largest whole number: what fits 64 bits."""

_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_PLAIN = {f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs: no file in UTF-8 holds them. Names of files not in UTF-8 do."""
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


class InvalidValue(yaml.constructor.ConstructorError):
    """A YAML text that is well-formed, with a value that is not taken."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Reads plain values.

    A key given twice is refused, where PyYAML silently keeps the last one. So are values that no
    JSON text has (dates, sets, bytes), merge keys, whole numbers of more than 64 bits, deep
    nesting, and aliases that repeat too much.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._level += 1
        if self._level > MOST_LEVELS:
            raise InvalidValue(
                f"more than {MOST_LEVELS} levels of lists and mappings",
                self.peek_event().start_mark,
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            _check_aliases(root)
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag == _MERGE:
            raise InvalidValue(
                "merge keys (`<<`) are not read; write its keys out", node.start_mark
            )
        if node.tag not in _PLAIN:
            raise InvalidValue(f"the type `{node.tag}` is not read", node.start_mark)
        kind = node.tag.removeprefix(_PREFIX)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError):
            # What PyYAML raises on text that is not of its type: `0x_`, `!!int x`.
            raise InvalidValue(
                f"`{_shown(node)}` is not a value of type {kind}", node.start_mark
            ) from None
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise InvalidValue(f"the number `{_shown(node)}` is too large", node.start_mark)
        if isinstance(value, str) and _HALVES.search(value):
            raise InvalidValue(f"`{_shown(node)}` has half of a surrogate pair", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        if not isinstance(node, yaml.MappingNode):
            raise InvalidValue("not a mapping", node.start_mark)
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise InvalidValue("a key is text, not a list or a mapping", key_node.start_mark)
            if key in result:
                raise InvalidValue(
                    f"the key `{_shown(key_node)}` is given twice", key_node.start_mark
                )
            result[key] = self.construct_object(value_node, deep)
        return result


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the loader, or another reader of YAML, takes for something else."""

    def represent_text(self, text: str) -> yaml.Node:
        if _HALVES.search(text):
            raise InputError(
                f"the text `{shortened(text, 100)}`",
                "has half of a surrogate pair, which is no character",
                "Unicode text",
                "Was it read in another encoding? Change the name or the value.",
            )
        # Unquoted and in single quotes, a break of lines is read back as another one.
        style = None if text.isprintable() else '"'
        return self.represent_scalar(f"{_PREFIX}str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)
# YAML 1.1, as PyYAML reads it, takes `1e-3` for text; everyone means the number (YAML 1.2).
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        f"{_PREFIX}float", re.compile(rf"^{_FLOAT.pattern}$"), list("-+.0123456789")
    )
# YAML 1.2 has no dates and no `=`: these are text, which the dumper quotes for readers of YAML 1.1.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in _PLAIN | {_MERGE}]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}


def dump_yaml(*documents: Any) -> str:
    """Plain values as YAML, in insertion order.

    Args:
        documents: the values, each a document; several are separated by ``---``.

    Raises:
        InputError: a text has half of a surrogate pair.
    """
    return str(
        yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    )


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, a key is given twice, or it holds more than plain values.
    """
    return yaml.load(text, Loader=_Loader)


def yaml_problem(error: yaml.YAMLError) -> str:
    """Where a YAML text is wrong and why, as the end of the sentence `not valid YAML...`."""
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{where}: {getattr(error, 'problem', None) or error}"


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is not JSON, nested too deeply, or holds NaN, infinity or a whole number of
            thousands of digits.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(str(error).partition(":")[0]) from None


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}` is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(shortened(text, 40))


def _shown(node: yaml.Node) -> str:
    return shortened(str(node.value), 40)


def _check_aliases(root: yaml.Node) -> None:
    """Refuse nodes that contain themselves, and aliases of aliases that grow without bound."""
    sizes: dict[int, int] = {}
    written = 0

    def size(node: yaml.Node) -> int:
        nonlocal written
        known = sizes.get(id(node))
        if known == 0:
            raise InvalidValue("it contains itself by an alias", node.start_mark)
        if known is not None:
            return known
        written += 1
        sizes[id(node)] = 0  # not known yet
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        total = 1
        for part in parts:
            total += sum(map(size, part)) if isinstance(part, tuple) else size(part)
        sizes[id(node)] = total
        return total

    if size(root) - written > MOST_ALIASED:
        raise InvalidValue(
            f"its aliases stand for more than {MOST_ALIASED} values", root.start_mark
        )
