"""One id is one fact: where that is promised, an event without a key is refused.

A retry without a key may go to another partition of `events`, whose owner knows nothing of the first:
two owners, two facts. With a key, every producer's default partitioner finds the same owner again.
"""

from __future__ import annotations

from collections import Counter

import pytest
from aiokafka import AIOKafkaProducer

from riverkeeper.agents.ingest import Ingest
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import ErrorCode
from tests.agents.loop import admitted, fact_ids, made
from tests.agents.tiny import runtime, sale
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy
from tests.topics.logs import writing

REMEDIES = [
    Remedy(
        "agents/ingest.py",
        "        if record.key is None and self._pipeline.dedupe is not None:\n",
        "        if record.key is None and self._pipeline.dedupe is None:\n",
        what="an event without a key is refused",
    ),
    Remedy(
        "agents/ingest.py",
        "        if self._recent is not None and self._recent.seen(parsed.id, record.timestamp):\n",
        "        if self._recent is not None and not parsed.id:\n",
        what="an id that came before is no new fact",
    ),
]


async def ingested(broker: Broker, name: str, ingest: ByHand, ends: tuple[int, ...]) -> None:
    async with ingest:
        await ingest.take_over(0, 1)
        await ingest.read_to(name, *ends)


async def test_a_retry_without_a_key_makes_no_second_fact(real: Broker) -> None:
    async with made(real, partitions=2) as pipeline:
        events = pipeline.topic("events")
        async with writing(real) as writer:
            await writer.write([Out(events, p, None, sale(7)) for p in (0, 1)])
        await ingested(real, events, ByHand(Ingest(runtime(pipeline, real, "a", BY_HAND))), (1, 1))
        assert await fact_ids(real, pipeline) == []
        dead = await admitted(real, pipeline, "dead")
        assert [dict(letter.headers)["code"] for letter in dead] == [ErrorCode.NO_KEY.value.encode()] * 2
        assert [letter.value for letter in dead] == [sale(7)] * 2


@pytest.mark.parametrize("key", [b"till 1", b"till 2", b"b7"])
async def test_a_retry_with_a_key_finds_its_first(real: Broker, key: bytes) -> None:
    async with made(real, partitions=2) as pipeline:
        events, ends = pipeline.topic("events"), [0, 0]
        producer = AIOKafkaProducer(bootstrap_servers=real.address)
        await producer.start()
        for _ in range(2):
            sent = await producer.send_and_wait(events, sale(7), key=key)
            ends[sent.partition] += 1
        await producer.stop()
        await ingested(
            real, events, ByHand(Ingest(runtime(pipeline, real, "a", BY_HAND))), (ends[0], ends[1])
        )
        assert Counter(await fact_ids(real, pipeline)) == {7: 1}
