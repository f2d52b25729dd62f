"""The dogs' social network at work: its producers, two pipelines' agents as processes, and readers from outside.

Nothing is asked of the agents themselves: all that is known of them here stands on the topics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import islice

from aiokafka import AIOKafkaProducer

from ..models.pipeline import Pipeline
from ..settings import Settings
from ..topics.embedded import MAX_BATCH_BYTES
from .app import App
from .bridge import Bridge
from .kennel import Kennel
from .ledger import Ledger, Record
from .pooch import pooch, pooch_2
from .pooch_data import CALM, Mood, stream
from .stage import Ending, ledger_of, watcher_of

PACE = 350.0  # events/s; with the likes that is some 180 posts/s
PACE_BESIDE = 90.0  # the same while the second pipeline catches up: on two cores both want all there is
AHEAD = 600  # events of producers on their way: two seconds of them
AHEAD_BESIDE = 4_000  # of what is copied; nobody waits for these answers
CHUNK = 100  # events sent before their acknowledgements are awaited
LINGER_MS = 20  # a burst goes as one batch to each partition: the embedded broker hands out one per fetch
TICK_SECONDS = 0.1  # between two looks at how things stand
STALL_SECONDS = 45.0  # without a new record; a process starts within 5, and a takeover takes 10
QUIET_SECONDS = 1.0  # without a new record: nothing is on its way any more
DRAIN_SECONDS = 0.7  # for what was written last to be read


class NotFresh(Exception):
    """The topics hold an earlier run."""


class Stalled(Exception):
    """Nothing moves any more, though something is missing."""


class Network:
    """One run against a broker that has the topics of both pipelines; until `stop` is set.

    `mood` may be set at any time, and is asked for that of each post by number.
    """

    def __init__(self, seed: int, settings: Settings, kennel: Kennel, stop: asyncio.Event) -> None:
        connection = settings.connection()
        self.kennel = kennel
        self.stop = stop
        self.first, self.second = ledger_of(pooch), ledger_of(pooch_2)
        self.app = App((pooch.name, pooch_2.name), (pooch.bounds.low, pooch.bounds.high))
        self.mood: Callable[[int], Mood] = lambda _: CALM
        self.posts = 0
        self._watchers = [
            watcher_of(each, connection, self._fed(ledger))
            for each, ledger in ((pooch, self.first), (pooch_2, self.second))
        ]
        self._bridge = Bridge(
            connection, pooch.topic("events"), pooch_2.topic("events"), pooch.partitions, self._room_beside
        )
        self._producer = AIOKafkaProducer(
            **connection.client_options(),
            acks="all",
            enable_idempotence=True,
            linger_ms=LINGER_MS,
            max_batch_size=MAX_BATCH_BYTES // 4,
        )
        self._events = stream(seed, self._mood_of)
        self._over = False  # nothing more is posted
        self._target = pooch  # whose topic producers write
        self._sent = {pooch: 0, pooch_2: 0}  # by producers
        self._closing = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._copying: asyncio.Task[None] | None = None
        self._began = self._paced = time.monotonic()
        self._moved = (0, self._began)  # records that counted, and when that changed

    def _fed(self, ledger: Ledger) -> Callable[[Record], None]:
        def feed(record: Record) -> None:
            ledger.feed(record)
            self.app.feed(record)

        return feed

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    # From its beginning to its end.

    async def open(self) -> None:
        """Raises NotFresh, KafkaError."""
        self._closing.push_async_callback(self._producer.stop)
        await self._producer.start()
        for watcher in self._watchers:
            self._closing.push_async_callback(watcher.stop)
            await watcher.start()
            await watcher.drain()
        if self.first.events or self.second.events:
            raise NotFresh(
                f"the topics {pooch.name}.* or {pooch_2.name}.* hold an earlier run, and the story begins without "
                "one; delete them"
            )
        self._began = self._paced = time.monotonic()
        for watcher in self._watchers:
            self._begin(watcher.run())
        self._closing.push_async_callback(self._end)

    async def settle(self) -> Ending:
        """Sends the likes that are left, and waits until every count is complete."""
        self._over = True
        while not self.stop.is_set() and await self._send(CHUNK):
            await self.until(lambda: self._room() > 0)

        def settled() -> bool:
            quiet = time.monotonic() - self._moved[1] > QUIET_SECONDS
            return quiet and not any(self.wrong()) and not any(each.behind() for each in self._watchers)

        return "complete" if await self.until(settled) else "stopped"

    async def close(self) -> None:
        """Ends what was opened, and reads what was written last; within 5 s."""
        await self._closing.aclose()

    async def _end(self) -> None:
        await asyncio.to_thread(self.kennel.stop)
        for watcher in self._watchers:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await watcher.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)

    # Posting.

    async def play(self, until: Callable[[], bool], most: int) -> bool:
        """Posts at a steady pace until the condition holds, `most` at most; whether it does."""
        last = self.posts + most
        while not until() and self.posts < last and not self.stop.is_set():
            self._look()
            room = min(self._room(), self._due(), CHUNK)
            if room > 0:
                await self._send(room)
            else:
                await self._rest()
        return until()

    async def burst(self, posts: int) -> None:
        """Posts about so many at once, among likes of others; whether there is room or not."""
        await self._send(2 * posts)

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Waits, without a post, until the condition holds or `stop` is set; whether it does."""
        while not condition() and not self.stop.is_set():
            self._look()
            await self._rest()
        return condition()

    def _mood_of(self, number: int) -> Mood | None:
        self.posts = number  # those before it have been taken to be sent
        return None if self._over else self.mood(number)

    async def _send(self, count: int) -> int:
        events = list(islice(self._events, count))
        topic = self._target.topic("events")
        sending = [await self._producer.send(topic, e.value, e.key.encode()) for e in events]
        await asyncio.gather(*sending)
        self._sent[self._target] += len(events)
        return len(events)

    def _due(self) -> int:
        """Events by the pace; what could not be sent in time is not made up for."""
        now = time.monotonic()
        behind = self._copying is not None and not self.caught_up()
        due = min(int((now - self._paced) * (PACE_BESIDE if behind else PACE)), CHUNK)
        if due:
            self._paced = now
        return due

    async def _rest(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                await self.stop.wait()

    def _begin(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    def _look(self) -> None:
        """Raises what ended a task, Unruly, and Stalled."""
        self.kennel.look()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
        moved, now = self.first.moved + self.second.moved, time.monotonic()
        if moved != self._moved[0]:
            self._moved = moved, now
        if now - self._moved[1] > STALL_SECONDS:
            why = "; ".join(self.wrong()) or "no reason known"
            raise Stalled(f"nothing moved for {STALL_SECONDS:.0f} s: {why}")

    # The second pipeline.

    def copy_events(self) -> None:
        """From now on the second pipeline is given all events of the first, from the beginning of the log."""
        self._copying = self._begin(self._bridge.run())

    def caught_up(self) -> bool:
        """Whether the second pipeline is no further behind the producers than the first may be."""
        return self._sent[pooch] - self._bridge.copied + self._on_their_way_beside() < AHEAD

    async def move(self) -> bool:
        """Has producers write to the second pipeline, and the app read there; the first leaves."""
        done = await self.until(
            lambda: (
                self._sent[pooch] == self._bridge.copied
                and not self._on_their_way()
                and not self._on_their_way_beside()
            )
        )
        if done and self._copying is not None:
            self._copying.cancel()
            self._copying = None
            self._target, self.app.moved = pooch_2, self.posts
            await asyncio.to_thread(self.kennel.stop, [pooch.name])
        return done

    # How things stand.

    def wrong(self) -> Iterator[str]:
        """What does not add up, a sentence each."""
        sent: list[tuple[Pipeline, Ledger, int]] = [
            (pooch, self.first, self._sent[pooch]),
            (pooch_2, self.second, self._bridge.copied + self._sent[pooch_2]),
        ]
        for pipeline, ledger, count in sent:
            if ledger.events != count:
                yield f"{pipeline.name}: {count} events were sent, {ledger.events} stand on the topic"
            yield from (f"{pipeline.name}: {each}" for each in ledger.imbalances())
        shown = self.app.shown(self.posts)
        for what in ("missing", "doubled", "out_of_bounds"):
            count = getattr(shown, what)
            if count:
                yield f"{count} answers that the app reads are {what.replace('_', ' ')}"

    def _room(self) -> int:
        """Events that producers may send now."""
        return AHEAD - (self._on_their_way() if self._target is pooch else self._on_their_way_beside())

    def _room_beside(self) -> int:
        """Events that the second pipeline may be given now."""
        return AHEAD_BESIDE - self._on_their_way_beside()

    def _on_their_way(self) -> int:
        return self._sent[pooch] - self.first.events + self.first.unsettled

    def _on_their_way_beside(self) -> int:
        given = self._bridge.copied + self._sent[pooch_2]
        return given - self.second.events + self.second.unsettled
