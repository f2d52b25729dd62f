"""A dead letter that is produced again by hand becomes one fact, however often that is done within the window.

Events were refused, because the declaration was wrong. An operator corrects it, writes what stands on
`dead` to `events` again, with its key, value and headers, and, unsure whether that has worked, does so
once more after a restart.

There is no replay as an agent, which would name `(dead, partition, offset)` as its origin and be exact
for ever. What holds is what ingest promises of any event: an id that comes again on its partition within
the declared window (an hour, if not said) is the same event. A dead letter keeps its key, so that it finds
its partition again; what is replayed twice with more than the window in between is two facts.
"""

from __future__ import annotations

from collections.abc import Sequence

from riverkeeper import Fact
from riverkeeper.agents.ingest import Ingest
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Record
from tests.agents.loop import everything, fact_ids, made, produce
from tests.agents.tiny import Sale, runtime, sale, tiny
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy

REMEDIES = [
    Remedy(
        "agents/ingest.py",
        "        if self._recent is not None and self._recent.seen(parsed.id, record.timestamp):\n",
        "        if False:\n",
        what="an id that came before is no new fact",
    ),
    Remedy(
        "agents/ingest.py",
        "            recent.restore(table)\n",
        "            pass\n",
    ),
    Remedy(
        "agents/work.py",
        'return Out(pipeline.topic("dead"), record.partition, record.key, value, [*headers, *original])',
        'return Out(pipeline.topic("dead"), record.partition, None, value, [*headers, *original])',
        what="a dead letter keeps its key",
    ),
]

EVENTS = 5


class Whole(Fact):
    """The first declaration: amounts are whole numbers. They are not."""

    event_type = "sale"

    basket: str
    shop: str
    amount: int


async def ingested(broker: Broker, pipeline: Pipeline, records: Sequence[tuple[bytes, bytes]]) -> None:
    """These events reach ingest, which then stops in order."""
    await produce(broker, pipeline, "events", [(key, value, ()) for key, value in records])
    ends = [0] * pipeline.partitions
    for record in await everything(broker, pipeline, "events"):
        ends[record.partition] = record.offset + 1
    async with ByHand(Ingest(runtime(pipeline, broker, limits=BY_HAND))) as ingest:
        await ingest.take_over(*range(pipeline.partitions))
        await ingest.read_to(pipeline.topic("events"), *ends)
        await ingest.agent._hand_over(ingest.session, drained=True)


async def test_a_second_replay_adds_nothing(real: Broker) -> None:
    async with made(real, partitions=2, facts=Whole) as wrong:
        await ingested(real, wrong, [(b"k%d" % i, sale(i)) for i in range(EVENTS)])
        assert await fact_ids(real, wrong) == []
        dead = await everything(real, wrong, "dead")
        assert len(dead) == EVENTS

        corrected = tiny(wrong.name, partitions=2, facts=Sale)
        for _ in range(2):
            await ingested(real, corrected, [replayed(record) for record in dead])
        assert sorted(await fact_ids(real, corrected)) == list(range(EVENTS))


def replayed(record: Record) -> tuple[bytes, bytes]:
    assert record.key is not None, "without its key a second replay could reach another partition"
    return record.key, record.value or b""
