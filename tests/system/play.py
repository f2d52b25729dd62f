"""Playing the flights to a pipeline, and waiting until every event has come to its end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice

from riverkeeper.demos.flights_data import faulted, rows, stream
from tests.system import account
from tests.system.harness import WAIT_S, Event, Watch, World, first

RETRIES = 150  # of those that the storm brings: 600 with 3 000 events
TRICKLE = 25  # events at a time
PER_SECOND = 500  # events at most: a sixth of what one process works off on two busy cores


def stormy(count: int, seed: int = 3) -> tuple[list[Event], int]:
    """The beginning of January with junk and retries about its middle, and how many are retries."""
    rng = random.Random(seed)
    genuine = {event.value for event in islice(stream(rows()), count)}
    came: set[bytes] = set()
    events, retries = [], 0
    for event in faulted(islice(stream(rows()), count), "storm", count):
        if event.value in came and event.value in genuine:
            if retries == RETRIES or rng.random() < 0.5:
                continue
            retries += 1
        came.add(event.value)
        events.append(Event(event.key, event.value))
    return events, retries


async def finished(world: World, effects: int, watch: Watch = lambda: None) -> None:
    outside = world.outside
    await outside.until(lambda: outside.settled() >= effects, "every event has an effect", watch=watch)
    await outside.until(lambda: account.all_answered(outside), "every fact is answered", watch=watch)
    await outside.until(
        lambda: len(outside["examples"]) >= len(list(first(outside["outcomes"]))),
        "every outcome is joined",
        watch=watch,
    )
    await outside.until(
        lambda: account.all_learned(world.pipeline, outside), "every model learned it all", watch=watch
    )


def onward(start: int) -> Iterator[Event]:
    """The rest of January after that many events."""
    return (Event(e.key, e.value) for e in islice(stream(rows()), start, None))


async def flow(
    world: World,
    events: Iterator[Event],
    condition: Callable[[], object],
    what: str,
    watch: Watch = lambda: None,
) -> None:
    """A steady trickle of events until the condition holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        watch()
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}; {world.outside.counts()}"
        await world.send(islice(events, TRICKLE))
        await world.outside.read()
        await asyncio.sleep(TRICKLE / PER_SECOND)
