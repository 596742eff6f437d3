"""The note of what is being evaluated, so that a killed driver's successor evaluates it again.

One line of JSON a proposal with its digest, appended and fsynced before the proposal is handed out.
Lines of what is stored by now stay until there are many, and then the file is replaced. A line that
is damaged is left out: the strategy proposes again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from epim_nas.files import digest, naming, read_bytes, write_text
from epim_nas.records import Origin
from epim_nas.space.space import Row

log = logging.getLogger(__name__)

_SLACK = 100
"""Lines of stored trials that may stay, and as many as are in flight."""
_DIGEST = "sha256"
"""Key of a line's digest."""


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
        self._lines: int | None = None  # that this process knows of; none before the first

    def begin(self, pending: Pending) -> None:
        """Note durably that a proposal is being evaluated."""
        self._pending[pending.asked] = pending
        if self._lines is None or self._lines >= 2 * len(self._pending) + _SLACK:
            write_text(self._path, "".join(map(_line, self._pending.values())))
            self._lines = len(self._pending)
            return
        with naming(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(pending))
            file.flush()
            os.fsync(file.fileno())
        self._lines += 1

    def end(self, asked: int) -> None:
        """Forget a proposal whose result is stored; its line may stay."""
        self._pending.pop(asked, None)

    def left_over(self, stored: Iterable[int]) -> list[Pending]:
        """Proposals of an earlier, killed driver that are not among those that are stored."""
        known = set(stored)
        left = {p.asked: p for p in self._read() if p.asked not in known}
        # Kept in the file until they are stored: this driver may be killed as well.
        self._pending = left | self._pending
        return list(left.values())

    def _read(self) -> list[Pending]:
        if not self._path.exists():
            return []
        found = []
        # What follows the last end of a line was torn by a kill, so it was never handed out.
        lines = read_bytes(self._path).split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                found.append(_pending_of(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning(
                    "%s, line %d: damaged (%s); what was in flight is proposed again",
                    self._path, number, error,
                )  # fmt: skip
        return found


def _line(pending: Pending) -> str:
    data = asdict(pending)
    return json.dumps({**data, _DIGEST: digest(data)}, allow_nan=False) + "\n"


def _pending_of(line: bytes) -> Pending:
    data = json.loads(line)
    told = data.pop(_DIGEST, None)  # none in a file of an earlier version
    if told is not None and told != digest(data):
        raise ValueError("its digest is another")
    return Pending.from_dict(data)
