"""Each of ten thousand fuzzed byte strings amid good events is one dead letter with its own bytes; nothing
else stops, and nothing good is lost with them."""

from __future__ import annotations

import random
from itertools import count

from tests.faults.readings import FIRST, reading
from tests.faults.trial import Trial
from tests.system.harness import Event, first

FUZZED = 10_000
CHUNK = 500  # sent at a time
LEAST_DEAD = (
    0.9  # of the strings; the others are still events: a changed digit of a level makes another level
)


def fuzzed(rng: random.Random, good: bytes) -> bytes:
    """A string that was an event, or never looked like one."""
    data = bytearray(good)
    draw = rng.randrange(8)
    if draw == 0:
        return rng.randbytes(rng.randrange(300))
    if draw == 1:
        return bytes(data[: rng.randrange(len(data))])
    if draw == 2:
        return b"[" * rng.choice((10, 1_000, 10_000))
    if draw == 3:
        return good.replace(b'"level":', rng.choice((b'"level":"', b'"level":1e999,"x":', b'"lovel":')))
    if draw == 4:
        return good.replace(b'"time":"', rng.choice((b'"time":"9999', b'"time":"-', b'"tame":"')))
    if draw == 5:
        return rng.choice((b"", b"null", b"\xef\xbb\xbf" + good, good + good, b'{"id":' * 500))
    for _ in range(rng.randrange(3, 12)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


async def test_poison(trial: Trial) -> None:
    trial.spawn()
    await trial.flowing()
    trial.mark()
    poison: set[bytes] = set()
    numbers = count(FIRST)
    for _ in range(0, FUZZED, CHUNK):
        chunk = []
        for number, _ in zip(numbers, range(CHUNK), strict=False):
            event = reading(trial, number, "a")
            chunk.append(Event(event.key, fuzzed(trial.rng, event.value)))
        poison |= {event.value for event in chunk}
        await trial.send(chunk)
    await trial.recovered("facts", "predictions")
    await trial.quiet()
    dead = {record.value for record in first(trial.outside["dead"])}
    assert len(dead & poison) >= LEAST_DEAD * len(poison)
