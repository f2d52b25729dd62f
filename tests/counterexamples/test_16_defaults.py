"""No default of a client library decides what is read: neither aborted records, nor a position after a gap.

aiokafka reads `read_uncommitted` and resets to `latest` unless told otherwise. Join writes examples in a
transaction and dies before its end; its successor aborts it and writes them again: the learner would
learn both. Retention passes the position of a paused agent: it would go on at the end, and nobody would
know what it never read.
"""

from __future__ import annotations

import msgspec
from aiokafka import TopicPartition

from riverkeeper.agents.ingest import Ingest
from riverkeeper.agents.learn import Learn
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import Example, Source
from tests.agents.loop import fact_ids, made, produce
from tests.agents.test_join import TIME
from tests.agents.tiny import runtime, sale
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy
from tests.topics.logs import forget_below, owning

REMEDIES = [
    Remedy(
        "topics/log.py",
        '            "isolation_level": "read_committed",\n',
        '            "isolation_level": "read_uncommitted",\n',
    ),
    Remedy(
        "topics/log.py",
        '            "auto_offset_reset": "none",\n',
        '            "auto_offset_reset": "latest",\n',
    ),
]


def example(pipeline: Pipeline, n: int) -> Out:
    said = Example(
        id=f"s{n}",
        key=f"b{n}",
        time=TIME,
        features={"amount": float(n)},
        label=float(n),
        served=0.0,
        source=Source.FALLBACK,
        model="constant",
        version=0,
        fingerprint=pipeline.fingerprint,
        baseline=None,
    )
    return Out(pipeline.topic("examples"), 0, said.key.encode(), msgspec.json.encode(said))


async def test_an_aborted_example_is_not_learned(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        batch = [example(pipeline, n) for n in range(3)]
        join = pipeline.transactional_id("join", 0)
        async with owning(real, join) as dying:
            await dying._producer.begin_transaction()
            for out in batch:
                await dying._producer.send_and_wait(out.topic, out.value, out.key, out.partition)
            async with owning(real, join) as successor:  # aborts what the first began
                await successor.commit(batch)
        end = 2 * len(batch) + 1  # the marker of the first transaction in between
        async with ByHand(Learn(runtime(pipeline, real, limits=BY_HAND))) as learn:
            await learn.take_over(0)
            await learn.read_to(pipeline.topic("examples"), end)
            (vitals,) = learn.session.owners[0].work.vitals()
    assert vitals.learned == len(batch)


async def test_a_gap_stops_the_partition_and_is_not_skipped(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        events = TopicPartition(pipeline.topic("events"), 0)
        async with ByHand(Ingest(runtime(pipeline, real, limits=BY_HAND))) as ingest:
            await ingest.take_over(0)
            await produce(real, pipeline, "events", [(b"k", sale(i), ()) for i in range(5)])
            await ingest.read_to(events.topic, 5)
            await produce(real, pipeline, "events", [(b"k", sale(i), ()) for i in range(5, 15)])
            await forget_below(real, events, 10)
            # What a fetch has brought already is no loss: ask again from where the agent stands.
            ingest.session.reader.read_from(ingest.session.positions())
            await ingest.until(lambda: bool(ingest.session.stopped) or ingest.session.positions()[events] > 5)
            assert list(ingest.session.stopped) == [0]
            said = ingest.session.stopped[0]
            assert said.startswith(f"{events.topic}/0 at 5: the log no longer holds this offset")
        assert sorted(await fact_ids(real, pipeline)) == list(range(5))
