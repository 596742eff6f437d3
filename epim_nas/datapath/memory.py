"""Memory images that Verilog's ``$readmemh`` reads (IEEE 1364-2005, 17.2.9)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epim_nas.errors import InputError
from epim_nas.files import read_text, write_text

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F][0-9a-fA-F_]*")


@dataclass(frozen=True)
class Field:
    """A field of a word.

    Attributes:
        name: what it holds.
        bits: its width.
    """

    name: str
    bits: int


@dataclass(frozen=True)
class Memory:
    """A memory and its content.

    A word is ``count`` records of the same fields, from the least significant bit up: record 0
    first, and in a record the first field first.

    Attributes:
        fields: the fields of a record.
        count: records of a word.
        words: the words as unsigned integers, address 0 first.
    """

    fields: tuple[Field, ...]
    count: int
    words: tuple[int, ...]

    @property
    def record_bits(self) -> int:
        """Bits of a record."""
        return sum(field.bits for field in self.fields)

    @property
    def width(self) -> int:
        """Bits of a word."""
        return self.count * self.record_bits

    @property
    def bits(self) -> int:
        """Bits of the memory."""
        return self.width * len(self.words)

    def records(self, address: int) -> list[dict[str, int]]:
        """The records of a word, field by field."""
        word, found = self.words[address], []
        for _ in range(self.count):
            record = {}
            for field in self.fields:
                record[field.name] = word & ((1 << field.bits) - 1)
                word >>= field.bits
            found.append(record)
        return found


def pack(fields: Sequence[Field], records: Sequence[Sequence[int]]) -> int:
    """A word of records; values in the order of the fields.

    Raises:
        InputError: a value needs more bits than its field has.
    """
    word, shift = 0, 0
    for record in records:
        for field, value in zip(fields, record, strict=True):
            if not 0 <= value < 1 << field.bits:
                raise InputError(
                    f"field {field.name}", f"got {value}", f"0 to {(1 << field.bits) - 1}"
                )
            word |= value << shift
            shift += field.bits
    return word


def write_memory(path: str | Path, memory: Memory, title: str) -> None:
    """Write the image of a memory, one word a line.

    Args:
        path: the file.
        memory: the memory.
        title: what it is, for the comment at its head.
    """
    record = ", ".join(f"{field.name} [{field.bits}]" for field in memory.fields)
    digits = -(-memory.width // 4)
    lines = [
        f"// {' '.join(title.split())}",  # names may hold line breaks
        f"// {len(memory.words)} words of {memory.width} bits: {memory.count} records of {record},",
        "// from the least significant bit up",
        *(f"{word:0{digits}x}" for word in memory.words),
    ]
    write_text(path, "\n".join(lines) + "\n")


def read_memory(path: str | Path, width: int, depth: int) -> tuple[int, ...]:
    """The words of an image, as ``$readmemh`` would load them.

    Comments, underscores and ``@address`` are understood; unlike in Verilog, every word has to be
    given once, and none may be unknown (``x``, ``z``).

    Args:
        path: the file.
        width: bits of a word.
        depth: words of the memory.

    Raises:
        InputError: the file is missing or malformed, or is not an image of such a memory.
    """
    text = _COMMENT.sub(" ", read_text(path))
    words: dict[int, int] = {}
    address = 0
    for token in text.split():
        if token.startswith("@"):
            address = _number(token[1:], path, "an address")
            continue
        value = _number(token, path, "a word")
        field = f"{path}: word {address}"
        if value >> width:
            raise InputError(field, f"has {value.bit_length()} bits", f"{width} bits a word")
        if address >= depth:
            raise InputError(field, "lies outside of the memory", f"addresses 0 to {depth - 1}")
        if address in words:
            raise InputError(field, "is given twice", "every word once")
        words[address] = value
        address += 1
    if len(words) < depth:
        first = next(index for index in range(depth) if index not in words)
        raise InputError(
            f"{path}: word {first}",
            f"is missing: {len(words)} words",
            f"{depth} words",
            "Export the design again.",
        )
    return tuple(words[index] for index in range(depth))


def _number(token: str, path: str | Path, what: str) -> int:
    if not _HEX.fullmatch(token):
        raise InputError(str(path), f"got `{token[:40]}`", f"{what} of hexadecimal digits")
    return int(token.replace("_", ""), 16)
