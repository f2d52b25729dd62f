"""The demo's producer: plain JSON to one topic, as any program with a Kafka client would write it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import DefaultPartitioner

from ..topics.connection import Connection
from ..topics.log import stop_consumer
from .flights_data import Timed

CHUNK = 500  # events sent before their acknowledgements are awaited; 20 ms of a broker's time
TICK_SECONDS = 0.02  # between two looks at the clock and at how far the readers are
READ_MS = 5_000  # to read back one record that is known to be there
LINGER_MS = 5  # the client gathers batches for so long: the embedded broker hands out one per fetch


class OtherStream(Exception):
    """What stands on the topic is not the beginning of what is to be played."""


class Producer:
    """Plays a stream to a topic, and goes on where an earlier run was cut off.

    `room()` says how many events may be sent now; `speed` is a multiple of event time, None as fast as
    `room` allows. Of each partition's stream, as many events are skipped as the partition holds: only
    this stream is written there, and without transactions, so that offsets count events.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        partitions: int,
        *,
        room: Callable[[], int],
        speed: float | None = None,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._partitions = range(partitions)
        self._room = room
        self._speed = speed
        self.sent = 0
        self.skipped = 0
        self.done = False

    @property
    def placed(self) -> int:
        """Events of the stream that stand on the topic."""
        return self.skipped + self.sent

    async def play(self, events: Iterable[Timed], stop: asyncio.Event) -> None:
        """Sends until the stream ends or `stop` is set. Raises KafkaError, OtherStream."""
        remaining = self._unsent(events, await self._standing())
        producer = AIOKafkaProducer(
            **self._connection.client_options(), acks="all", enable_idempotence=True, linger_ms=LINGER_MS
        )
        await producer.start()
        try:
            async for chunk in self._paced(remaining, stop):
                sending = [await producer.send(self._topic, e.value, e.key.encode()) for e in chunk]
                await asyncio.gather(*sending)
                self.sent += len(chunk)
        finally:
            await producer.stop()
        self.done = not stop.is_set()

    async def _paced(self, events: Iterator[Timed], stop: asyncio.Event) -> AsyncIterator[list[Timed]]:
        """Chunks of events that are due and for which there is room."""
        loop = asyncio.get_running_loop()
        upcoming = next(events, None)
        start, first = loop.time(), upcoming.at if upcoming else 0.0
        while upcoming is not None and not stop.is_set():
            now = first + (loop.time() - start) * self._speed if self._speed else float("inf")
            room = min(self._room(), CHUNK)
            chunk: list[Timed] = []
            while upcoming is not None and len(chunk) < room and upcoming.at <= now:
                chunk.append(upcoming)
                upcoming = next(events, None)
            if chunk:
                yield chunk
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await stop.wait()

    def _unsent(self, events: Iterable[Timed], standing: Mapping[int, tuple[int, bytes]]) -> Iterator[Timed]:
        """The stream without what stands on the topic. Raises OtherStream if that is not its beginning."""
        partitioner, partitions = DefaultPartitioner(), list(self._partitions)
        where: dict[str, int] = {}
        passed: Counter[int] = Counter()
        for event in events:
            if event.key not in where:
                where[event.key] = partitioner(event.key.encode(), partitions, partitions)
            partition = where[event.key]
            count, last = standing[partition]
            if passed[partition] == count:
                yield event
                continue
            passed[partition] += 1
            self.skipped += 1
            if passed[partition] == count and event.value != last:
                raise self._other(partition)
        for partition, (count, _) in standing.items():
            if passed[partition] < count:
                raise self._other(partition)

    def _other(self, partition: int) -> OtherStream:
        return OtherStream(
            f"{self._topic}/{partition} holds other events than these options would play; repeat the options "
            f"of the run that wrote them, or delete the topics {self._topic.partition('.')[0]}.*"
        )

    async def _standing(self) -> dict[int, tuple[int, bytes]]:
        """By partition: how many events it has taken, and the last of them."""
        consumer = AIOKafkaConsumer(**self._connection.client_options(), enable_auto_commit=False)
        await consumer.start()
        try:
            tps = [TopicPartition(self._topic, p) for p in self._partitions]
            ends = await consumer.end_offsets(tps)
            return {tp.partition: (end, await _last(consumer, tp, end)) for tp, end in ends.items()}
        finally:
            await stop_consumer(consumer)


async def _last(consumer: AIOKafkaConsumer, tp: TopicPartition, end: int) -> bytes:
    if end == 0:
        return b""
    consumer.assign([tp])
    consumer.seek(tp, end - 1)
    got = await consumer.getmany(tp, timeout_ms=READ_MS, max_records=1)
    return next((record.value for record in got.get(tp, ()) if record.offset == end - 1), b"")
