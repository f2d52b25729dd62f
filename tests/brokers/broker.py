"""What a test needs to know of the broker it runs against."""

from dataclasses import dataclass

from riverkeeper.topics.embedded import EmbeddedBroker


@dataclass(frozen=True)
class Broker:
    """One of the two kinds of broker. Topics are created through `riverkeeper.topics.catalog`."""

    address: str
    transactions: bool  # isolated, and rolled back when aborted
    embedded: EmbeddedBroker | None = None
