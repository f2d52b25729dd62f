"""Agents whose turns a test takes, so that an owner and a zombie act in an order that is the same every time.

What the group would decide, the test does; takeovers, turns and checkpoints are the agent's own, on a
real broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

import msgspec
from aiokafka import TopicPartition

from riverkeeper.agents.agent import Agent, Limits, Session, _first
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Out, Reader, Writer
from riverkeeper.topics.messages import Envelope, Origin, Prediction
from riverkeeper.topics.store import ORIGIN
from tests.agents.loop import admitted
from tests.agents.test_join import TIME
from tests.agents.tiny import Sale
from tests.brokers.broker import Broker
from tests.topics.logs import DEADLINE

# Nothing is due by itself: checkpoints are made when the test says so.
BY_HAND = Limits(checkpoint_seconds=1e9, checkpoint_records=10**9, vitals_seconds=1e9)


class ByHand:
    """One stay of an agent, without a seat in its group. Leaving the block is death: nothing is handed over."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.session = Session(Reader(agent.runtime.connection), Writer(agent.runtime.connection))
        self._stack = AsyncExitStack()
        self._following: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        for client in (self.session.reader, self.session.writer):
            self._stack.push_async_callback(client.stop)
            await client.start()
        self._stack.push_async_callback(self.agent._drop, self.session)
        followed: list[Awaitable[None]] = await self.agent.attend(self._stack)
        self._following = [asyncio.ensure_future(each) for each in followed]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await self._stack.aclose()

    async def take_over(self, *partitions: int) -> Self:
        """As when the group assigns exactly these. Raises what the takeover raises."""
        self.session.target = frozenset(partitions)
        try:
            await self.agent._take_over_all(self.session)
        except ExceptionGroup as group:
            raise _first(group) from None
        return self

    async def turn(self) -> None:
        await self.agent._take_turn(self.session)
        await self.session.sent()

    async def read_to(self, topic: str, *ends: int) -> None:
        """Turns until everything below `ends`, by partition, was read and its outputs are acknowledged."""
        await self.until(
            lambda: all(
                self.session.positions().get(TopicPartition(topic, p), end) >= end
                for p, end in enumerate(ends)
            )
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s; at {self.session.positions()}"
            await self.turn()

    def snapshot(self, partition: int = 0) -> list[Out]:
        """What a checkpoint would write now."""
        owner = self.session.owners[partition]
        return owner.entries(owner.work.snapshot(time.monotonic()))

    async def commit(self, entries: list[Out], partition: int = 0) -> None:
        """The rest of the checkpoint."""
        await self.agent._commit(self.session.owners[partition], entries)

    async def checkpoint(self, partition: int = 0) -> None:
        await self.commit(self.snapshot(partition), partition)


def fact(
    pipeline: Pipeline, offset: int, *, shop: str = "jfk", amount: float = 1.0, partition: int = 0
) -> Out:
    """What ingest writes of the event at `offset` of partition 0, to that partition of `facts`."""
    data = Sale(basket=f"b{offset}", shop=shop, amount=amount)
    said = Envelope(id=f"s{offset}", type="sale", time=TIME, key=shop, data=data)
    origin = Origin(f"{pipeline.topic('events')}/0".encode(), offset, 0).header()
    return Out(
        pipeline.topic("facts"), partition, shop.encode(), msgspec.json.encode(said), ((ORIGIN, origin),)
    )


async def predictions(broker: Broker, pipeline: Pipeline) -> list[Prediction]:
    """As a reader under the origin rule takes them."""
    return [
        msgspec.json.decode(record.value or b"", type=Prediction)
        for record in await admitted(broker, pipeline, "predictions")
    ]
