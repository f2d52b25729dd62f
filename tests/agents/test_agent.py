"""The loop: exactly once through crashes, rebalances and takeovers; orderly stops; contained troubles."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition

from riverkeeper.agents.ingest import Ingest
from riverkeeper.agents.join import Join
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import Envelope, Example, Origin, Prediction, Source
from riverkeeper.topics.partition import partition
from riverkeeper.topics.store import ORIGIN, place
from riverkeeper.topics.vitals import unpack
from tests.agents.loop import (
    SMALL_STEPS,
    Running,
    admitted,
    all_there,
    at_work,
    end_all,
    events,
    everything,
    fact_ids,
    head_of,
    is_exact,
    made,
    produce,
)
from tests.agents.test_join import TIME
from tests.agents.tiny import Paid, sale
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.topics.logs import forget_below, records, until, writing


@pytest.fixture
def real(kafka: KafkaCluster) -> Broker:
    """For fencing and for several members in one process, which the embedded broker lacks."""
    return Broker(kafka.address, transactions=True)


@pytest.fixture(autouse=True)
async def nothing_left_at_work() -> AsyncIterator[None]:
    yield
    await end_all()


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


async def keyed(broker: Broker, name: str, i: int) -> None:
    """One sale in a batch of its own, for the embedded broker forgets whole ones."""
    async with writing(broker) as writer:
        await writer.write([Out(name, 0, b"k", sale(i))])


class TestOnTheWay:
    async def test_one_step_is_worked_out_while_the_last_ones_outputs_are_on_their_way(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One, and no more; nothing is handed over before they are acknowledged."""
        write, may_go, begun = Writer.write, asyncio.Event(), 0
        may_go.set()

        async def held_up(self: Writer, outs: Sequence[Out]) -> None:
            nonlocal begun
            if any(out.topic.endswith(".facts") for out in outs):
                begun += 1
                await may_go.wait()
            await write(self, outs)

        monkeypatch.setattr(Writer, "write", held_up)
        limits = replace(SMALL_STEPS, max_batch=4, checkpoint_seconds=1_000.0)
        async with made(broker, partitions=1) as pipeline:
            source = TopicPartition(pipeline.topic("events"), 0)

            async def kept() -> int:
                return (await head_of(broker, pipeline, "ingest", 0)).positions[place(source)]

            running = at_work(Ingest, pipeline, broker, limits)
            await events(broker, pipeline, [1])
            await until(partial(all_there, broker, pipeline, [1]))  # and, being the first, soon kept
            session = running.agent._session
            assert session is not None
            await until(lambda: all(owner.committing is not None for owner in session.owners.values()))
            may_go.clear()
            await events(broker, pipeline, range(2, 20))
            two_steps = 1 + 2 * limits.max_batch
            await until(lambda: session.positions()[source] == two_steps)
            stopping = asyncio.create_task(running.stop())
            await asyncio.sleep(0.3)
            assert session.positions()[source] == two_steps
            assert (begun, await kept(), stopping.done()) == (2, 1, False)
            may_go.set()
            await stopping
            assert await kept() >= two_steps
            again = at_work(Ingest, pipeline, broker)
            await until(partial(all_there, broker, pipeline, range(1, 20)))
            await again.stop()
            await is_exact(broker, pipeline, range(1, 20))


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
                    each
                    for r in await records(broker, pipeline.topic("vitals"))
                    for each in unpack(r.value or b"")
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


class TestStray:
    @pytest.mark.parametrize("where", ["attend", "follow"])
    async def test_a_cancellation_that_nobody_asked_for_begins_the_stay_anew(
        self, broker: Broker, where: str
    ) -> None:
        """To asyncio it is an orderly end: the agent would be gone, and its process at work."""
        once = iter([where])

        class Cancelled(Ingest):
            async def attend(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
                point = next(once, "")
                if point == "attend":
                    raise asyncio.CancelledError
                return [self.follow()] if point == "follow" else []

            async def follow(self) -> None:
                raise asyncio.CancelledError

        async with made(broker) as pipeline:
            await events(broker, pipeline, range(10))
            running = at_work(Cancelled, pipeline, broker)
            await until(partial(all_there, broker, pipeline, range(10)))
            await running.stop()
            assert len(running.agent._restarts) == 1
