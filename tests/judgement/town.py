"""A town's deliveries: facts with days and weeks in them, and the minutes that each took. Seeded; no clock."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WINDOW_MS = 10 * MINUTE_MS
START_MS = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1000)  # a Monday
REGIONS = {"north": (0.4, 0.0), "east": (0.25, 4.0), "south": (0.2, -2.0), "west": (0.15, 7.0)}
CHANNELS = {"app": 0.6, "web": 0.3, "phone": 0.1}

Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """An event on its way: when the log appends it (ms), and what a producer wrote."""

    at_ms: int
    event: Event | Callable[[], Event]  # the latter is written when its time has come


@dataclass(frozen=True)
class Delivery:
    """A fact and what will have come true."""

    at_ms: int
    order: Event
    minutes: float


Change: TypeAlias = Callable[[Delivery], list[Sent]]


def sound(delivery: Delivery) -> list[Sent]:
    """The order at once, and its outcome when it has been delivered."""
    arrived = delivery.at_ms + int(delivery.minutes * MINUTE_MS)
    return [Sent(delivery.at_ms, delivery.order), Sent(arrived, outcome(delivery, arrived))]


def outcome(delivery: Delivery, at_ms: int, minutes: float | None = None) -> Event:
    took = delivery.minutes if minutes is None else minutes
    order = delivery.order["order"]
    return {"id": f"a/{order}", "type": "arrived", "time": stamp(at_ms), "order": order, "minutes": took}


def stamp(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


@dataclass
class Town:
    """Traffic, a window at a time. `rate` is the mean number of orders in ten minutes."""

    seed: int
    rate: float = 40.0
    growth: float = 0.0  # per week
    change: Change = sound  # what becomes of a delivery on its way to the log
    truth: Callable[[Event, int], float] | None = None  # minutes instead of `minutes_of`
    now_ms: int = START_MS
    step_ms: int = WINDOW_MS
    crowd: Callable[[int], float] = field(default=lambda at_ms: 1.0)  # times the usual, by the time

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._count = 0
        self._due: list[tuple[int, int, Event | Callable[[], Event]]] = []
        self._sent = 0

    def window(self) -> list[tuple[int, bytes]]:
        """The next window's events in the order of their append times (ms): (time, value)."""
        end = self.now_ms + self.step_ms
        for delivery in self._deliveries(self.now_ms):
            for sent in self.change(delivery):
                self._sent += 1
                heapq.heappush(self._due, (sent.at_ms, self._sent, sent.event))
        self.now_ms = end
        came = []
        while self._due and self._due[0][0] < end:
            at_ms, _, event = heapq.heappop(self._due)
            came.append((at_ms, msgspec.json.encode(event() if callable(event) else event)))
        return came

    def _deliveries(self, start_ms: int) -> Iterator[Delivery]:
        expected = self.rate * self.step_ms / WINDOW_MS * season(start_ms) * self.crowd(start_ms)
        expected *= (1 + self.growth) ** ((start_ms - START_MS) / (7 * DAY_MS))
        for at_ms in sorted(
            start_ms + int(self._rng.random() * self.step_ms) for _ in range(self._poisson(expected))
        ):
            yield self.delivery(at_ms)

    def delivery(self, at_ms: int, **fixed: Any) -> Delivery:
        rng = self._rng
        self._count += 1
        order = {
            "id": f"o/{self._count}",
            "type": "order",
            "time": stamp(at_ms),
            "order": f"o{self._count}",
            "region": rng.choices(list(REGIONS), [share for share, _ in REGIONS.values()])[0],
            "channel": rng.choices(list(CHANNELS), list(CHANNELS.values()))[0],
            "distance": round(rng.gammavariate(2.0, 1.5), 3),
            "items": 1 + min(20, self._poisson(2.0)),
            "hint": round(rng.gauss(0.0, 1.0), 3),
            **fixed,
        }
        minutes = (self.truth or minutes_of)(order, at_ms) + rng.gauss(0.0, 3.0)
        return Delivery(at_ms, order, round(max(1.0, minutes), 3))

    def _poisson(self, mean: float) -> int:
        if mean > 50:
            return max(0, round(self._rng.gauss(mean, math.sqrt(mean))))
        limit, count, product = math.exp(-mean), 0, self._rng.random()
        while product > limit:
            count += 1
            product *= self._rng.random()
        return count


def season(at_ms: int) -> float:
    """Times the mean: nights are quiet, evenings are not, and weekends have two thirds."""
    hour = at_ms / HOUR_MS % 24
    day = 1.0 + 0.7 * math.sin((hour - 9) / 24 * 2 * math.pi)
    return day * (0.66 if weekday(at_ms) >= 5 else 1.0)


def weekday(at_ms: int) -> int:
    return datetime.fromtimestamp(at_ms / 1000, UTC).weekday()


def hour_of(at_ms: int) -> int:
    return int(at_ms / HOUR_MS % 24)


def minutes_of(order: Event, at_ms: int) -> float:
    rush = 6.0 if 17 <= hour_of(at_ms) < 21 else 0.0
    _, extra = REGIONS.get(order["region"], (0.0, 0.0))
    return 12.0 + 3.0 * float(order["distance"]) + 1.5 * float(order["items"]) + extra + rush
