"""The flights demo: a producer, the whole pipeline in this process, and an outside reader that counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..process import NAMES, Process, judgement_of
from ..settings import Settings
from ..supervisor.policies import Limits
from .flights import flights
from .flights_data import Fault, Row, Timed, faulted, stream, tally
from .ledger import Ledger
from .producer import Producer
from .stage import Ending, Outcome, ledger_of, watcher_of

# Events on their way. An embedded partition keeps 5 MB, which is 5 000 predictions; but what counts is that flights
# wait for versions in the log's time, not in the machine's: the fewer are on their way, the fresher is what serves.
AHEAD = 400
TICK_SECONDS = 0.1  # between two looks at how things stand
QUIET_SECONDS = 1.0  # without a new record: nothing is on its way any more
HEAL_SECONDS = 4.0  # for learning to end and open incidents to resolve, once every count is complete
STALL_SECONDS = 20.0  # without a new record while something is missing; a takeover takes 10
START_SECONDS = 60.0  # for all agents to be at work
STOP_SECONDS = 3.0  # for the agents to leave in order; Ctrl-C promises 5 s in all
DRAIN_SECONDS = 0.7  # of the same, for what they wrote last to be read


class NotAtWork(Exception):
    """The agents did not come to work in time; the message names which, and why."""


@dataclass(frozen=True)
class Piece:
    """What is to be played."""

    rows: Sequence[Row]
    fault: Fault | None = None
    speed: float | None = None

    @property
    def total(self) -> int:
        """Events in all, what a fault adds included; may take a second to count."""
        return tally(self.rows).events if self.fault is None else sum(1 for _ in self.events())

    def events(self) -> Iterator[Timed]:
        plain = stream(self.rows)
        return faulted(plain, self.fault, tally(self.rows).events) if self.fault else plain


@dataclass(frozen=True)
class Standing:
    """How things stand at a moment, for a screen."""

    phase: str
    seconds: float
    total: int
    ledger: Ledger
    process: Process
    producer: Producer


Show: TypeAlias = Callable[[Standing], None]


def demo_judgement() -> Limits:
    """The supervisor's limits for a month that passes in half a minute: 5 s are a week of it."""
    return replace(judgement_of(flights), min_dwell_ms=500, relapse_ms=5_000, max_relapses=20)


class Play:
    """One run of the demo against a broker that has the topics."""

    def __init__(
        self, piece: Piece, settings: Settings, show: Show, *, key: bytes | None, pages: bool
    ) -> None:
        self._piece = piece
        self._show = show
        self._pages = pages
        self._total = piece.total
        connection = settings.connection()
        self.ledger = ledger_of(flights)
        self._process = Process(flights, NAMES, settings, judgement=demo_judgement(), signing_key=key)
        self._watcher = watcher_of(flights, connection, self.ledger.feed)
        self._producer = Producer(
            connection, f"{flights.name}.events", flights.partitions, room=self._room, speed=piece.speed
        )
        self._halt = asyncio.Event()  # ends the agents
        self._began = time.monotonic()
        self._phase = "starting"
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, stop: asyncio.Event) -> Outcome:
        """Plays until all adds up, nothing moves any more, or `stop` is set. Raises what ends an agent."""
        await self._watcher.start()
        try:
            ending = await self._perform(stop)
        finally:
            await self._watcher.stop()
        wrong = list(self._wrong())
        seconds = time.monotonic() - self._began
        incidents = list(self.ledger.incidents.values())
        return Outcome(self.ledger.summary(seconds), ending, wrong, incidents, self.ledger.began_ms or 0)

    async def _perform(self, stop: asyncio.Event) -> Ending:
        agents = self._begin(self._process.run(self._halt, pages=self._pages))
        reading = self._begin(self._watcher.run())
        try:
            ending = await self._play(stop)
        finally:
            await self._leave(agents, reading)
        if agents.done() and not agents.cancelled():
            agents.result()
        return ending

    def _begin(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def _play(self, stop: asyncio.Event) -> Ending:
        await self._until(self._ready, stop)
        if stop.is_set():
            return "stopped"
        self._phase = "playing"
        playing = self._begin(self._producer.play(self._piece.events(), stop))
        await self._until(lambda: self._producer.done, stop)
        self._phase = "settling"
        ending = await self._settle(stop)
        await playing
        return ending

    def _ready(self) -> bool:
        waiting = {name: why for name, why in self._process.unready().items() if why}
        if waiting and time.monotonic() - self._began > START_SECONDS:
            raise NotAtWork(f"not at work within {START_SECONDS:.0f} s: {waiting}")
        self._phase = "starting: " + ", ".join(waiting)
        return not waiting

    async def _until(self, condition: Callable[[], bool], stop: asyncio.Event) -> None:
        """Shows how things stand until the condition holds or `stop` is set; raises what a task raised."""
        while not stop.is_set() and not condition():
            self._tick()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await stop.wait()

    def _tick(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
        seconds = time.monotonic() - self._began
        self._show(Standing(self._phase, seconds, self._total, self.ledger, self._process, self._producer))

    async def _settle(self, stop: asyncio.Event) -> Ending:
        """Waits until every count is complete, then a little for models to heal."""
        moved, moved_at = self.ledger.moved, time.monotonic()
        complete_at: float | None = None

        def settled() -> bool:
            nonlocal moved, moved_at, complete_at
            now = time.monotonic()
            if self.ledger.moved != moved:
                moved, moved_at = self.ledger.moved, now
            if any(self._wrong()) or self._watcher.behind():
                complete_at = None
                return now - moved_at > STALL_SECONDS
            complete_at = complete_at or now
            busy = self._behind() or self.ledger.open_incidents() or now - moved_at < QUIET_SECONDS
            return now - complete_at > (HEAL_SECONDS if busy else QUIET_SECONDS)

        await self._until(settled, stop)
        if stop.is_set():
            return "stopped"
        return "stalled" if any(self._wrong()) else "complete"

    async def _leave(self, agents: asyncio.Task[None], reading: asyncio.Task[None]) -> None:
        """Ends the agents in order, and reads what they wrote last."""
        self._halt.set()
        await asyncio.wait([agents], timeout=STOP_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._watcher.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)

    # How far everything is.

    def _behind(self) -> int:
        """Of the slowest agent, and of the reader."""
        return max(self._watcher.behind(), *(agent.behind() for agent in self._process.agents), 0)

    def _room(self) -> int:
        unread = self._producer.placed - self.ledger.events
        return AHEAD - max(self._behind(), unread + self.ledger.unsettled)

    def _wrong(self) -> Iterator[str]:
        if self.ledger.events != self._producer.placed:
            yield f"{self._producer.placed} events were sent, {self.ledger.events} stand on the topic"
        yield from self.ledger.imbalances()
        for agent in self._process.agents:
            for partition, why in agent.stopped.items():
                yield f"{agent.name} stopped at partition {partition}: {why}"
