"""An agent at work in a test's own loop, on topics of its own, and what it has written."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from aiokafka import TopicPartition

from riverkeeper.agents.agent import Agent, Limits
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.catalog import family
from riverkeeper.topics.log import Headers, Out, Record
from riverkeeper.topics.partition import partition
from riverkeeper.topics.store import HEAD_KEY, Head, Progress, latest
from tests.agents.tiny import QUICK, runtime, sale, tiny
from tests.brokers.broker import Broker
from tests.topics.logs import DEADLINE, create, records, until, writing

SMALL_STEPS = Limits(
    max_batch=7, checkpoint_seconds=0.02, vitals_seconds=0.2, session_timeout_ms=QUICK.session_timeout_ms
)


@asynccontextmanager
async def made(broker: Broker, **options: Any) -> AsyncIterator[Pipeline]:
    """A pipeline of its own, with its topics."""
    pipeline = tiny(f"a-{uuid.uuid4().hex[:10]}", **options)
    await create(
        broker,
        *family(pipeline.name, partitions=pipeline.partitions, model_partitions=pipeline.model_partitions),
    )
    yield pipeline


_started: list["Running"] = []


async def end_all() -> None:
    """What a test that failed has left running would keep its loop."""
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

    async def ended(self, seconds: float = DEADLINE) -> None:
        """Raises what ended it by itself."""
        await asyncio.wait([self.task], timeout=seconds)
        assert self.task.done(), f"{self.agent.name} goes on after {seconds:.0f} s"
        await self.task

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
    rows: Sequence[tuple[bytes, bytes, Headers]],
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
    rows: list[tuple[bytes, bytes, Headers]] = []
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
