"""Follows a whole topic from its beginning, and knows when it has read all there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, TopicPartition

from .catalog import Catalog
from .connection import Connection
from .log import Record, consumer, stop_consumer
from .patience import Patience

POLL_MS = 100  # one wait for records; a sync sees the end this late at most on an idle topic
BATCH = 500  # records applied before other work gets its turn


class Tail:
    """Applies every record of a topic, in order within a partition. One `run` per instance."""

    def __init__(
        self,
        connection: Connection,
        topic: str,
        apply: Callable[[Record], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._apply = apply
        self._monotonic = monotonic
        self._started: AIOKafkaConsumer | None = None
        self._moved = asyncio.Event()
        self._partitions: list[TopicPartition] = []
        self._stood: dict[TopicPartition, int] = {}  # the ends when this was started

    async def start(self) -> None:
        """Raises TopicMissing or NoAnswer."""
        async with Catalog(self._connection) as catalog:
            count = await catalog.partition_count(self._topic)
        self._started = consumer(self._connection)
        await self._started.start()
        self._partitions = [TopicPartition(self._topic, p) for p in range(count)]
        async with self._patience().answer("no offsets"):
            begin = await self._consumer.beginning_offsets(self._partitions)
            # Before the first fetch: an answer waits behind a fetch that waits for records.
            self._stood = await self._consumer.end_offsets(self._partitions)
        self._consumer.assign(self._partitions)
        for tp, offset in begin.items():
            self._consumer.seek(tp, offset)

    async def stop(self) -> None:
        if self._started is not None:
            await stop_consumer(self._started)

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        assert self._started is not None, "start() comes first"
        return self._started

    async def read_up(self) -> None:
        """Applies what stood in the topic when this was started; raises what `apply` raises.

        Raises TopicMissing or NoAnswer if it stands still.
        """
        patience = self._patience()
        while left := await self._left(self._stood):
            await patience.at(left)
            await self._read()

    async def run(self) -> None:
        """Runs for ever; raises what `apply` raises."""
        while True:
            await self._read()
            self._moved.set()
            self._moved.clear()
            await asyncio.sleep(0)

    async def _read(self) -> None:
        got = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH)
        for records in got.values():
            for record in records:
                self._apply(record)

    async def sync(self) -> float:
        """Waits until all that was written before this call is applied.

        Returns the monotonic time of the call: what is known is at least as new as that. Raises
        TopicMissing or NoAnswer if it stands still, also because nothing runs.
        """
        asked, patience = self._monotonic(), self._patience()
        async with patience.answer("no offsets"):
            ends = await self._consumer.end_offsets(self._partitions)
        while left := await self._left(ends):
            await patience.at(left)
            async with patience.answer(f"nothing after {left}"):
                await self._moved.wait()
        return asked

    async def _left(self, ends: dict[TopicPartition, int]) -> dict[int, int]:
        """The positions, by partition, that are still before these ends."""
        positions = {tp: await self._consumer.position(tp) for tp in ends}
        return {tp.partition: at for tp, at in positions.items() if at < ends[tp]}

    def _patience(self) -> Patience:
        return Patience(self._connection, self._topic)
