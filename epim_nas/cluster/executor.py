"""The executor interface and the one that runs in this process."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from epim_nas.errors import InputError

Factory = Callable[[], Any]
"""Makes the object whose methods are called; it is called once in every worker."""


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        key: the key that it was submitted with.
        value: what the method returned, None after an error.
        error: one line about what went wrong, empty if nothing did.
        seconds: seconds from start to end of the call.
    """

    key: Hashable
    value: Any = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class PoolState:
    """What an executor's workers are doing.

    Attributes:
        idle: workers that wait for a call.
        busy: workers with a call.
        starting: workers that are not there yet, or not again.
        lost: calls so far whose worker died.
        late: calls so far that took too long.
    """

    idle: int = 0
    busy: int = 0
    starting: int = 0
    lost: int = 0
    late: int = 0


class Executor(ABC):
    """Calls methods of a worker object, somewhere."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many calls to have under way; submitting more only queues them. It may change."""

    @property
    def state(self) -> PoolState:
        """What the workers are doing."""
        return PoolState()

    @abstractmethod
    def submit(self, key: Hashable, method: str, *args: Any) -> None:
        """Ask for ``worker.method(*args)``; :meth:`wait` returns its outcome under ``key``."""

    @abstractmethod
    def wait(self) -> Outcome:
        """The next outcome, in the order in which calls finish.

        Raises:
            RuntimeError: nothing was submitted.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of all workers."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalExecutor(Executor):
    """Runs every call in this process, one after the other, when its outcome is waited for.

    Args:
        factory: makes the worker; called when the first call runs.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._worker: Any = None
        self._queue: deque[tuple[Hashable, str, tuple[Any, ...]]] = deque()

    @property
    def capacity(self) -> int:
        """One call at a time."""
        return 1

    def submit(self, key: Hashable, method: str, *args: Any) -> None:
        """Queue a call."""
        self._queue.append((key, method, args))

    def wait(self) -> Outcome:
        """Run the oldest queued call."""
        if not self._queue:
            raise RuntimeError("nothing was submitted")
        key, method, args = self._queue.popleft()
        if self._worker is None:
            self._worker = self._factory()
        started = time.monotonic()
        try:
            value = getattr(self._worker, method)(*args)
        except InputError:
            raise  # wrong for every design: the user has to mend it
        except Exception as error:  # one bad design must not end the search
            return Outcome(key, error=one_line(error), seconds=time.monotonic() - started)
        return Outcome(key, value, seconds=time.monotonic() - started)

    def close(self) -> None:
        """Drop the worker and what is queued."""
        self._queue.clear()
        self._worker = None


def one_line(error: BaseException) -> str:
    """An exception as one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}".rstrip(": ")


def input_error_in(error: BaseException | None) -> InputError | None:
    """The user's error inside of those that Ray wraps around what a worker raises, if any."""
    while error is not None and not isinstance(error, InputError):
        inner = [getattr(error, "cause", None), error.__cause__]
        inner += getattr(error, "worker_failures", {}).values()
        error = next((e for e in inner if isinstance(e, BaseException) and e is not error), None)
    return error
