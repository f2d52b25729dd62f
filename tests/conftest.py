"""Brokers for the tests, each started by the first test that asks for it. Without Java, Kafka tests fail."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from riverkeeper.topics.embedded import EmbeddedBroker
from tests.audit.tape import Tape, record
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster

# How long an example takes is the machine's business, on which others work as well.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/faults; pytest reads them from this file only."""
    group = parser.getgroup("faults")
    group.addoption(
        "--runs", type=int, help="the whole catalogue, so many runs of each fault; without it one of a share"
    )
    group.addoption("--seed", type=int, default=None, help="run exactly this seed of each fault")
    group.addoption("--report", default=None, help="file for what came of each run, as JSON")


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedBroker]:
    """Shared by all tests: one that takes it down or moves leaders starts its own."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """Apache Kafka with one node. Shared: one that kills the node starts its own."""
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka3() -> Iterator[KafkaCluster]:
    """Apache Kafka with three nodes. A test that takes nodes down brings them up again."""
    with KafkaCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def original(kafka: KafkaCluster) -> Tape:
    """What one run of a real pipeline left in every topic; they still stand on that broker."""
    return record(Broker(kafka.address, transactions=True))


@pytest.fixture(params=["embedded", "kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each kind of broker in turn, for promises that hold on both."""
    if request.param == "kafka":
        cluster: KafkaCluster = request.getfixturevalue("kafka")
        return Broker(cluster.address, transactions=True)
    embedded: EmbeddedBroker = request.getfixturevalue("embedded")
    return Broker(embedded.address, transactions=False, embedded=embedded)
