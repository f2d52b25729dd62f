"""Readings that a test sends besides the load, under numbers and ids that the load does not come to."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import msgspec

from riverkeeper.topics.messages import Prediction
from tests.faults.load import BEGAN, number_of, sensors
from tests.faults.trial import Trial
from tests.system.harness import Event, first

FIRST = 1_000_000  # the load counts from 0


def reading(trial: Trial, number: int, kind: str) -> Event:
    names = sensors(trial.world.pipeline.partitions)
    return _event(names[number % len(names)], f"f{number}", "reading", number, kind=kind)


def truth(trial: Trial, number: int) -> Event:
    names = sensors(trial.world.pipeline.partitions)
    return _event(names[number % len(names)], f"o{number}", "truth", number)


def _event(sensor: str, id: str, type: str, number: int, **more: object) -> Event:
    time = (BEGAN + timedelta(milliseconds=number)).isoformat()
    fields = {"id": id, "type": type, "time": time, "number": f"n{number}", "level": float(number % 80)}
    if type == "reading":
        fields["sensor"] = sensor
    return Event(sensor, msgspec.json.encode({**fields, **more}))


def predictions(trial: Trial, numbers: Iterable[int]) -> list[Prediction]:
    """Those that count, of these numbers, as read so far."""
    wanted = set(numbers)
    return [
        msgspec.json.decode(record.value or b"", type=Prediction)
        for record in first(trial.outside["predictions"])
        if number_of(record.key) in wanted
    ]
