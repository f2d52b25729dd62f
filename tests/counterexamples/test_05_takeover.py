"""A takeover goes fence, read, seek, open; what fails in it is raised, never served around.

B reads committed 100; A commits 120; B starts its producer and redoes 100..119: both copies would be
visible to `read_committed`. And aiokafka logs and forgets what a rebalance listener raises, so that a
failed restore would serve from empty folds.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from riverkeeper.agents.agent import PartitionsDiffer, Session, Table
from riverkeeper.agents.ingest import Ingest
from riverkeeper.agents.join import Join, JoinWork
from riverkeeper.topics.log import DeliveryError, Fenced, Membership
from riverkeeper.topics.store import Inspector
from tests.agents.loop import at_work, fact_ids, made, produce
from tests.agents.tiny import runtime, sale
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.joined import examples, outcome, prediction
from tests.counterexamples.without import Remedy
from tests.topics.logs import until, writing

REMEDIES = [
    Remedy(
        "agents/agent.py",
        """                await writer.start()
                async with Inspector(self.runtime.connection) as inspector:
                    table = await inspector.read_table(TopicPartition(self.store, partition), self.held)
                    work = await self.open(partition, table, inspector)
""",
        """                async with Inspector(self.runtime.connection) as inspector:
                    table = await inspector.read_table(TopicPartition(self.store, partition), self.held)
                    work = await self.open(partition, table, inspector)
                await writer.start()
""",
        what="fence first, then read",
    ),
    Remedy(
        "agents/agent.py",
        """            except PartitionsDiffer as error:
                session.failure = error
""",
        """            except PartitionsDiffer:
                raise
""",
        what="what a listener meets is raised by the loop",
    ),
    Remedy(
        "agents/agent.py",
        """                except Exception as error:  # noqa: BLE001  raised again by the loop, which ends the stay
                    session.failure = error
""",
        """                except Exception:
                    raise
""",
        what="a failed hand-over ends the stay",
    ),
]

REFUSED_S = 20.0  # for what takes one rebalance; without the remedy nothing ever comes


class Interrupted(Join):
    """Whose predecessor acts once more when its store has just been read."""

    predecessor: ByHand

    async def open(self, partition: int, table: Table, inspector: Inspector) -> JoinWork:
        with suppress(Fenced, DeliveryError):
            await self.predecessor.read_to(self.pipeline.topic("outcomes"), 120)
        return await super().open(partition, table, inspector)


async def test_the_predecessor_is_fenced_before_its_store_is_read(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline, writing(real) as writer:
        outcomes = pipeline.topic("outcomes")
        await writer.write([prediction(pipeline, n) for n in range(130)])
        await writer.write([outcome(pipeline, n) for n in range(100)])
        async with ByHand(Join(runtime(pipeline, real, "a", BY_HAND))) as a:
            await a.take_over(0)
            await a.read_to(outcomes, 100)
            await a.read_to(pipeline.topic("predictions"), 130)
            await writer.write([outcome(pipeline, n) for n in range(100, 120)])

            successor = Interrupted(runtime(pipeline, real, "b", BY_HAND))
            successor.predecessor = a
            async with ByHand(successor) as b:
                await b.take_over(0)
                await writer.write([outcome(pipeline, n) for n in range(120, 130)])
                await b.read_to(outcomes, 130)
        found = Counter(example.id for example in await examples(real, pipeline))
        assert found == Counter(f"s{n}" for n in range(130))


class Divided(Join):
    """Whose assignments are split, as by an assignor that does not keep partitions of one number together."""

    def _owned(self, partitions: frozenset[TopicPartition]) -> frozenset[int]:
        return super()._owned(frozenset(tp for tp in partitions if tp.topic == self.group_topics[0]))


async def test_a_refused_assignment_ends_the_agent(real: Broker) -> None:
    """Inside the rebalance it would be logged and forgotten, and the agent sit idle for ever."""
    async with made(real, partitions=3) as pipeline:
        running = at_work(Divided, pipeline, real)
        with pytest.raises(PartitionsDiffer):
            await running.ended(REFUSED_S)


class Stubborn(Ingest):
    """Which cannot let go of its partitions in order, once."""

    failed = False

    async def _hand_over(self, session: Session, *, drained: bool) -> None:
        if session.owners and not self.failed:
            self.failed = True
            raise ConnectionResetError("the store is out of reach")
        await super()._hand_over(session, drained=drained)


async def test_a_failed_hand_over_ends_the_stay(real: Broker) -> None:
    """Else its owners would go on with partitions that the group has given to others."""
    async with made(real, partitions=2) as pipeline:
        first = at_work(Stubborn, pipeline, real, replica="a")
        await first.ready()
        session = first.agent._session
        second = at_work(Ingest, pipeline, real, replica="b")
        with suppress(TimeoutError):
            await until(lambda: first.agent._session is not session, REFUSED_S)
        assert first.agent._session is not session, "the stay went on after its hand-over failed"
        for running in (first, second):
            await running.ready()
            await running.stop()


async def test_only_the_store_says_where_to_read(real: Broker) -> None:
    """Two clients: who sits in the group reads nothing, and who reads has no group to be led by."""
    async with made(real, partitions=1) as pipeline:
        events = TopicPartition(pipeline.topic("events"), 0)
        await produce(real, pipeline, "events", [(b"k", sale(i), ()) for i in range(20)])
        tool = AIOKafkaConsumer(
            bootstrap_servers=real.address,
            group_id=pipeline.agent_group("ingest"),
            enable_auto_commit=False,
        )
        await tool.start()
        tool.assign([events])
        await tool.commit({events: 20})  # by mistake, or by an older program of the same group
        await tool.stop()
        running = at_work(Ingest, pipeline, real)
        await running.ready()
        session = running.agent._session
        assert session is not None and session.reader._consumer._group_id is None
        await until(lambda: session.positions() == {events: 20})
        await running.stop()
        assert sorted(await fact_ids(real, pipeline)) == list(range(20))
    assert not hasattr(Membership, "poll"), "a seat in the group reads nothing"
