"""What a reader gets has no gap: nothing follows an output that failed for good.

The batch with 7 is refused, the batch with 8 would be accepted; the agent restarts and writes 7 again.
A reader that had 8 would skip it.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from aiokafka import TopicPartition

from riverkeeper.topics.log import DeliveryError, Out
from riverkeeper.topics.messages import Origin
from riverkeeper.topics.store import ORIGIN, Progress
from tests.brokers.broker import Broker
from tests.counterexamples.without import Remedy
from tests.topics.logs import MESSAGE_TOO_LARGE, SMALL, records, refuse_next, topic, writing

REMEDIES = [
    Remedy(
        "topics/log.py",
        """        while waiting:
            round_ = {place: batches.pop(0) for place, batches in waiting.items()}
            appended = await _deliver_round(producer, round_)
            waiting = {place: batches for place, batches in waiting.items() if batches}
""",
        """        sent = [{place: batch} for place, batches in waiting.items() for batch in batches]
        await asyncio.gather(*(_deliver_round(producer, round_) for round_ in sent))
""",
        what="one unacknowledged batch per output partition",
    ),
    Remedy(
        "topics/log.py",
        """        assert self._producer is not None, "start() comes first"
        if self._spent is not None:
            raise self._spent
""",
        """        assert self._producer is not None, "start() comes first"
""",
        what="a delivery error ends the producer",
    ),
]


def output(name: str, cause: int, size: int) -> Out:
    """The output of one cause, in a batch of its own."""
    origin = Origin(b"events/0", cause, 0).header()
    return Out(name, 0, b"%d" % cause, b"x" * size, ((ORIGIN, origin),))


async def read(broker: Broker, name: str) -> list[int]:
    """The causes of what a reader under the origin rule takes."""
    progress = Progress({TopicPartition(name, 0): 0}, frozenset({name}))
    got = await records(broker, name)
    return [int(record.key or b"") for record in progress.admit(TopicPartition(name, 0), got)]


@pytest.mark.parametrize("in_one_write", [True, False], ids=["in one write", "in another write"])
async def test_nothing_follows_a_refused_batch(broker: Broker, in_one_write: bool) -> None:
    name = await topic(broker, config=SMALL)
    six, seven, eight = (output(name, 6, 500_000), output(name, 7, 700_000), output(name, 8, 500_000))
    async with writing(broker) as first:
        refuse_next(broker, 0, MESSAGE_TOO_LARGE)
        with suppress(DeliveryError):
            await first.write([six, seven, eight] if in_one_write else [six, seven])
        with suppress(DeliveryError):
            await first.write([eight])
    assert await read(broker, name) == [6]
    async with writing(broker) as restarted:
        await restarted.write([output(name, cause, 500_000) for cause in (6, 7, 8, 9)])
    assert await read(broker, name) == [6, 7, 8, 9]
