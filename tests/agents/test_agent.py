"""The loop: exactly once through crashes, rebalances and takeovers; orderly stops; contained troubles."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition

from riverkeeper.agents.agent import Agent, Limits, PartitionsDiffer
from riverkeeper.agents.ingest import Ingest
from riverkeeper.agents.join import Join
from riverkeeper.models.pipeline import Dedupe, Pipeline
from riverkeeper.topics.catalog import family
from riverkeeper.topics.log import DeliveryError, Fenced, Out, Record
from riverkeeper.topics.messages import Envelope, Example, Origin, Prediction, Source, Vitals
from riverkeeper.topics.partition import partition
from riverkeeper.topics.store import HEAD_KEY, ORIGIN, Head, Progress, RevisionMismatch, latest
from tests.agents.test_join import TIME
from tests.agents.tiny import QUICK, Paid, runtime, sale, tiny
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.topics.logs import DEADLINE, create, forget_below, owning, records, until, writing

SMALL_STEPS = Limits(
    max_batch=7, checkpoint_seconds=0.02, vitals_seconds=0.2, session_timeout_ms=QUICK.session_timeout_ms
)


@pytest.fixture
def real(kafka: KafkaCluster) -> Broker:
    """For fencing and for several members in one process, which the embedded broker lacks."""
    return Broker(kafka.address, transactions=True)


@asynccontextmanager
async def made(broker: Broker, **options: Any) -> AsyncIterator[Pipeline]:
    """A pipeline of its own, with its topics."""
    pipeline = tiny(f"a-{uuid.uuid4().hex[:10]}", **options)
    specs = family(pipeline.name, partitions=pipeline.partitions, model_partitions=pipeline.model_partitions)
    needed = (
        "events",
        "facts",
        "outcomes",
        "predictions",
        "examples",
        "dead",
        "vitals",
        "ingest.store",
        "join.store",
    )
    await create(broker, *(s for s in specs if s.name.removeprefix(f"{pipeline.name}.") in needed))
    yield pipeline


_started: list["Running"] = []


@pytest.fixture(autouse=True)
async def nothing_left_at_work() -> AsyncIterator[None]:
    """What a test that failed has left running would keep its loop."""
    yield
    for running in _started:
        if not running.task.done():
            await running.crash()
    _started.clear()


class Running:
    """An agent at work in this process; `crash` ends it without a word to anyone."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._stop = asyncio.Event()
        self.task = asyncio.create_task(agent.run(self._stop))
        _started.append(self)

    async def ready(self) -> None:
        await until(lambda: self.task.done() or self.agent.unready == "")

    async def crash(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(self.task, DEADLINE)


def at_work(
    kind: type[Agent], pipeline: Pipeline, broker: Broker, limits: Limits = QUICK, replica: str = "a"
) -> Running:
    return Running(kind(runtime(pipeline, broker, replica, limits)))


async def produce(
    broker: Broker,
    pipeline: Pipeline,
    suffix: str,
    rows: Sequence[tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]],
) -> None:
    name = pipeline.topic(suffix)
    async with writing(broker) as writer:
        await writer.write(
            [
                Out(name, partition(key, pipeline.partitions), key, value, headers)
                for key, value, headers in rows
            ]
        )


async def events(broker: Broker, pipeline: Pipeline, ids: Sequence[int]) -> None:
    """Sales, with every fifth sent twice and every seventh followed by junk."""
    rows: list[tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]] = []
    for i in ids:
        key = b"%d" % (i % 20)
        rows += [(key, sale(i, shop=f"shop{i % 11}"), ())] * (2 if i % 5 == 0 else 1)
        if i % 7 == 0:
            rows.append((key, b"junk %d" % i, ()))
    await produce(broker, pipeline, "events", rows)


async def everything(broker: Broker, pipeline: Pipeline, suffix: str) -> list[Record]:
    got = [await records(broker, pipeline.topic(suffix), p) for p in range(pipeline.partitions)]
    return [record for part in got for record in part]


