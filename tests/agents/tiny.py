"""A pipeline with next to nothing in it, and what agents need to run it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from river import linear_model

from riverkeeper import Bounds, Fact, Label, Pipeline
from riverkeeper.agents.agent import Limits, Runtime
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Headers
from riverkeeper.topics.telemetry import Telemetry
from tests.brokers.broker import Broker

NOWHERE = Broker("127.0.0.1:1", transactions=True)
HOUR_MS = 3_600_000
QUICK = Limits(checkpoint_seconds=0.05, vitals_seconds=0.1, session_timeout_ms=2_500)


class Sale(Fact):
    basket: str
    shop: str
    amount: float
    note: Any = None


class Paid(Fact):
    basket: str
    amount: float


@dataclass
class Stored:
    """A record as a broker hands it out."""

    offset: int
    value: bytes | None
    key: bytes | None = b"k"
    headers: Headers = ()
    topic: str = "tiny.events"
    partition: int = 0
    timestamp: int = 1_700_000_000_000


def tiny(name: str = "tiny", **options: Any) -> Pipeline:
    settings: dict[str, Any] = {
        "name": name,
        "facts": Sale,
        "outcomes": Paid,
        "key": "shop",
        "join": "basket",
        "features": ["amount"],
        "label": Label("amount", within=timedelta(hours=1)),
        "models": {"line": linear_model.LinearRegression},
        "serve": "line",
        "fallback": "line",
        "bounds": Bounds(-1e6, 1e6),
        "partitions": 3,
    }
    return Pipeline(**{**settings, **options})


def runtime(
    pipeline: Pipeline, broker: Broker = NOWHERE, replica: str = "a", limits: Limits = QUICK
) -> Runtime:
    return Runtime(
        connection=Connection(broker.address),
        pipeline=pipeline,
        telemetry=Telemetry(),
        replica=replica,
        transactions=broker.transactions,
        limits=limits,
        signing_key=b"test",
    )


def sale(id: object = "s1", **changed: Any) -> bytes:
    event = {
        "id": id,
        "type": "sale",
        "time": "2024-01-01T10:00:00+01:00",
        "basket": "b1",
        "shop": "north",
        "amount": 2.5,
    }
    return msgspec.json.encode({**event, **changed})


def paid(id: object = "p1", **changed: Any) -> bytes:
    event = {"id": id, "type": "paid", "time": "2024-01-01T11:00:00Z", "basket": "b1", "amount": 3.5}
    return msgspec.json.encode({**event, **changed})
