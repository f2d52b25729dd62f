"""What a test needs to know of the broker it runs against."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from riverkeeper.topics.connection import Connection
from riverkeeper.topics.embedded import EmbeddedBroker


@dataclass(frozen=True)
class Broker:
    """One of the two kinds of broker. Topics are created through `riverkeeper.topics.catalog`."""

    address: str
    transactions: bool  # isolated, and rolled back when aborted
    embedded: EmbeddedBroker | None = None
    copies: int = 1  # of each partition
    min_insync: int = 1
    behind: str = ""  # where agents find it, if not at the address
    security: Mapping[str, str] = field(default_factory=dict)  # for the test's own clients; see `Connection`

    @property
    def connection(self) -> Connection:
        """For the test's own clients."""
        return Connection(self.address, self.security)