async def admitted(broker: Broker, pipeline: Pipeline, suffix: str) -> list[Record]:
    """What a reader under the origin rule takes."""
    name, taken = pipeline.topic(suffix), list[Record]()
    for p in range(pipeline.partitions):
        tp = TopicPartition(name, p)
        progress = Progress({tp: 0}, frozenset({name}))
        got = await records(broker, name, p)
        if got:
            taken += progress.admit(tp, got)
    return taken


async def fact_ids(broker: Broker, pipeline: Pipeline) -> list[int]:
    facts = await admitted(broker, pipeline, "facts")
    return [int(msgspec.json.decode(r.value or b"", type=dict[str, Any])["id"]) for r in facts]


async def head_of(broker: Broker, pipeline: Pipeline, agent: str, p: int) -> Head:
    stored = latest(await records(broker, pipeline.topic(f"{agent}.store"), p))
    return msgspec.json.decode(stored[HEAD_KEY], type=Head)


async def is_exact(broker: Broker, pipeline: Pipeline, ids: Sequence[int]) -> None:
    """Each id is one fact, each junk one dead letter."""
    facts = Counter(await fact_ids(broker, pipeline))
    assert facts == Counter(ids)
    dead = Counter(r.value for r in await admitted(broker, pipeline, "dead"))
    assert dead == Counter(b"junk %d" % i for i in ids if i % 7 == 0)


async def all_there(broker: Broker, pipeline: Pipeline, ids: Sequence[int], *, junk: bool = True) -> bool:
    dead = sum(i % 7 == 0 for i in ids) if junk else 0
    written = set(await fact_ids(broker, pipeline))
    return set(ids) <= written and dead <= len(await admitted(broker, pipeline, "dead"))


class TestExactlyOnce:
    async def test_ingest_is_exact_through_crashes_at_any_moment(self, broker: Broker) -> None:
        rng, ids = random.Random(3), list(range(400))

        async def written() -> bool:
            return bool(await fact_ids(broker, pipeline))

        async with made(broker) as pipeline:
            await events(broker, pipeline, ids)
            never = replace(SMALL_STEPS, checkpoint_seconds=1_000.0)
            running = at_work(Ingest, pipeline, broker, never)
            await until(written)
            await running.crash()
            for _ in range(8 if broker.transactions else 3):  # a rebalance there takes seconds
                running = at_work(Ingest, pipeline, broker, SMALL_STEPS)
                await running.ready()
                await asyncio.sleep(rng.uniform(0.0, 0.12))
                await running.crash()
            running = at_work(Ingest, pipeline, broker, SMALL_STEPS)
            await until(lambda: all_there(broker, pipeline, ids))
            await running.stop()
            await is_exact(broker, pipeline, ids)
            # What the first wrote without a checkpoint came again: that is what the rule is for.
            assert len(await everything(broker, pipeline, "facts")) > len(ids)

    async def test_join_is_exact_through_crashes_at_any_moment(self, broker: Broker) -> None:
        """An example depends on two inputs, so that only a transaction can keep it to one."""
        rng, count = random.Random(5), 300
        async with made(broker) as pipeline:
            await self._predictions_and_outcomes(broker, pipeline, count, rng)
            for _ in range(8 if broker.transactions else 3):  # a rebalance there takes seconds
                running = at_work(Join, pipeline, broker, SMALL_STEPS)
                await running.ready()
                await asyncio.sleep(rng.uniform(0.0, 0.15))
                await running.crash()
            running = at_work(Join, pipeline, broker, SMALL_STEPS)

            async def complete() -> bool:
                return len({r.value for r in await everything(broker, pipeline, "examples")}) >= count

            await until(complete)
            await running.stop()
            examples = [
                msgspec.json.decode(r.value or b"", type=Example)
                for r in await everything(broker, pipeline, "examples")
            ]
        counts = Counter(e.id for e in examples)
        assert counts.keys() == {f"s{i}" for i in range(count)}
        assert set(counts.values()) == {1} or not broker.transactions
        assert all(e.label == float(e.id[1:]) for e in examples)

    async def _predictions_and_outcomes(
        self, broker: Broker, pipeline: Pipeline, count: int, rng: random.Random
    ) -> None:
        predictions, outcomes = [], []
        for i in range(count):
            key = f"b{i}"
            said = Prediction(
                id=f"s{i}", key=key, time=TIME, value=2.0, source=Source.MODEL, reason="", asked="line",
                model="line", version=1, fingerprint="f", fact=f"facts/0/{i}", verdict=-1, baseline=None,
                features={"amount": 1.0},
            )  # fmt: skip
            predictions.append(
                (key.encode(), msgspec.json.encode(said), ((ORIGIN, Origin(b"f/0", i, 0).header()),))
            )
            true = Envelope(
                id=f"p{i}", type="paid", time=TIME, key=key, data=Paid(basket=key, amount=float(i))
            )
            outcomes.append((key.encode(), msgspec.json.encode(true)))
        rng.shuffle(outcomes)
        await produce(broker, pipeline, "predictions", predictions)
        numbered = [(k, v, ((ORIGIN, Origin(b"e/0", i, 0).header()),)) for i, (k, v) in enumerate(outcomes)]
        await produce(broker, pipeline, "outcomes", numbered)

    async def test_an_event_with_a_null_header_costs_one_dead_letter(self, broker: Broker) -> None:
        async with made(broker, partitions=1) as pipeline:
            header: Any = ("trace", None)
            await produce(
                broker, pipeline, "events", [(b"k", b"junk 0", (header,)), (b"k", sale(1), (header,))]
            )
            running = at_work(Ingest, pipeline, broker)
            await until(lambda: all_there(broker, pipeline, [1]))
            await running.stop()
            (dead,) = await admitted(broker, pipeline, "dead")
            assert list(dead.headers)[-1] == header

    async def test_two_replicas_share_and_stay_exact_while_partitions_move(self, real: Broker) -> None:
        ids = list(range(600))
        async with made(real, partitions=4) as pipeline:
            await events(real, pipeline, ids[:200])
            first = at_work(Ingest, pipeline, real, SMALL_STEPS, "a")
            await first.ready()
            second = at_work(Ingest, pipeline, real, SMALL_STEPS, "b")
            await events(real, pipeline, ids[200:400])
            await second.ready()

            def owned(running: Running) -> set[int]:
                return set(running.agent._session.owners) if running.agent._session else set()

            await until(lambda: len(owned(first)) == len(owned(second)) == 2)
            assert owned(first) | owned(second) == {0, 1, 2, 3}
            await first.crash()
            await events(real, pipeline, ids[400:])
            await until(lambda: all_there(real, pipeline, ids))
            await second.stop()
            await is_exact(real, pipeline, ids)


