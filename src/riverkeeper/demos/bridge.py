"""Copies one topic of events to another, from its beginning on: how a pipeline beside another gets the same log.

It keeps no position. What it copies twice, after a crash, ingest knows by its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ..topics.connection import Connection
from ..topics.log import stop_consumer

POLL_MS = 50
BATCH = 300  # events sent before their acknowledgements are awaited
LINGER_MS = 5  # the client gathers batches for so long
ROOM_SECONDS = 0.02  # between looks whether there is room


class Bridge:
    """Same keys and equal partition counts: an event goes to the partition that it came from."""

    def __init__(
        self, connection: Connection, source: str, target: str, partitions: int, room: Callable[[], int]
    ) -> None:
        self._connection = connection
        self._tps = [TopicPartition(source, p) for p in range(partitions)]
        self._target = target
        self._room = room
        self.copied = 0

    async def run(self) -> None:
        """Runs until it is cancelled. Raises KafkaError."""
        options = self._connection.client_options()
        consumer = AIOKafkaConsumer(**options, enable_auto_commit=False, auto_offset_reset="none")
        producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True, linger_ms=LINGER_MS)
        try:
            await consumer.start()
            await producer.start()
            beginnings = await consumer.beginning_offsets(self._tps)
            consumer.assign(self._tps)
            for tp, offset in beginnings.items():
                consumer.seek(tp, offset)
            while True:
                await self._copy(consumer, producer)
        finally:
            await producer.stop()
            await stop_consumer(consumer)

    async def _copy(self, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer) -> None:
        room = min(self._room(), BATCH)
        if room <= 0:
            await asyncio.sleep(ROOM_SECONDS)
            return
        got = await consumer.getmany(timeout_ms=POLL_MS, max_records=room)
        sending = [
            await producer.send(self._target, record.value, record.key, partition=tp.partition)
            for tp, records in got.items()
            for record in records
        ]
        await asyncio.gather(*sending)
        self.copied += len(sending)
