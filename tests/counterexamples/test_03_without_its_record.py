"""A transaction never commits without its record: a refused one keeps the whole commit back.

A send is refused by the broker, aiokafka's `commit_transaction()` returns, and the position has moved.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from riverkeeper.topics.log import DeliveryError, Out
from tests.brokers.broker import Broker
from tests.counterexamples.without import Remedy
from tests.topics.logs import SMALL, large, owning, topic, values

REMEDIES = [
    Remedy(
        "topics/log.py",
        """    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
""",
        "",
        what="every delivery awaited before the commit",
    ),
]


@pytest.mark.parametrize("refused_first", [True, False])
async def test_the_position_stays_where_the_record_is_missing(real: Broker, refused_first: bool) -> None:
    store, examples = await topic(real), await topic(real, config=SMALL)
    position = Out(store, 0, b"head", b"12")
    refused = large(examples, 700_000)
    async with owning(real, f"id-{store}") as owner:
        await owner.commit([Out(store, 0, b"head", b"11"), large(examples, 1_000)])
        with suppress(DeliveryError):
            await owner.commit([refused, position] if refused_first else [position, refused])
    assert await values(real, store) == [b"11"]
    assert [len(value or b"") for value in await values(real, examples)] == [1_000]


async def test_the_next_owner_goes_on_from_there(real: Broker) -> None:
    """The refused transaction was aborted: nothing of it shows, nor holds up who comes next."""
    store, examples = await topic(real), await topic(real, config=SMALL)
    async with owning(real, f"id-{store}") as owner:
        with pytest.raises(DeliveryError):
            await owner.commit([Out(store, 0, b"head", b"12"), large(examples, 700_000)])
        with pytest.raises(DeliveryError):
            await owner.commit([Out(store, 0, b"head", b"13")])
    async with owning(real, f"id-{store}") as successor:
        await successor.commit([Out(store, 0, b"head", b"12"), large(examples, 500_000)])
    assert await values(real, store) == [b"12"]
    assert [len(value or b"") for value in await values(real, examples)] == [500_000]
