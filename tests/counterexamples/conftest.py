"""What the counterexamples share."""

from collections.abc import AsyncIterator

import pytest

from tests.agents.loop import end_all
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster


@pytest.fixture
def real(kafka: KafkaCluster) -> Broker:
    """For what the embedded broker lacks: isolation, fencing, several members in one process."""
    return Broker(kafka.address, transactions=True)


@pytest.fixture(autouse=True)
async def nothing_left_at_work() -> AsyncIterator[None]:
    yield
    await end_all()
