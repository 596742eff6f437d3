"""The note of what is being evaluated, so that a killed driver's successor evaluates it again.

One line of JSON a proposal, appended and fsynced before the proposal is handed out. Lines of what
is stored by now stay until there are many, and then the file is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from epim_nas.errors import EpimError
from epim_nas.files import naming, write_text
from epim_nas.records import Origin
from epim_nas.space.space import Row

_SLACK = 100
"""Lines of stored trials that may stay, and as many as are in flight."""


@dataclass(frozen=True)
class Pending:
    """A proposal whose evaluation has not finished.

    Attributes:
        asked: number of the proposal.
        row: the design.
        origin: seed or search.
        sampler_state: what the sampler noted in the trial (how it came about; NSGA-II and III:
            its generation); a resumed search needs it.
    """

    asked: int
    row: Row
    origin: Origin
    sampler_state: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pending:
        """From what :func:`~dataclasses.asdict` gave."""
        state = data.get("sampler_state", {})
        return cls(data["asked"], tuple(data["row"]), data["origin"], state)


class InFlight:
    """The file of proposals without a result.

    Args:
        path: the file; nothing is written before something is begun.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: dict[int, Pending] = {}
        self._file: TextIO | None = None
        self._lines = 0

    def begin(self, pending: Pending) -> None:
        """Note durably that a proposal is being evaluated."""
        self._pending[pending.asked] = pending
        if self._file is None or self._lines >= 2 * len(self._pending) + _SLACK:
            self._replace()
            return
        with naming(self._path):
            self._file.write(_line(pending))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._lines += 1

    def end(self, asked: int) -> None:
        """Forget a proposal whose result is stored; its line may stay."""
        self._pending.pop(asked, None)

    def left_over(self, stored: Iterable[int]) -> list[Pending]:
        """Proposals of an earlier, killed driver that are not among those that are stored.

        Raises:
            EpimError: the file cannot be read.
        """
        known = set(stored)
        left = {p.asked: p for p in self._read() if p.asked not in known}
        # Kept in the file until they are stored: this driver may be killed as well.
        self._pending = left | self._pending
        return list(left.values())

    def _read(self) -> list[Pending]:
        if not self._path.exists():
            return []
        found = []
        lines = self._path.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break  # torn by a kill, so it was never handed out
            try:
                found.append(Pending.from_dict(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EpimError(
                    f"{self._path}, line {number}: cannot be read ({error}); delete the file"
                ) from None
        return found

    def _replace(self) -> None:
        if self._file is not None:
            self._file.close()
        write_text(self._path, "".join(map(_line, self._pending.values())))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._lines = len(self._pending)


def _line(pending: Pending) -> str:
    return json.dumps(asdict(pending), allow_nan=False) + "\n"
