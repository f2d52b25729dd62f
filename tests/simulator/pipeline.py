"""The pipeline of the simulated processes: two partitions, two folds, two models, all of them cheap."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import msgspec
from river import base

from riverkeeper import Bounds, Fact, Label, Model, Pipeline, Publish, feature, fold
from riverkeeper.models.version import dump, environment, seal
from riverkeeper.topics.messages import Features

NAME = "sim"
PARTITIONS = 2
SIGNING_KEY = b"simulated"
BOUNDS = Bounds(-1_000.0, 1_000.0)
WILD = 13.0  # an amount at which the model answers outside its bounds
SHOPS = ("north", "south", "east", "west")


class Sale(Fact):
    basket: str
    shop: str
    amount: float


class Paid(Fact):
    basket: str
    amount: float


@feature
def doubled(sale: Sale) -> float:
    return sale.amount * 2


@fold(key="shop", start=0.0)
def trade(level: float, sale: Sale) -> float:
    return 0.5 * level + sale.amount


@fold(key="shop", start=0)
def count(sales: int, sale: Sale) -> int:
    return sales + 1


class Memory(base.Regressor):
    """Remembers every label it has learned, in order: its bytes tell what was lost, doubled or moved."""

    def __init__(self) -> None:
        self.labels: list[float] = []

    def learn_one(self, x: Mapping[Hashable, Any], y: float) -> None:
        self.labels.append(float(y))

    def predict_one(self, x: Mapping[Hashable, Any]) -> float:
        amount = float(x["amount"])
        return 1e9 if amount == WILD else amount + len(self.labels)


class Echo(base.Regressor):
    """The fallback: says what the feature says."""

    def learn_one(self, x: Mapping[Hashable, Any], y: float) -> None:
        pass

    def predict_one(self, x: Mapping[Hashable, Any]) -> float:
        return float(x["amount"])


@cache
def pipeline(max_pending: int = 200_000, delivery: str = "origin") -> Pipeline:
    return Pipeline(
        name=NAME,
        facts=Sale,
        outcomes=Paid,
        key="shop",
        join="basket",
        features=["amount", doubled, trade, count],
        label=Label("amount", within=timedelta(hours=1)),
        models={"memory": Model(Memory, warmup=0), "echo": Model(Echo, warmup=0)},
        serve="memory",
        fallback="echo",
        bounds=BOUNDS,
        partitions=PARTITIONS,
        publish=Publish(every_examples=4, every=timedelta(seconds=0.5), budget=1.0),
        max_pending=max_pending,
        delivery=delivery,  # type: ignore[arg-type]
    )


PROBE: Features = {"amount": 1.0, "doubled": 2.0, "trade": 0.0, "count": 0}


@cache
def version(model: str, number: int, *, forged: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """A version as the learner would publish it, or one that somebody else signed."""
    row = dict[Hashable, Any](PROBE.items())
    estimator = {"memory": Memory, "echo": Echo}[model]()
    sealed = seal(
        model=model,
        version=number,
        line=0,
        parent=number - 1,
        fingerprint=pipeline().fingerprint,
        environment=environment(),
        spans=(),
        offsets={},
        learned=0,
        probes=[(PROBE, estimator.predict_one(row))],
        data=dump(estimator),
        published_ms=0,
        key=b"another" if forged else SIGNING_KEY,
    )
    return tuple(sealed.records())


def sale(id: str, basket: str, shop: str, amount: float) -> bytes:
    return msgspec.json.encode(
        {
            "id": id,
            "type": "sale",
            "time": 1_700_000_000_000,
            "basket": basket,
            "shop": shop,
            "amount": amount,
        }
    )


def paid(id: str, basket: str, amount: float) -> bytes:
    return msgspec.json.encode(
        {"id": id, "type": "paid", "time": 1_700_000_000_000, "basket": basket, "amount": amount}
    )
