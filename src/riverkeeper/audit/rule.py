"""The reading rule, and how much of each topic is there to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..topics.log import Record
from .report import Topic

SKEW_MS = 5_000  # brokers' clocks may differ by this: whose effect may lie before the start is not judged
NEVER = 2**62  # ms; nothing is left of a partition, so nothing says how long it was kept


class Origin(NamedTuple):
    """The cause that a record names."""

    topic: Topic
    partition: int
    offset: int
    n: int


@dataclass
class Extent:
    """What is read of one partition: [begin, end). `whole`: nothing of it lies before `begin`."""

    begin: int
    end: int
    whole: bool = True
    since: int = 0  # append time of the first record read, ms; 0: there is none. Of interest unless whole


Extents = Mapping[tuple[Topic, int], Extent]


class Rule:
    """Of each source partition, what is not greater than the greatest `(offset, n)` is passed over."""

    def __init__(self, pipeline: str) -> None:
        self._topics = {f"{pipeline}.{topic.suffix}".encode(): topic for topic in Topic}
        self._sources: dict[bytes, tuple[Topic, int]] = {}  # as origins spell them: topics times partitions
        self._greatest: dict[tuple[Topic, int, Topic, int], tuple[int, int]] = {}

    def origin(self, record: Record) -> Origin | None:
        """None: the record names no cause in this pipeline."""
        for name, value in record.headers:
            if name == "origin":
                return self._parsed(value or b"")
        return None

    def _parsed(self, header: bytes) -> Origin | None:
        try:
            source, offset, n = header.rsplit(b"/", 2)
            topic, partition = self._sources.get(source) or self._source(source)
            return Origin(topic, partition, int(offset), int(n))
        except (ValueError, KeyError):
            return None

    def _source(self, source: bytes) -> tuple[Topic, int]:
        topic, partition = source.rsplit(b"/", 1)
        known = self._sources[source] = self._topics[topic], int(partition)
        return known

    def admits(self, topic: Topic, partition: int, origin: Origin) -> bool:
        stream = (topic, partition, origin.topic, origin.partition)
        at = (origin.offset, origin.n)
        if at <= self._greatest.get(stream, (-1, -1)):
            return False
        self._greatest[stream] = at
        return True

    def reached(self, topic: Topic, partition: int, cause: Topic, cause_partition: int) -> int:
        """Greatest offset of the causes that a partition names from another; -1: none."""
        return self._greatest.get((topic, partition, cause, cause_partition), (-1, -1))[0]


@dataclass
class Horizon:
    """What can be judged: how far agents had got, and how far back the topics go.

    An example does not name both of its causes. One below `early`, the ends before those of its causes
    were taken, has both within what is read.
    """

    extents: Extents
    positions: Mapping[tuple[Topic, int], int] = field(default_factory=dict)  # next to read of each input
    final: Mapping[tuple[Topic, int], int] = field(default_factory=dict)  # ends after all was read
    early: Mapping[tuple[Topic, int], int] = field(default_factory=dict)  # of `examples`

    def holds(self, topic: Topic, partition: int, offset: int) -> bool:
        """Whether a record there would have been read."""
        extent = self.extents.get((topic, partition))
        return extent is not None and extent.begin <= offset < extent.end

    def caused(self, topic: Topic, partition: int, offset: int) -> bool:
        """Whether the causes of the record there must have been read, if the log is whole."""
        return offset < self.early.get((topic, partition), offset + 1)

    def impossible(self, topic: Topic, partition: int, offset: int) -> bool:
        """Whether nothing can stand there yet."""
        extent = self.extents.get((topic, partition))
        return extent is None or offset >= self.final.get((topic, partition), offset + 1)

    def whole(self, topic: Topic, partition: int) -> bool:
        extent = self.extents.get((topic, partition))
        return extent is None or extent.whole

    def since(self, topic: Topic, partition: int) -> int:
        """Append time in ms from which on all of a partition was read, clocks' differences included."""
        extent = self.extents.get((topic, partition))
        if extent is None or extent.whole:
            return 0
        return extent.since + SKEW_MS if extent.since else NEVER
