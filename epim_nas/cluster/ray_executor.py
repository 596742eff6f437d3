"""Long-lived Ray actors that share one copy of the worker on each node."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from epim_nas.cluster.connection import connect, fitting
from epim_nas.cluster.executor import Executor, Factory, Outcome, PoolState, one_line
from epim_nas.errors import EpimError, InputError
from epim_nas.units import duration

if TYPE_CHECKING:
    from epim_nas.cluster.actor import Hello

log = logging.getLogger(__name__)

_HEARTBEAT = 1.0
"""Seconds between two looks at deadlines and at the cluster's size."""
_QUIET = 60.0
"""Seconds between two messages that no worker is alive, and until one about a long call."""
_LEAST_LIMIT, _TIMES_MEDIAN, _KNOWN = 60.0, 10.0, 5
"""An automatic limit: at least so many seconds, so many times the median of so many calls."""
_SHORT_SECONDS = 1.0
"""Calls with a smaller median are short."""
_GROWING_SECONDS = 120.0
"""Who waits so long for the first worker expects the cluster to grow."""
_START_FAILURES = 5
"""So many workers in a row that cannot start mean that none can."""


@dataclass(frozen=True)
class PoolSettings:
    """How many workers there are, and what becomes of those that fail.

    Attributes:
        workers: number of actors; ``auto`` for as many as the cluster has room for, also while it
            grows.
        cpus: CPU cores of an actor; also its number of torch threads.
        gpus: GPUs of an actor; a fraction shares one.
        timeout_s: seconds that a call may take before it is tried on another worker; ``auto`` for
            ten times the median of the calls before it and at least a minute; None for no limit.
        retries: how often a call is tried again after its worker was lost.
        wait_s: seconds to wait for the first worker.
    """

    workers: int | Literal["auto"] = 2
    cpus: float = 1.0
    gpus: float = 0.0
    timeout_s: float | Literal["auto"] | None = "auto"
    retries: int = 2
    wait_s: float = 60.0

    @property
    def cores(self) -> float:
        """CPU cores that a Ray on this machine has to offer at least."""
        return self.cpus * (1 if self.workers == "auto" else self.workers)


