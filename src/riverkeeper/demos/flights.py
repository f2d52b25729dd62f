"""The flights demo's pipeline: how late will this flight arrive, asked when it leaves the gate.

Departures and arrivals of New York's airports, January 2013. `learned` serves most flights; `eager`
serves a few, and its step size is too large for its rare categories, so that it diverges about a third
of the way: River's squared loss doubles what a rare, scaled one-hot column adds to the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import Any

from river import base, compose, linear_model, optim
from river.compose import Select
from river.preprocessing import OneHotEncoder, StandardScaler

from .. import Bounds, Fact, Label, Model, Objectives, Pipeline, Publish, feature, fold
from .flights_data import BEHIND

LARGE = frozenset({"UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX", "FL"})
FADE_SECONDS = 1800.0  # a departure counts half as much in the queue after 21 minutes


class Departure(Fact):
    flight: str
    time: datetime
    carrier: str
    origin: str
    dest: str
    scheduled: datetime
    scheduled_minutes: float
    distance: float  # miles
    delay: float  # minutes late off the gate


class Arrival(Fact):
    flight: str
    delay: float  # minutes late at the gate


@feature
def late(f: Departure) -> float:
    return max(f.delay, 0.0)


@feature
def hour(f: Departure) -> float:
    return f.scheduled.hour + f.scheduled.minute / 60


@feature
def padding(f: Departure) -> float:
    """Slack in the timetable: planned minutes beyond 40 and a mile in 8 seconds."""
    return f.scheduled_minutes - 40.0 - f.distance / 7.5


@feature
def west(f: Departure) -> float:
    return float(BEHIND.get(f.dest, 0))


@feature
def part(f: Departure) -> str:
    h = f.scheduled.hour
    return "night" if h >= 22 else "early" if h < 7 else "rush" if 16 <= h < 20 else "day"


@feature
def airline(f: Departure) -> str:
    return f.carrier if f.carrier in LARGE else "other"


@fold(key="origin", start=0.0)
def congestion(level: float, f: Departure) -> float:
    return 0.95 * level + 0.05 * max(f.delay, 0.0)


@fold(key="origin", start=[0.0, 0.0])
def traffic(state: list[float], f: Departure) -> list[float]:
    """Recent departures of the airport, fading, and the time of the last."""
    level, last = state
    now = f.time.timestamp()
    return [level * math.exp(-max(now - last, 0.0) / FADE_SECONDS) + 1.0, now]


@feature
def queue(traffic: list[float]) -> float:
    return traffic[0]


class AsItLeft(base.Regressor):
    """Arrives as late as it left."""

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        return float(x["delay"])

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        pass


class Ahead(base.Regressor):
    """Predicts how much later than it left a flight arrives, and adds the delay it left with."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        return float(x["delay"]) + float(self.model.predict_one(x))

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        self.model.learn_one(x, y - x["delay"])


class Indicators(base.Transformer):
    """One column per value that is present; absent ones are not even zeros, so learning skips them."""

    def transform_one(self, x: dict[Hashable, Any]) -> dict[Hashable, Any]:
        return {f"{name}={value}": 1 for name, value in x.items()}


NUMBERS = (
    "delay",
    "late",
    "distance",
    "scheduled_minutes",
    "padding",
    "hour",
    "congestion",
    "queue",
    "west",
)


def learned() -> base.Regressor:
    numbers = Select(*NUMBERS) | StandardScaler()
    names = Select("origin", "carrier", "dest") | Indicators()
    line = linear_model.LinearRegression(optim.AdaGrad(1.0), loss=optim.losses.Huber(10.0), intercept_lr=0.01)
    return Ahead((numbers + names) | line)


def steady() -> compose.Pipeline:
    encoded = compose.TransformerUnion(
        Select("delay", "distance"), Select("origin", "airline") | OneHotEncoder()
    )
    return encoded | StandardScaler() | linear_model.LinearRegression(optim.SGD(0.003))


def eager() -> compose.Pipeline:
    encoded = compose.TransformerUnion(
        Select("delay", "distance", "hour"), Select("part", "origin") | OneHotEncoder()
    )
    return encoded | StandardScaler() | linear_model.LinearRegression(optim.SGD(0.01))


flights = Pipeline(
    name="flights",
    facts=Departure,
    outcomes=Arrival,
    key="origin",
    join="flight",
    features=[
        "delay",
        "distance",
        "scheduled_minutes",
        "origin",
        "carrier",
        "dest",
        late,
        hour,
        padding,
        west,
        part,
        airline,
        congestion,
        traffic,
        queue,
    ],
    label=Label("delay", within=timedelta(hours=24)),
    models={
        "learned": Model(learned, features=(*NUMBERS, "origin", "carrier", "dest"), warmup=500),
        "steady": Model(steady, features=("delay", "distance", "origin", "airline"), warmup=500),
        "eager": Model(eager, features=("delay", "distance", "hour", "part", "origin"), warmup=500),
        "baseline": Model(AsItLeft, features=("delay",), warmup=0),
    },
    serve={"learned": 0.9, "eager": 0.1},
    bounds=Bounds(-120.0, 1500.0),
    fallback="baseline",
    constant=0.0,
    partitions=4,
    publish=Publish(every_examples=250, every=timedelta(seconds=5), budget=0.1),
    objectives=Objectives(margin=0.05, min_examples=500),
)