class TestTakeover:
    async def test_a_zombie_is_fenced_and_drops_all_it_has(self, real: Broker) -> None:
        """Counterexamples 1 and 5: another owner of the id writes state; the first must not write over it."""
        async with made(real, partitions=1) as pipeline:
            await events(real, pipeline, range(50))
            zombie = at_work(Ingest, pipeline, real)
            await until(lambda: all_there(real, pipeline, range(50)))
            session = zombie.agent._session
            assert session is not None
            before = await head_of(real, pipeline, "ingest", 0)
            async with owning(real, pipeline.transactional_id("ingest", 0)) as successor:
                state = msgspec.json.encode(msgspec.structs.replace(before, revision=pipeline.revision))
                await successor.commit([Out(pipeline.topic("ingest.store"), 0, HEAD_KEY, state)])
                (owner,) = session.owners.values()
                await events(real, pipeline, range(50, 60))
                await until(lambda: zombie.agent._session is not session)
                assert session.owners == {} and session.over
                with pytest.raises((Fenced, DeliveryError)):
                    await owner.writer.commit([Out(pipeline.topic("ingest.store"), 0, b"late", b"x")])
            await until(lambda: all_there(real, pipeline, range(60)))  # it rejoined, and took over anew
            await zombie.stop()
            await is_exact(real, pipeline, range(60))
            stored = latest(await records(real, pipeline.topic("ingest.store"), 0))
            assert b"late" not in stored

    async def test_another_revision_waits_until_the_store_is_drained(self, broker: Broker) -> None:
        async with made(broker, partitions=1) as pipeline:
            changed = tiny(pipeline.name, partitions=1, dedupe=Dedupe(timedelta(hours=2)))
            assert changed.revision != pipeline.revision
            await events(broker, pipeline, range(20))
            old = at_work(Ingest, pipeline, broker)
            await until(lambda: all_there(broker, pipeline, range(20)))
            await old.crash()
            with pytest.raises(RevisionMismatch, match=f"{pipeline.revision}.*{changed.revision}.*drained"):
                await asyncio.wait_for(at_work(Ingest, changed, broker).task, DEADLINE)

            old = at_work(Ingest, pipeline, broker)
            await old.ready()
            await old.stop()
            assert (await head_of(broker, pipeline, "ingest", 0)).drained
            new = at_work(Ingest, changed, broker)
            await new.ready()
            head = await head_of(broker, pipeline, "ingest", 0)
            assert (head.revision, head.drained) == (changed.revision, False)
            await events(broker, pipeline, range(20, 30))
            await until(lambda: all_there(broker, pipeline, range(30)))
            await new.stop()
            await is_exact(broker, pipeline, range(30))


