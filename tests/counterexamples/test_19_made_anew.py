"""A source that was made anew, or cut, under its old name stops the partition: nothing of it is passed over.

Ingest read four events and stopped. The topic is deleted, created again and filled by other producers:
offsets 0 to 3 come a second time, and an agent that knows only its position would go on at 4 and never
look at the new first four. The head holds a hash of the last record read; another record stands there now.
"""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from riverkeeper.agents.ingest import Ingest
from riverkeeper.topics.catalog import family
from tests.agents.loop import fact_ids, made, produce
from tests.agents.tiny import runtime, sale
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy
from tests.topics.logs import create, until

REMEDIES = [
    Remedy(
        "topics/store.py",
        "if found is None or record_hash(found) != last[tp].hash:",
        "if found is None:",
        what="the hash of the last record read",
    ),
    Remedy(
        "topics/store.py",
        "            if not begin <= position <= end:\n                raise SourceGap({tp: position})\n",
        "            position = min(max(begin, position), end)\n",
        also=(
            Remedy(
                "topics/store.py",
                "if tp in last and last[tp].offset >= begin:",
                "if tp in last and begin <= last[tp].offset < end:",
            ),
        ),
        what="a position beyond the end is a gap",
    ),
]

READ = 4


async def made_anew(broker: Broker, name: str, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        await admin.delete_topics([topic])

        async def gone() -> bool:
            return topic not in await admin.list_topics()

        await until(gone)
    finally:
        await admin.close()
    specs = family(name, partitions=partitions, model_partitions=1)
    await create(broker, *(spec for spec in specs if spec.name == topic))


@pytest.mark.parametrize("new", [6, 2], ids=["longer than what was read", "shorter"])
async def test_a_topic_made_anew_under_its_name_is_not_taken_for_the_old_one(real: Broker, new: int) -> None:
    async with made(real, partitions=1) as pipeline:
        events = TopicPartition(pipeline.topic("events"), 0)
        await produce(real, pipeline, "events", [(b"k", sale(i), ()) for i in range(READ)])
        async with ByHand(Ingest(runtime(pipeline, real, limits=BY_HAND))) as ingest:
            await ingest.take_over(0)
            await ingest.read_to(events.topic, READ)
            await ingest.checkpoint()
        await made_anew(real, pipeline.name, events.topic, 1)
        await produce(real, pipeline, "events", [(b"k", sale(100 + i), ()) for i in range(new)])
        async with ByHand(Ingest(runtime(pipeline, real, limits=BY_HAND))) as ingest:
            await ingest.take_over(0)
            assert ingest.session.owners == {}
            assert list(ingest.session.stopped) == [0]
            assert ingest.session.stopped[0].startswith(
                f"{events.topic}/0 at {READ}: the log no longer holds"
            )
        assert await fact_ids(real, pipeline) == list(range(READ))
