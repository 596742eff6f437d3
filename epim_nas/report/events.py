"""TensorBoard event files that can be written again: after a resume nothing appears twice."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from epim_nas.files import atomic_path, make_parents, naming

EVENT_FILE = "events.out.tfevents.0.run"
"""Name of an event file that holds a whole run and is replaced as a whole."""

_VERSION = "brain.Event:2"

_HEADER = struct.Struct("<QI")
"""Length of a record and the checksum of this number, before it."""
_FOOTER_BYTES = 4
"""Checksum of a record, after it."""


def image_summary(tag: str, png: bytes) -> Any:
    """A ``Summary`` that shows a PNG."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    # Width and height lie at fixed places in a PNG's header.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def scalar_summary(tag: str, value: float) -> Any:
    """A ``Summary`` of one number."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])


def write_run(
    folder: Path, summaries: Iterable[tuple[Any, int]], wall_time: float | None = None
) -> None:
    """Replace a run's folder content by one event file, atomically.

    Args:
        folder: the run's folder.
        summaries: (``Summary``, step) pairs.
        wall_time: seconds since 1970 of all events; now by default.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    at = _now(wall_time)
    # The temporary file must not look like an event file: TensorBoard would read it half-written.
    pending = folder / "pending"
    with atomic_path(pending) as temporary, open(temporary, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=at, file_version=_VERSION).SerializeToString())
        for summary, step in summaries:
            event = Event(wall_time=at, step=step, summary=summary)
            writer.write(event.SerializeToString())
    os.replace(pending, folder / EVENT_FILE)


class RunEvents:
    """A run that grows: it knows which (tag, step) pairs are in its folder and skips those.

    Every opening adds an event file; TensorBoard reads the files of a folder one after the other.
    A file that a killed process left with half a record is read up to there.

    Args:
        folder: the run's folder; created when something is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._written = _existing(self.folder)
        self._file: BinaryIO | None = None

    def has(self, tag: str, step: int) -> bool:
        """Whether this tag was written at this step, now or before a resume."""
        return (tag, step) in self._written

    def add(self, summary: Any, step: int, wall_time: float | None = None) -> bool:
        """Write a ``Summary`` with one value; returns False if it was there already."""
        from tensorboard.compat.proto.event_pb2 import Event

        tag = summary.value[0].tag
        if self.has(tag, step):
            return False
        self._write(Event(wall_time=_now(wall_time), step=step, summary=summary))
        self._written.add((tag, step))
        return True

    def scalar(self, tag: str, value: float, step: int, wall_time: float | None = None) -> bool:
        """Write one number; returns False if the step was there already."""
        return self.add(scalar_summary(tag, value), step, wall_time)

    def close(self) -> None:
        """Close the file; a later :meth:`add` opens another one."""
        if self._file is not None:
            file, self._file = self._file, None
            with naming(Path(file.name)):  # what a full disk did not take is tried again
                file.close()

    def _write(self, event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            # TensorBoard reads files in the order of their names: number them, since its own
            # names are out of order when two are made in one second.
            count = len(_event_files(self.folder))
            path = self.folder / f"events.out.tfevents.{count:06d}.run"
            make_parents(path)
            self._file = open(path, "xb")  # noqa: SIM115
            self._write(Event(wall_time=event.wall_time, file_version=_VERSION))
        with naming(Path(self._file.name)):
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()

    def __enter__(self) -> RunEvents:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _now(wall_time: float | None) -> float:
    return time.time() if wall_time is None else wall_time


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _existing(folder: Path) -> set[tuple[str, int]]:
    """The (tag, step) pairs in a run's event files."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event

    found: set[tuple[str, int]] = set()
    for path in _event_files(folder):
        try:
            for record in _records(path.read_bytes()):
                event = Event.FromString(record)
                found.update((value.tag, event.step) for value in event.summary.value)
        except DecodeError:
            continue  # damaged: TensorBoard reads no further either
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of an event file.

    TensorBoard's own reader takes ten times as long, for checksums of all bytes in Python: many
    seconds of a long search. What is damaged here is a point of a curve, and is drawn twice.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    at = 0
    while at + _HEADER.size <= len(content):
        length, checksum = _HEADER.unpack_from(content, at)
        if masked_crc32c(content[at : at + 8]) != checksum:
            return
        begin, at = at + _HEADER.size, at + _HEADER.size + length + _FOOTER_BYTES
        if at <= len(content):
            yield content[begin : begin + length]