async def keyed(broker: Broker, name: str, i: int) -> None:
    """One sale in a batch of its own, for the embedded broker forgets whole ones."""
    async with writing(broker) as writer:
        await writer.write([Out(name, 0, b"k", sale(i))])


class TestStopped:
    async def test_a_partition_whose_source_was_truncated_stops_alone(self, broker: Broker) -> None:
        async with made(broker, partitions=2) as pipeline:
            name = pipeline.topic("events")
            for i in range(10):
                await keyed(broker, name, i)
            running = at_work(Ingest, pipeline, broker)
            await until(lambda: all_there(broker, pipeline, range(10), junk=False))
            await running.stop()
            for i in range(10, 20):
                await keyed(broker, name, i)
            await forget_below(broker, TopicPartition(name, 0), 15)

            running = at_work(Ingest, pipeline, broker)
            await running.ready()
            assert set(running.agent.stopped) == {0}
            await produce(broker, pipeline, "events", [(b"%d" % i, sale(i), ()) for i in range(100, 140)])
            healthy = [i for i in range(100, 140) if partition(b"%d" % i, 2) == 1]
            assert healthy

            async def others_go_on() -> bool:
                return set(healthy) <= set(await fact_ids(broker, pipeline))

            await until(others_go_on)

            async def reported() -> bool:
                vitals = [
                    Vitals.model_validate_json(r.value or b"")
                    for r in await records(broker, pipeline.topic("vitals"))
                ]
                return any(f"ingest/0: {name}/0 at 10" in v.trouble for v in vitals)

            await until(reported)
            await running.stop()
            assert not set(range(10, 20)) & set(await fact_ids(broker, pipeline))

    async def test_retention_that_passes_a_running_agent_stops_the_partition(self, broker: Broker) -> None:
        """The position is checked by the broker, too: nothing is skipped silently."""
        async with made(broker, partitions=1) as pipeline:
            running = at_work(Ingest, pipeline, broker)
            await running.ready()
            agent = running.agent
            assert agent._session is not None
            async with agent._session.turn:  # while it pauses
                for i in range(10):
                    await keyed(broker, pipeline.topic("events"), i)
                await forget_below(broker, TopicPartition(pipeline.topic("events"), 0), 5)
                # What a fetch has brought already is no loss: ask again from where the agent stands.
                agent._session.reader.read_from(agent._session.positions())
            await until(lambda: set(agent.stopped) == {0})
            await running.stop()
            assert await fact_ids(broker, pipeline) == []


async def test_a_split_assignment_is_refused(real: Broker) -> None:
    """Counterexample 4: partition p of two inputs must have one owner."""
    async with made(real) as pipeline:
        agent = Join(runtime(pipeline, real))
        predictions, outcomes = agent.group_topics
        both = {TopicPartition(predictions, 1), TopicPartition(outcomes, 1)}
        assert agent._owned(frozenset(both)) == {1}
        with pytest.raises(PartitionsDiffer):
            agent._owned(frozenset({*both, TopicPartition(outcomes, 2)}))
