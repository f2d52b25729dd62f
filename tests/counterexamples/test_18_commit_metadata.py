"""Nothing that an agent has to know stands in its group's commit: what wipes or moves that changes nothing.

Kept there, the greatest number of each source would be refused as soon as it takes 4 097 bytes, be
forgotten when the group's offsets expire, and not be given back by `committed()`. By construction the
commit holds positions only, for tools to show as lag; the numbers, like the position itself, are in the
store, in one record of up to 900 kB.
"""

from __future__ import annotations

from collections import Counter

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetMetadataTooLargeError
from aiokafka.structs import OffsetAndMetadata

from riverkeeper.agents.join import Join
from tests.agents.loop import at_work, head_of, made
from tests.brokers.broker import Broker
from tests.counterexamples.joined import examples, outcome, prediction
from tests.counterexamples.without import Remedy
from tests.topics.logs import topic, until, writing

REMEDIES = [
    Remedy(
        "agents/work.py",
        "    progress = Progress.restore(head, inputs, filtered)\n",
        "    progress = Progress(await inspector.beginnings(inputs), filtered)\n",
        what="positions and numbers come from the store",
    ),
]

MAX_METADATA = 4_096  # bytes of a commit; Kafka's default
SOURCES = 300  # partitions that predictions come from: more numbers than a commit could hold


async def commit(broker: Broker, group: str, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
    """As any tool may, while no member is there."""
    tool = AIOKafkaConsumer(bootstrap_servers=broker.address, group_id=group, enable_auto_commit=False)
    await tool.start()
    try:
        tool.assign(list(offsets))
        await tool.commit(offsets)
    finally:
        await tool.stop()


async def test_a_group_whose_offsets_are_wiped_loses_and_doubles_nothing(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        first = [prediction(pipeline, n, source=f"facts/{n}") for n in range(SOURCES)]
        last = SOURCES  # a marker: what stands before it was processed

        async def met(count: int) -> bool:
            return len({e.id for e in await examples(real, pipeline)}) >= count

        async with writing(real) as writer:
            await writer.write([*first, *(outcome(pipeline, n) for n in range(SOURCES))])
            running = at_work(Join, pipeline, real)
            await until(lambda: met(SOURCES))
            await running.stop()
            head = await head_of(real, pipeline, "join", 0)
            numbers = head.seen[f"{pipeline.topic('predictions')}/0"]
            assert len(numbers) == SOURCES and len(str(numbers)) > MAX_METADATA

            inputs = [TopicPartition(pipeline.topic(side), 0) for side in ("predictions", "outcomes")]
            group = pipeline.agent_group("join")
            await commit(real, group, {tp: OffsetAndMetadata(0, "") for tp in inputs})
            await writer.write(
                [*first, prediction(pipeline, last), outcome(pipeline, last)]
            )  # a zombie's copies
            running = at_work(Join, pipeline, real)
            await until(lambda: met(SOURCES + 1))
            await running.stop()
        counts = Counter(e.id for e in await examples(real, pipeline))
    assert counts == Counter(f"s{n}" for n in range(SOURCES + 1))


async def test_a_commit_takes_4096_bytes_of_metadata_and_gives_none_back(real: Broker) -> None:
    """Why they are not kept there: the broker's own limit."""
    tp = TopicPartition(await topic(real), 0)
    group = f"group-{tp.topic}"
    await commit(real, group, {tp: OffsetAndMetadata(0, "x" * MAX_METADATA)})
    with pytest.raises(OffsetMetadataTooLargeError):
        await commit(real, group, {tp: OffsetAndMetadata(0, "x" * (MAX_METADATA + 1))})
    tool = AIOKafkaConsumer(bootstrap_servers=real.address, group_id=group)
    await tool.start()
    try:
        assert await tool.committed(tp) == 0
    finally:
        await tool.stop()
