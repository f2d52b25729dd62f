"""A zombie never overwrites newer fold state, and a death inside a checkpoint leaves it whole.

B writes `jfk` up to 30 and commits 30; paused A wakes and writes `jfk` up to 20; B dies; C takes over.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import msgspec
import pytest
from aiokafka import TopicPartition

from riverkeeper import Pipeline, fold
from riverkeeper.agents.ingest import Ingest
from riverkeeper.agents.score import Score
from riverkeeper.topics.log import DeliveryError, Fenced, FencedWriter, Out
from riverkeeper.topics.store import HEAD_KEY, Inspector, latest
from tests.agents.loop import all_there, at_work, events, head_of, is_exact, made
from tests.agents.tiny import Sale, runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand, fact, predictions
from tests.counterexamples.without import Remedy
from tests.topics.logs import connection, owning, records, until, writing

REMEDIES = [
    Remedy(
        "topics/log.py",
        "transactional_id=transactional_id if transactions else None,",
        'transactional_id=f"{transactional_id}-{id(self)}",',
        what="one transactional id per partition: a successor fences",
    ),
    Remedy(
        "agents/agent.py",
        "        await owner.writer.commit(entries)\n",
        "        for entry in entries:\n            await owner.writer.commit([entry])\n",
        what="state and position in one transaction",
    ),
]


@fold(key="shop", start=0)
def seen(count: int, f: Sale) -> int:
    return count + 1


def counting(broker: Broker, pipeline: Pipeline, replica: str) -> ByHand:
    return ByHand(Score(runtime(pipeline, broker, replica, BY_HAND)))


async def write(broker: Broker, pipeline: Pipeline, start: int, end: int) -> None:
    """Two of three facts are of shop jfk, the others of shop lga."""
    shops = ("jfk", "jfk", "lga")
    async with writing(broker) as writer:
        await writer.write([fact(pipeline, i, shop=shops[i % 3]) for i in range(start, end)])


async def state(broker: Broker, pipeline: Pipeline) -> dict[bytes, bytes]:
    async with Inspector(connection(broker)) as inspector:
        return await inspector.read_table(TopicPartition(pipeline.topic("score.store"), 0))


async def is_whole(broker: Broker, pipeline: Pipeline, count: int) -> None:
    """Each fact was counted once, in what it was answered with, whoever answered."""
    before = {"jfk": 0, "lga": 0}
    answers = await predictions(broker, pipeline)
    assert [p.id for p in answers] == [f"s{i}" for i in range(count)]
    for i, p in enumerate(answers):
        shop = "lga" if i % 3 == 2 else "jfk"
        assert p.features["seen"] == before[shop], f"fact {i} of {shop}"
        before[shop] += 1


async def test_a_late_checkpoint_changes_nothing(real: Broker) -> None:
    async with made(real, partitions=1, features=["amount", seen]) as pipeline:
        facts = pipeline.topic("facts")
        await write(real, pipeline, 0, 20)
        async with counting(real, pipeline, "a") as a:
            await a.take_over(0)
            await a.read_to(facts, 10)
            await a.checkpoint()
            await a.read_to(facts, 20)
            late = a.snapshot()  # and here A is paused

            async with counting(real, pipeline, "b") as b:
                await b.take_over(0)
                await write(real, pipeline, 20, 30)
                await b.read_to(facts, 30)
                await b.checkpoint()
                newest = await state(real, pipeline)

                with suppress(Fenced, DeliveryError):
                    await a.commit(late)
                assert await state(real, pipeline) == newest

        await write(real, pipeline, 30, 40)
        async with counting(real, pipeline, "c") as c:
            await c.take_over(0)
            await c.read_to(facts, 40)
        await is_whole(real, pipeline, 40)


@dataclass
class DiesAfterOne:
    """A process that is gone as soon as its first transaction is through."""

    writer: FencedWriter

    async def commit(self, outs: list[Out]) -> None:
        await self.writer.commit(outs)
        raise ConnectionResetError("the process is gone")

    async def stop(self) -> None:
        await self.writer.stop()


async def test_a_death_inside_a_checkpoint_leaves_state_and_position_together(real: Broker) -> None:
    async with made(real, partitions=1, features=["amount", seen]) as pipeline:
        facts = pipeline.topic("facts")
        await write(real, pipeline, 0, 20)
        async with counting(real, pipeline, "a") as a:
            await a.take_over(0)
            await a.read_to(facts, 20)
            owner = a.session.owners[0]
            owner.writer = DiesAfterOne(owner.writer)  # type: ignore[assignment]
            with pytest.raises(ConnectionResetError):
                await a.checkpoint()
        await write(real, pipeline, 20, 30)
        async with counting(real, pipeline, "b") as b:
            await b.take_over(0)
            await b.read_to(facts, 30)
        await is_whole(real, pipeline, 30)


async def test_a_fenced_agent_drops_all_it_has_and_takes_over_anew(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        await events(real, pipeline, range(50))
        zombie = at_work(Ingest, pipeline, real)
        await until(lambda: all_there(real, pipeline, range(50)))
        session = zombie.agent._session
        assert session is not None
        before = await head_of(real, pipeline, "ingest", 0)
        async with owning(real, pipeline.transactional_id("ingest", 0)) as successor:
            head = msgspec.json.encode(msgspec.structs.replace(before, revision=pipeline.revision))
            await successor.commit([Out(pipeline.topic("ingest.store"), 0, HEAD_KEY, head)])
            (owner,) = session.owners.values()
            await events(real, pipeline, range(50, 60))
            await until(lambda: zombie.agent._session is not session)
            assert session.owners == {} and session.over
            with pytest.raises((Fenced, DeliveryError)):
                await owner.writer.commit([Out(pipeline.topic("ingest.store"), 0, b"late", b"x")])
        await until(lambda: all_there(real, pipeline, range(60)))
        await zombie.stop()
        await is_exact(real, pipeline, range(60))
        assert b"late" not in latest(await records(real, pipeline.topic("ingest.store"), 0))
