"""An event loop without a clock, a socket or a choice of its own: the same seed gives the same run.

Many simulated processes share it. Each handle belongs to the process in whose context it was made, so a
process can be stopped between any two steps of any of its tasks, continued later, or ended for good.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from random import Random
from typing import Any, TypeVar, cast

T = TypeVar("T")

# Most of what a loop may be asked raises NotImplementedError in it: who needs more is told so.
Base: Any = asyncio.AbstractEventLoop

MAX_STEPS = 400_000  # of one run: twenty times what the longest good one took; beyond, something spins


class Stuck(Exception):
    """Nothing is left to run, or far too much."""


class Life(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class Process:
    """One simulated process: its tasks, its clock's error, and whether it runs at all."""

    def __init__(self, place: str, life: int, *, wall_skew: float = 0.0) -> None:
        self.place = place  # which the next one takes when this has ended
        self.name = f"{place}.{life}"
        self.stop = asyncio.Event()
        self.ended = False
        self.life = Life.RUNNING
        self.wall_skew = wall_skew  # seconds its wall clock is off
        self.cut_until = 0.0  # no request of it arrives, and no answer
        self.fuse = -1  # steps until something happens to it; negative: nothing will
        self.backlog: deque[Handle] = deque()  # what it was about to do when it was paused
        self.pauses: list[tuple[float, float]] = []
        self.context = copy_context()
        self.context.run(CURRENT.set, self)

    def __repr__(self) -> str:
        return f"<{self.name} {self.life.value}>"


CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


class Handle:
    """A callback to come; `when` is the loop's time of a timer."""

    __slots__ = ("args", "callback", "context", "dropped", "process", "when_")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
        process: Process | None,
        when: float,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self.when_ = when
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.when_


def _nothing() -> None:
    pass


class Loop(Base):  # type: ignore[misc]
    """Virtual time: it stands while anything is ready and jumps to the next timer when nothing is."""

    def __init__(self, random: Random, *, lateness: float = 0.0) -> None:
        self.random = random
        self.now = 0.0
        self.steps = 0
        self.lateness = lateness  # seconds a process's timer may come late, as on a loaded machine
        self.blown: Callable[[Process], None] = _unhandled  # called when a process's fuse has burnt down
        self.graveyard: list[asyncio.Task[Any]] = []  # of dead processes: let go of, they would run once more
        self.complaints: list[str] = []
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._made = 0
        self._outside = Context()

    # What runs.

    def run(self, done: Callable[[], bool]) -> None:
        """Runs until `done`, which is looked at whenever time moves. Raises Stuck."""
        asyncio.events._set_running_loop(self)
        try:
            while not done():
                self._run_ready()
                self._jump()
        finally:
            asyncio.events._set_running_loop(None)

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            process = handle.process
            if process is not None and process.life is not Life.RUNNING:
                if process.life is Life.PAUSED:
                    process.backlog.append(handle)
                continue
            self.steps += 1
            handle.context.run(handle.callback, *handle.args)
            if process is not None and process.fuse >= 0:
                process.fuse -= 1
                if process.fuse < 0:
                    self.blown(process)
            if self.steps > MAX_STEPS:
                raise Stuck(f"{MAX_STEPS} steps by {self.now:.3f} s: something spins")

    def _jump(self) -> None:
        timers = self._timers
        while timers:
            when, _, handle = heapq.heappop(timers)
            if handle.dropped:
                continue
            self.now = when
            self._ready.append(handle)
            return
        raise Stuck(f"nothing is left to happen at {self.now:.3f} s")

    def kill(self, process: Process) -> None:
        """Nothing of the process runs any more, not even what stands in a `finally`."""
        process.life = Life.DEAD
        process.backlog.clear()
        self.graveyard += [task for task in asyncio.all_tasks(self) if task.get_name() == process.name]

    def resume(self, process: Process) -> None:
        process.life = Life.RUNNING
        self._ready.extend(process.backlog)
        process.backlog.clear()

    def waiting(self) -> list[str]:
        """Where every task of a living process stands, outermost first: for who looks for a deadlock."""
        found = []
        for task in asyncio.all_tasks(self):
            if task not in self.graveyard:
                found.append(f"{task.get_name()}: {' > '.join(_stack(task.get_coro()))}")
        return sorted(found)

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        if context is None:
            context = copy_context()
        handle = Handle(callback, args, context, context.get(CURRENT), self.now)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        if context is None:
            context = copy_context()
        process = context.get(CURRENT)
        if process is not None and self.lateness:
            when += self.lateness * self.random.random()
        return self._timer(max(when, self.now), callback, args, context, process)

    def happen(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Something outside all processes, `delay` seconds from now."""
        return self._timer(self.now + delay, callback, args, self._outside, None)

    def _timer(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
        process: Process | None,
    ) -> Handle:
        handle = Handle(callback, args, context, process, when)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        process = (context or copy_context()).get(CURRENT)
        whose = process.name if process is not None else ""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=whose, context=context)
        cast(Any, task)._log_destroy_pending = False  # a dead process's tasks never end
        return task

    def spawn(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.create_task(work, context=process.context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """A thread's work is done at one instant, some milliseconds from now."""
        future: asyncio.Future[T] = self.create_future()
        self.call_later(0.02 * self.random.random(), _work, future, func, args)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complaints.append(f"{context.get('message')}: {error!r}")


def _stack(awaited: Any) -> Iterator[str]:
    while awaited is not None and hasattr(awaited, "cr_await"):
        frame = awaited.cr_frame
        yield f"{awaited.__qualname__}:{frame.f_lineno if frame is not None else '-'}"
        awaited = awaited.cr_await


def _work(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.done():
        return
    try:
        result = func(*args)
    except Exception as error:  # noqa: BLE001  a thread's failure is its caller's to judge
        future.set_exception(error)
    else:
        future.set_result(result)


def _unhandled(process: Process) -> None:
    raise AssertionError(f"{process.name}: nobody handles its faults")
