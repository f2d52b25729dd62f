"""One run of a real pipeline for all tests of the ledger."""

import pytest

from tests.audit.tape import Tape, record
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster


@pytest.fixture(scope="session")
def original(kafka: KafkaCluster) -> Tape:
    return record(Broker(kafka.address, transactions=True))


@pytest.fixture
def tape(original: Tape) -> Tape:
    """One's own, to tamper with."""
    return original.copy()
