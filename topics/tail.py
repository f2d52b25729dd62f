"""Follows a whole topic from its beginning, and knows when it has read all there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, TopicPartition

from .catalog import Catalog
from .connection import Connection
from .log import Record, consumer

POLL_MS = 100  # one wait for records; a sync sees the end this late at most on an idle topic
BATCH = 500  # records applied before other work gets its turn


class Tail:
    """Applies every record of a topic, in order within a partition. One `run` per instance."""

    def __init__(self, connection: Connection, topic: str, apply: Callable[[Record], None]) -> None:
        self._connection = connection
        self._topic = topic
        self._apply = apply
        self._started: AIOKafkaConsumer | None = None
        self._moved = asyncio.Event()
        self._partitions: list[TopicPartition] = []

    async def start(self) -> None:
        """Raises TopicMissing."""
        async with Catalog(self._connection) as catalog:
            count = await catalog.partition_count(self._topic)
        self._started = consumer(self._connection)
        await self._started.start()
        self._partitions = [TopicPartition(self._topic, p) for p in range(count)]
        begin = await self._consumer.beginning_offsets(self._partitions)
        self._consumer.assign(self._partitions)
        for tp, offset in begin.items():
            self._consumer.seek(tp, offset)

    async def stop(self) -> None:
        if self._started is not None:
            await self._started.stop()

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        assert self._started is not None, "start() comes first"
        return self._started

    async def run(self) -> None:
        """Runs for ever; raises what `apply` raises."""
        while True:
            got = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH)
            for records in got.values():
                for record in records:
                    self._apply(record)
            self._moved.set()
            self._moved.clear()
            await asyncio.sleep(0)

    async def sync(self) -> float:
        """Waits until all that was written before this call is applied.

        Returns the monotonic time of the call: what is known is at least as new as that.
        """
        asked = time.monotonic()
        ends = await self._consumer.end_offsets(self._partitions)
        while not await self._reached(ends):
            await self._moved.wait()
        return asked

    async def _reached(self, ends: dict[TopicPartition, int]) -> bool:
        for tp, end in ends.items():
            if await self._consumer.position(tp) < end:
                return False
        return True
