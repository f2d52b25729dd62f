"""Routing is what was read back from the log, never what a table or a supervisor meant to write.

The changelog is flushed, the process dies, the verdict was never sent: the table says quarantined and
the rogue serves.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from riverkeeper.models.routing import Routing
from riverkeeper.supervisor.app import Supervisor
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import State, Verdict
from tests.brokers.broker import Broker
from tests.counterexamples.without import Remedy
from tests.supervisor.test_app import LIMITS, Flights, World, _create, state
from tests.topics.logs import connection, records, until

REMEDIES = [
    Remedy(
        "supervisor/app.py",
        "            return [issued[0]] if now - issued[1] >= REISSUE_MS else []\n",
        "            return []\n",
        what="a verdict is issued again until it is read back",
    ),
    Remedy(
        "supervisor/app.py",
        "            self._issued[verdict.model] = (verdict, now)\n",
        "            self._issued[verdict.model] = (verdict, now)\n"
        "            meant = self.routing.offset + 1\n"
        "            self._known.book = self._known.book.obey(meant, verdict, self._limits)\n",
        what="routing is what was read back",
    ),
    Remedy(
        "supervisor/app.py",
        """        if self._ticks % ROUND_TICKS == 0:
            return list(self._known.book.courses)
""",
        "",
        what="judged by the table, too, not by news alone",
    ),
]
SEEN_S = 20.0  # for what takes two seconds; a rebalance may come first


class Lost(Writer):
    """Whose first verdict never reaches the broker."""

    def __init__(self, of: Supervisor) -> None:
        super().__init__(of._connection)
        self.lost = asyncio.Event()

    async def write(self, outs: Iterable[Out]) -> None:
        sent = list(outs)
        if not self.lost.is_set() and any(out.topic.endswith(".verdicts") for out in sent):
            self.lost.set()
            return
        await super().write(sent)


@pytest.fixture
async def world(real: Broker) -> AsyncIterator[World]:
    pipeline = Flights(f"flights-{uuid.uuid4().hex[:8]}")
    await _create(real, pipeline.name)
    writer = Writer(connection(real))
    await writer.start()
    yield World(real, pipeline, writer)
    await writer.stop()


@asynccontextmanager
async def running(world: World, *, loses_a_verdict: bool) -> AsyncIterator[tuple[Supervisor, Lost]]:
    supervisor = Supervisor(world.pipeline, world.connection, LIMITS, keep_s=0.0)
    lossy = Lost(supervisor)
    if loses_a_verdict:
        supervisor._writer = lossy
    await supervisor.start()
    try:
        yield supervisor, lossy
    finally:
        await supervisor.stop()


async def rogue(world: World) -> None:
    await world.score(line=0, version=1, bad=90)


async def in_force(world: World) -> State:
    """As anybody who reads the log now finds it."""
    routing = Routing.declared(world.pipeline.models, world.pipeline.serving)
    for record in await records(world.broker, f"{world.pipeline.name}.verdicts"):
        routing = routing.obey(record.offset, Verdict.model_validate_json(record.value or b""))
    return routing.routes["eager"].state


async def quarantined(world: World) -> bool:
    return await in_force(world) is State.QUARANTINED


async def seen_quarantined(world: World) -> bool:
    try:
        await until(lambda: quarantined(world), SEEN_S)
    except TimeoutError:
        return False
    return True


async def acknowledged(world: World) -> bool:
    """Whether the one record of vitals is behind the supervisors for good."""
    name = world.pipeline.name
    async with AIOKafkaConsumer(
        **world.connection.client_options(), group_id=f"{name}.supervisor", enable_auto_commit=False
    ) as group:
        return bool(await group.committed(TopicPartition(f"{name}.vitals", 0)) == 1)


async def test_a_verdict_that_was_lost_is_issued_again(world: World) -> None:
    async with running(world, loses_a_verdict=True) as (supervisor, lossy):
        await rogue(world)
        await asyncio.wait_for(lossy.lost.wait(), SEEN_S)
        assert state(supervisor) is State.LIVE, "what nobody else knows is not known here either"
        assert await in_force(world) is State.LIVE
        assert await seen_quarantined(world), "the rogue goes on serving"


async def test_what_the_table_knows_and_the_log_does_not_the_next_one_decides(world: World) -> None:
    async with running(world, loses_a_verdict=True) as (_, lossy):
        await rogue(world)
        await asyncio.wait_for(lossy.lost.wait(), SEEN_S)
        await until(lambda: acknowledged(world), SEEN_S)  # nobody is told of the rogue again
    assert await in_force(world) is State.LIVE
    async with running(world, loses_a_verdict=False) as (second, _):
        assert await seen_quarantined(world), "the rogue goes on serving"
        await until(lambda: state(second) is State.QUARANTINED)
