"""The seeded stream that flows while a fault happens: readings, what comes true of them, repeats and junk."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count

import msgspec

from riverkeeper.topics.partition import partition as partition_of
from tests.system.harness import Event

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SENSORS_PER_PARTITION = 2
LAG = 30  # numbers within which an outcome or a repeat follows its fact
EARLY, NEVER, REPEATED, JUNK = 0.08, 0.05, 0.04, 0.03  # shares of the numbers
JUNK_BYTES = (b"{", b"\xff\xfe", b"[]", b'{"id": "j%d"}', b'{"id": "j%d", "type": "no such", "time": 1}')


def sensors(partitions: int) -> list[str]:
    """Names that reach every partition, the same number to each."""
    found: list[str] = []
    places: Counter[int] = Counter()
    for name in (f"s{i}" for i in count()):
        at = partition_of(name.encode(), partitions)
        if places[at] < SENSORS_PER_PARTITION:
            places[at] += 1
            found.append(name)
        if len(found) == partitions * SENSORS_PER_PARTITION:
            break
    return found


class Load:
    """Reading number i has key "n<i>" and a sensor; most come true one or two dozen numbers later.

    `kind` and `truth` are what a test may set as it goes on: the readings' kind, and a label that all
    outcomes have from then on (None: near the reading).
    """

    def __init__(self, seed: int, partitions: int) -> None:
        self._rng = random.Random(seed)
        self._sensors = sensors(partitions)
        self._due: list[tuple[int, int, Event]] = []  # (number it follows, order, event)
        self._order = count()
        self.count = 0  # numbers handed out
        self.kind = "a"
        self.truth: float | None = None

    def some(self, numbers: int) -> list[Event]:
        """The events of the next numbers, in the order in which they are to be sent."""
        return [event for _ in range(numbers) for event in self._next()]

    def rest(self) -> list[Event]:
        """What is still to follow: the last outcomes and repeats."""
        return [heapq.heappop(self._due)[2] for _ in range(len(self._due))]

    def _next(self) -> list[Event]:
        number, self.count = self.count, self.count + 1
        rng = self._rng
        sensor = rng.choice(self._sensors)
        level = round(rng.uniform(10.0, 90.0), 2)
        fact = self._event(sensor, number, "reading", {"sensor": sensor, "level": level, "kind": self.kind})
        label = round(level + rng.uniform(4.0, 6.0), 2) if self.truth is None else self.truth
        outcome = self._event(sensor, number, "truth", {"level": label})
        events = [fact]
        draw = rng.random()
        if draw < EARLY:
            events = [outcome, fact]
        elif draw < 1 - NEVER:
            self._later(outcome)
        if rng.random() < REPEATED:
            self._later(rng.choice((fact, outcome) if draw < EARLY else (fact,)))
        if rng.random() < JUNK:
            junk = rng.choice(JUNK_BYTES)
            events.append(Event(sensor, junk % number if b"%d" in junk else junk))
        while self._due and self._due[0][0] <= number:
            events.append(heapq.heappop(self._due)[2])
        return events

    def _later(self, event: Event) -> None:
        due = self.count + self._rng.randrange(1, LAG)
        heapq.heappush(self._due, (due, next(self._order), event))

    def _event(self, sensor: str, number: int, kind: str, fields: dict[str, object]) -> Event:
        time = (BEGAN + timedelta(seconds=number)).isoformat()
        named = {"id": f"{kind}/{number}", "type": kind, "time": time, "number": f"n{number}"}
        return Event(sensor, msgspec.json.encode(named | fields))


def number_of(key: bytes | None) -> int:
    """The number of a prediction, outcome or example, from its key."""
    return int((key or b"n-1")[1:])
