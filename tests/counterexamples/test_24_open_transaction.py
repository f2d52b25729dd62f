"""A writer that stalls in a transaction holds its readers for ten seconds at most, and those of no other partition.

Readers of committed records wait for the first open transaction of a partition to end, whoever else has
written there since; aiokafka's producers may take 60 s. Ours may take 10, and each transaction is of
one partition: a learner's id and partition follow from the hash of its models' names, so that one that is
stopped in the middle of publishing holds up these models' versions, and no others.
"""

from __future__ import annotations

import asyncio
import time

from river import linear_model

from riverkeeper.agents.learn import Learn
from riverkeeper.topics.log import TRANSACTION_TIMEOUT_MS, Out
from riverkeeper.topics.partition import partition
from riverkeeper.topics.tail import Tail
from tests.agents.loop import made
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy
from tests.topics.logs import connection, owning, writing

REMEDIES = [
    Remedy(
        "topics/log.py",
        "            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,\n",
        "",
    ),
    Remedy(
        "agents/agent.py",
        "        store, partition = self.store, self.partition\n",
        "        store, partition = self.store, 0\n",
        what="a transaction is of one partition",
    ),
]

# The brokers here look for transactions that are over their time every second; by default every ten.
ROOM_SECONDS = 5.0
HALF, WRITTEN = b"half a version", b"what others have written"
ONE, OTHER = "a", "d"  # models, by the partition of `models` that their names hash to


async def test_a_stalled_learner_holds_its_own_models_and_not_for_long(real: Broker) -> None:
    assert (partition(ONE.encode(), 2), partition(OTHER.encode(), 2)) == (0, 1)
    models = dict.fromkeys((ONE, OTHER), linear_model.LinearRegression)
    async with made(
        real, partitions=1, model_partitions=2, models=models, serve=ONE, fallback=OTHER
    ) as pipeline:
        topic, seen = pipeline.topic("models"), list[bytes]()
        tail = Tail(connection(real), topic, lambda record: seen.append(record.key or b""))
        await tail.start()
        following = asyncio.create_task(tail.run())
        try:
            async with (
                owning(real, pipeline.transactional_id("learn", 0)) as stalled,
                ByHand(Learn(runtime(pipeline, real, limits=BY_HAND))) as learn,
                writing(real) as writer,
            ):
                await learn.take_over(1)
                await stalled._producer.begin_transaction()
                await stalled._producer.send_and_wait(topic, b"", HALF, partition=0)
                began = time.monotonic()
                await writer.write([Out(topic, 0, WRITTEN, b"")])

                owner = learn.session.owners[1]
                await owner.work.prepare(0.0, drained=False)
                await learn.checkpoint(1)
                await read(seen, f"{OTHER}/1".encode(), 5.0)
                assert WRITTEN not in seen  # it stands behind what is not decided

                await read(seen, WRITTEN, TRANSACTION_TIMEOUT_MS / 1000 + ROOM_SECONDS)
                assert time.monotonic() - began > 5.0, "nothing was open"
                assert HALF not in seen
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await tail.stop()


async def read(seen: list[bytes], what: bytes, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while what not in seen:
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what!r}; {seen}"
        await asyncio.sleep(0.05)
