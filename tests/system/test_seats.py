"""A process that was killed and comes back has its partitions at once; one that leaves in order gives them up at once.

The session lasts longer than the test waits: nothing here comes of its end.
"""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.faults.trial import owned
from tests.system.harness import WAIT_S, Replica, World, processes, world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are held by the Linux kernel")

SESSION = "300"  # s; the most that settings allow
LOOK = 0.05  # s between two looks at a process's log


def scorer(it: World, replicas: list[Replica]) -> Replica:
    replicas.append(it.spawn(("score",), RIVERKEEPER_SESSION_TIMEOUT=SESSION, RIVERKEEPER_LOG_FORMAT="json"))
    return replicas[-1]


async def until_owned(replica: Replica, partitions: int) -> None:
    """Until it has taken over so many."""
    deadline = time.monotonic() + WAIT_S
    while len(owned(replica, "score") or ()) != partitions:
        replica.check()
        assert time.monotonic() < deadline, f"{owned(replica, 'score')}, not {partitions}: {replica.tail()}"
        await asyncio.sleep(LOOK)


async def test_killed_and_back_in_its_seat(kafka: KafkaCluster) -> None:
    async with world(Broker(kafka.address, transactions=True), "gauges") as it:
        everything = it.pipeline.partitions
        with processes() as replicas:
            first = scorer(it, replicas)
            await until_owned(first, everything)
            for _ in range(2):  # the seat is found again by each next one
                first.kill()
                first = scorer(it, replicas)
                await until_owned(first, everything)


async def test_a_seat_given_up_in_order_is_divided_at_once(kafka: KafkaCluster) -> None:
    async with world(Broker(kafka.address, transactions=True), "gauges") as it:
        everything = it.pipeline.partitions
        with processes() as replicas:
            first = scorer(it, replicas)
            await until_owned(first, everything)
            second = scorer(it, replicas)
            await until_owned(second, everything // 2)
            await first.stop()
            await until_owned(second, everything)