@dataclass
class _Call:
    """A call of a worker's method, and what became of it so far."""

    key: Hashable
    method: str
    args: tuple[Any, ...]
    losses: list[str] = field(default_factory=list)
    started: float = 0.0
    overdue: float = 0.0
    patience: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class RayExecutor(Executor):
    """Runs calls on Ray actors; what a lost actor was doing is done by another.

    The worker is made once and goes through Ray's object store, where all actors of a node read its
    arrays in place. An actor whose process or machine dies is restarted by Ray wherever there is
    room; its call is tried on the next idle actor, and fails for good when it has lost its worker
    too often (it may be what kills it). Actors that have no room yet join when there is some.

    Args:
        factory: makes the worker; called once, here.
        settings: the pool.
        address: Ray address, None for ``RAY_ADDRESS`` or a local start.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or has no room.
        EpimError: no worker can start.
    """

    def __init__(
        self, factory: Factory, settings: PoolSettings | None = None, address: str | None = None
    ) -> None:
        self._settings = settings or PoolSettings()
        self._ray, self._mine = connect(address, "the Ray executor", self._settings.cores)
        # The extra `ray` is optional: what needs it is imported when it is known to be there.
        from epim_nas.cluster.actor import WorkerActor
        from epim_nas.cluster.sharing import share

        self._actor_class = self._ray.remote(WorkerActor)
        self._queue: deque[_Call] = deque()
        self._starting: dict[Any, Any] = {}
        self._idle: deque[Any] = deque()
        self._busy: dict[Any, tuple[_Call, Any]] = {}
        self._given: dict[Any, deque[Any]] = {}  # actor -> its calls' references, in order
        self._outcomes: deque[Outcome] = deque()
        self._hosts: dict[Any, str] = {}
        self._durations: dict[str, deque[float]] = {}
        self._lost = self._late = self._start_failures = 0
        self._looked = self._quiet_since = time.monotonic()
        try:
            self._check_room()
            # Kept: an actor that restarts fetches it again, and Ray drops what nobody holds.
            self._payload = self._ray.put(share(factory()))
            self._grow()
            self._await_first()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """Calls to have under way: one for every living worker, and some to follow at once.

        Where calls are short, every worker has its next one already: it would wait for the driver
        otherwise. Where they are long, few follow: a proposal should know what was found before.
        """
        alive = len(self._idle) + len(self._given)
        return max(1, alive) + (alive if self._short else max(1, alive // 8))

    @property
    def _short(self) -> bool:
        """Whether calls take so little time that the driver's share of it counts."""
        known = next(iter(self._durations.values()), ())
        return bool(known) and statistics.median(known) < _SHORT_SECONDS

    @property
    def state(self) -> PoolState:
        """What the workers are doing."""
        return PoolState(
            idle=len(self._idle), busy=len(self._given), starting=len(self._starting),
            lost=self._lost, late=self._late,
        )  # fmt: skip

    def submit(self, key: Hashable, method: str, *args: Any) -> None:
        """Start a call on an idle actor, or queue it."""
        self._queue.append(_Call(key, method, args))
        self._start_calls()

    def wait(self) -> Outcome:
        """The outcome of the call that finishes next.

        Raises:
            RuntimeError: nothing was submitted.
            InputError: a call found something wrong that the user has to mend.
            EpimError: no worker can start any more.
        """
        while not self._outcomes:
            if not self._busy and not self._queue:
                raise RuntimeError("nothing was submitted")
            self._advance(_HEARTBEAT)
        return self._outcomes.popleft()

    def close(self) -> None:
        """End the actors, and Ray where this executor started it."""
        actors = [*self._idle, *self._starting.values(), *self._given]
        for container in (
            self._queue, self._idle, self._starting, self._busy, self._given, self._outcomes
        ):  # fmt: skip
            container.clear()
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor, no_restart=True)
            if self._mine:
                self._ray.shutdown()

    def _start_calls(self) -> None:
        while self._queue and (actor := self._next_actor(self._queue[0])) is not None:
            call = self._queue.popleft()
            call.started, call.overdue, call.patience = time.monotonic(), 0.0, _QUIET
            reference = actor.call.remote(call.method, *call.args)
            self._busy[reference] = (call, actor)
            self._given.setdefault(actor, deque()).append(reference)

    def _next_actor(self, call: _Call) -> Any:
        """An actor to give a call to: an idle one, else one that has only the call it is doing.

        A call that has lost a worker gets one of its own, so that no other is blamed for it.
        """
        if self._idle:
            return self._idle.popleft()
        if not self._short or call.losses:
            return None
        for actor, calls in self._given.items():
            if len(calls) == 1 and not self._busy[calls[0]][0].losses:
                return actor
        return None

    def _done(self, actor: Any, reference: Any) -> None:
        """A call of an actor is over; it goes on with its next one, or is idle."""
        calls = self._given[actor]
        calls.remove(reference)  # of two that are ready at once, either may be seen first
        if calls:
            self._busy[calls[0]][0].started = time.monotonic()
        else:
            del self._given[actor]
            self._idle.append(actor)

    def _advance(self, seconds: float) -> None:
        """Take in what happens within some seconds, at least one thing where one does."""
        self._start_calls()
        watched = [*self._busy, *self._starting]
        if not watched:  # `auto`, on a cluster that has no room for anybody yet
            time.sleep(seconds)
            self._look_after()
            return
        ready, waiting = self._ray.wait(watched, num_returns=1, timeout=seconds)
        if ready and waiting:  # whatever else is ready by now costs no second look
            more, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
            ready += more
        for reference in ready:
            if reference in self._starting:
                self._join(reference)
            elif reference in self._busy:  # unless it was taken back from a lost worker just now
                self._finish(reference)
        self._start_calls()
        if time.monotonic() - self._looked >= _HEARTBEAT:
            self._looked = time.monotonic()
            self._look_after()

    def _finish(self, reference: Any) -> None:
        """A call is over, one way or another."""
        call, actor = self._busy.pop(reference)
        exceptions = self._ray.exceptions
        try:
            value, lines = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, InputError):
                self._done(actor, reference)
                raise cause from None
            self._outcomes.append(Outcome(call.key, error=one_line(cause), seconds=call.seconds))
            self._done(actor, reference)
        except exceptions.RayError as error:
            self._lose(call, actor, error)
        else:
            self._durations.setdefault(call.method, deque(maxlen=100)).append(call.seconds)
            for level, line in lines:
                log.log(level, "worker on %s: %s", self._hosts.get(actor, "?"), line)
            self._outcomes.append(Outcome(call.key, value, seconds=call.seconds))
            self._done(actor, reference)

    def _lose(self, call: _Call, actor: Any, error: BaseException) -> None:
        """The worker of a call is gone: another tries the call, unless it was tried too often."""
        reason = f"took longer than {call.overdue:.0f} s" if call.overdue else "its worker died"
        host = self._hosts.get(actor, "?")
        for reference in reversed(self._given.pop(actor, ())):
            if reference in self._busy:  # it had not begun, and is not to blame
                self._queue.appendleft(self._busy.pop(reference)[0])
        self._lost += not call.overdue
        self._late += bool(call.overdue)
        self._greet(actor)
        call.losses.append(f"{reason} on {host}")
        if len(call.losses) > self._settings.retries:
            ways = "; ".join(dict.fromkeys(call.losses))
            text = f"given up after {len(call.losses)} attempts: {ways}"
            self._outcomes.append(Outcome(call.key, error=text, seconds=call.seconds))
        else:
            log.warning("call %s: %s on %s; it is tried again", call.key, reason, host)
            log.debug("%s", one_line(error))
            self._queue.appendleft(call)

    def _greet(self, actor: Any) -> None:
        """Watch for an actor that starts, or that Ray restarts."""
        self._starting[actor.hello.remote(self._payload)] = actor

    def _join(self, reference: Any) -> None:
        """An actor is ready, or cannot start."""
        actor = self._starting.pop(reference)
        try:
            hello: Hello = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._start_failures += 1
            if self._start_failures >= _START_FAILURES:
                raise EpimError(
                    f"{self._start_failures} workers in a row could not start: {_cause(error)}"
                ) from None
            log.warning("a worker could not start: %s", _cause(error))
            self._ray.kill(actor, no_restart=True)
            self._add_actor()
            return
        self._start_failures = 0
        self._idle.append(actor)
        self._hosts[actor] = hello.host
        log.info("worker %d on %s is ready (%s)", hello.pid, hello.host, hello.device)

    def _look_after(self) -> None:
        """Stop what takes too long, add workers where there is room, say when there are none."""
        for actor, calls in self._given.items():
            call = self._busy[calls[0]][0]
            limit = self._limit(call.method)
            if not call.overdue and call.seconds > limit:
                call.overdue = limit
                self._ray.kill(actor, no_restart=False)
            elif limit == float("inf") and call.seconds > call.patience:
                # Long, or frozen: nothing tells which, but the user must not take it for a hang.
                log.info(
                    "call %s: %s on %s so far; `executor.timeout_s` would limit it",
                    call.key, duration(call.seconds), self._hosts.get(actor, "?"),
                )  # fmt: skip
                call.patience *= 2
        self._grow()
        if self._idle or self._given:
            self._quiet_since = time.monotonic()
        elif time.monotonic() - self._quiet_since > _QUIET:
            self._quiet_since = time.monotonic()
            log.warning("no worker is alive; waiting for the cluster (%s)", self._room())

    def _limit(self, method: str) -> float:
        """Seconds that a call may take."""
        if self._settings.timeout_s != "auto":
            return self._settings.timeout_s or float("inf")
        known = self._durations.get(method, ())
        if len(known) < _KNOWN:
            return float("inf")
        return max(_LEAST_LIMIT, _TIMES_MEDIAN * statistics.median(known))

    def _grow(self) -> None:
        """Add actors up to what is wanted."""
        wanted = self._settings.workers
        if wanted == "auto":
            wanted = fitting(self._ray.nodes(), self._settings.cpus, self._settings.gpus)
        for _ in range(wanted - len(self._idle) - len(self._given) - len(self._starting)):
            self._add_actor()

    def _add_actor(self) -> None:
        settings = self._settings
        actor = self._actor_class.options(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_restarts=-1,  # wherever there is room
            max_task_retries=0,  # another actor tries the call again, not this one
        ).remote(max(1, int(settings.cpus)))
        self._greet(actor)

    def _await_first(self) -> None:
        """Wait until one worker is ready.

        Raises:
            InputError: none is after ``wait_s``.
        """
        until = time.monotonic() + self._settings.wait_s
        while not self._idle:
            left = until - time.monotonic()
            if left <= 0:
                raise InputError(
                    "executor",
                    f"no worker had room within {self._settings.wait_s:.0f} s ({self._room()})",
                    "resources that the cluster has free",
                    "Wait until other jobs end, ask for less (`executor.cpus`, `executor.gpus`), "
                    "or raise `executor.wait_s` where a cluster has to grow first.",
                )
            self._advance(min(left, _HEARTBEAT))

    def _check_room(self) -> None:
        """Refuse what no machine of the cluster can ever give; waiting would look like a hang."""
        settings = self._settings
        grows = settings.wait_s >= _GROWING_SECONDS
        if not grows and not fitting(self._ray.nodes(), settings.cpus, settings.gpus):
            raise InputError(
                "executor",
                f"no machine has room for one worker ({self._room()})",
                "at most what one machine of the cluster has",
                "Ask for less. Where the cluster grows, set `executor.wait_s` to "
                f"{_GROWING_SECONDS:.0f} or more.",
            )

    def _room(self) -> str:
        """What a worker asks for, and what is there."""
        settings, total = self._settings, self._ray.cluster_resources()
        free = self._ray.available_resources()
        return (
            f"a worker asks for {settings.cpus:g} CPU and {settings.gpus:g} GPU; of "
            f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU are "
            f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g} free"
        )


def _cause(error: BaseException) -> str:
    """The line of an actor's death that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def make_ray_executor(
    factory: Factory, settings: PoolSettings, address: str | None = None
) -> Executor:
    """A :class:`RayExecutor`; an unexpected failure of Ray becomes one clear error."""
    try:
        return RayExecutor(factory, settings, address)
    except (EpimError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise EpimError(f"the Ray executor could not start: {one_line(error)}") from error
