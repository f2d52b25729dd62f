"""The demo's outside reader: a plain consumer that follows every topic from its beginning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition

from ..topics.connection import Connection
from ..topics.log import stop_consumer
from .ledger import Record

POLL_MS = 50  # one wait for records; the screen is that much behind at most
BATCH = 500  # records fed before the agents of this process get their turn
FETCH_WAIT_MS = 50


class Watcher:
    """Feeds every committed record to `feed`; `topics` are partition counts by name.

    Reads without a group, and without a reset: on the embedded broker a partition forgets what lies
    5 MB back, and what was missed there must be an error.
    """

    def __init__(
        self, connection: Connection, topics: Mapping[str, int], feed: Callable[[Record], None]
    ) -> None:
        self._tps = [TopicPartition(topic, p) for topic, count in topics.items() for p in range(count)]
        self._feed = feed
        self._next: dict[TopicPartition, int] = {}
        self._turn = asyncio.Lock()
        self._consumer = AIOKafkaConsumer(
            **connection.client_options(),
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )

    async def start(self) -> None:
        await self._consumer.start()
        self._next = dict(await self._consumer.beginning_offsets(self._tps))
        self._consumer.assign(self._tps)
        for tp, offset in self._next.items():
            self._consumer.seek(tp, offset)

    async def stop(self) -> None:
        await stop_consumer(self._consumer)

    async def run(self) -> None:
        """Runs for ever. Raises KafkaError, and what `feed` cannot parse."""
        while True:
            await self._read()
            await asyncio.sleep(0)

    async def drain(self) -> None:
        """Reads up to what stands on the topics now."""
        ends = await self._consumer.end_offsets(self._tps)
        while any(self._next[tp] < end for tp, end in ends.items()):
            await self._read()

    def behind(self) -> int:
        """Records known to be unread."""
        ends = [(self._consumer.last_stable_offset(tp), position) for tp, position in self._next.items()]
        return sum(max(0, end - position) for end, position in ends if end is not None)

    async def _read(self) -> None:
        async with self._turn:
            got = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH)
            for records in got.values():
                for record in records:
                    self._feed(record)
            # Of every partition: markers of transactions move a position and bring no record.
            for tp in self._tps:
                self._next[tp] = await self._consumer.position(tp)
