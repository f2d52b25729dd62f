"""What every contender works on: facts of ten numbers, a label, and an estimator that has learned some.

A fact is about 260 bytes of JSON; its label is drawn from a logistic function of its numbers, so that
there is something to learn. Facts repeat after `CYCLE`, with ids of their own; all is seeded.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from river import base, compose, forest, linear_model, preprocessing, tree

from riverkeeper import Fact, Label, Model, Pipeline, Publish
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import begin, dump, environment, seal
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import Envelope, Example, Features, Origin, Prediction, Source
from riverkeeper.topics.partition import partition, partitions
from riverkeeper.topics.store import ORIGIN

KEY = "k" * 32  # signs versions
DECLARED = "RIVERKEEPER_BENCH"  # the variable by which a child process learns its pipeline
CYCLE = 5_000  # facts that differ
TRAINED = 3_000  # facts an estimator has learned before it serves
DEVICES = 64  # keys; enough to reach every partition
NUMBERS = tuple(f"x{i}" for i in range(10))
PARTITIONS = 4
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Measured(Fact):
    device: str
    order: str
    x0: float
    x1: float
    x2: float
    x3: float
    x4: float
    x5: float
    x6: float
    x7: float
    x8: float
    x9: float


class Settled(Fact):
    order: str
    good: bool


def scaled() -> compose.Pipeline:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def baseline() -> linear_model.LogisticRegression:
    return linear_model.LogisticRegression()


def grown() -> base.Classifier:
    return tree.HoeffdingTreeClassifier(grace_period=50)


def woods() -> base.Classifier:
    return forest.ARFClassifier(n_models=10, seed=7, grace_period=20, leaf_prediction="mc")


ESTIMATORS: dict[str, Callable[[], Any]] = {"linear": scaled, "tree": grown, "forest": woods}


def declare(
    name: str,
    kind: str = "linear",
    *,
    models: int = 1,
    partitions: int = PARTITIONS,
    every: int = 1_000,
    max_pending: int = 1_000_000,
) -> Pipeline:
    """`models` beyond the first have no traffic and, unless they are published, no version either."""
    spares = {f"spare{i}": Model(scaled, features=NUMBERS) for i in range(models - 1)}
    return Pipeline(
        name=name,
        facts=Measured,
        outcomes=Settled,
        key="device",
        join="order",
        features=list(NUMBERS),
        label=Label("good", within=timedelta(hours=24)),
        models={
            "first": Model(ESTIMATORS[kind], features=NUMBERS),
            "baseline": Model(baseline, features=("x0",)),
            **spares,
        },
        serve="first",
        fallback="baseline",
        partitions=partitions,
        publish=Publish(every_examples=every, every=timedelta(seconds=10), budget=1.0),
        max_pending=max_pending,
    )


class Declared(msgspec.Struct, frozen=True):
    """The arguments of `declare`, for a child process."""

    name: str
    kind: str = "linear"
    models: int = 1
    partitions: int = PARTITIONS
    every: int = 1_000

    def pipeline(self) -> Pipeline:
        return declare(self.name, self.kind, models=self.models, partitions=self.partitions, every=self.every)

    def before(self) -> Declared:
        """The same for another checkout's agents, in topics of its own."""
        return msgspec.structs.replace(self, name=f"{self.name}-before")

    def environment(self) -> dict[str, str]:
        return {DECLARED: msgspec.json.encode(self).decode()}


@cache
def measured() -> list[tuple[Measured, bool]]:
    """`CYCLE` facts with what came true of each; `order` is still to be filled in."""
    rng = random.Random(5)
    weights = [rng.gauss(0, 1) for _ in NUMBERS]
    made = []
    for i in range(CYCLE):
        numbers = {name: round(rng.gauss(j, 1 + j), 6) for j, name in enumerate(NUMBERS)}
        drift = sum(
            w * (x - j) / (1 + j) for j, (w, x) in enumerate(zip(weights, numbers.values(), strict=True))
        )
        device = f"d{i % DEVICES:02}"
        made.append((Measured(device=device, order="", **numbers), rng.random() < 1 / (1 + math.exp(-drift))))
    return made


def features(i: int) -> Features:
    fact = measured()[i % CYCLE][0]
    return {name: getattr(fact, name) for name in NUMBERS}


def label(i: int) -> bool:
    return measured()[i % CYCLE][1]


def order(i: int) -> str:
    return f"o{i:08}"


def fact(i: int) -> Measured:
    return msgspec.structs.replace(measured()[i % CYCLE][0], order=order(i))


def _envelope(i: int) -> Envelope[Measured]:
    data = fact(i)
    at = BEGAN + timedelta(milliseconds=i)
    return Envelope(id=str(i), type="measured", time=at, key=data.device, data=data)


def facts(pipeline: Pipeline, count: int) -> Iterator[Out]:
    """As ingest writes them."""
    envelopes = map(_envelope, range(count))
    keys = [measured()[i % CYCLE][0].device.encode() for i in range(count)]
    where, encode = partitions(keys, pipeline.partitions), msgspec.json.Encoder().encode
    source = f"{pipeline.topic('events')}/0/".encode()
    for i, envelope in enumerate(envelopes):
        headers = ((ORIGIN, b"%b%d/0" % (source, i)),)
        yield Out(pipeline.topic("facts"), where[i], keys[i], encode(envelope), headers)


def events(pipeline: Pipeline, count: int) -> Iterator[Out]:
    """The facts' events, as a producer writes them."""
    keys = [measured()[i % CYCLE][0].device.encode() for i in range(count)]
    where = partitions(keys, pipeline.partitions)
    for i in range(count):
        yield Out(pipeline.topic("events"), where[i], keys[i], event(i, BEGAN + timedelta(milliseconds=i)))


def predictions(pipeline: Pipeline, count: int) -> Iterator[Out]:
    """As score writes them."""
    encode = msgspec.json.Encoder().encode
    where = partitions([order(i).encode() for i in range(count)], pipeline.partitions)
    source = f"{pipeline.topic('facts')}/0"
    for i in range(count):
        said = Prediction(
            id=str(i),
            key=order(i),
            time=BEGAN + timedelta(milliseconds=i),
            value=0.123456789,
            source=Source.MODEL,
            reason="",
            asked="first",
            model="first",
            version=1,
            fingerprint=pipeline.fingerprint,
            fact=f"{source}/{i}",
            verdict=-1,
            baseline=0.5,
            features=features(i),
        )
        headers = ((ORIGIN, Origin(source.encode(), i, 0).header()),)
        yield Out(pipeline.topic("predictions"), where[i], order(i).encode(), encode(said), headers)


def outcomes(pipeline: Pipeline, count: int) -> Iterator[Out]:
    """As ingest writes them."""
    encode = msgspec.json.Encoder().encode
    where = partitions([order(i).encode() for i in range(count)], pipeline.partitions)
    source = pipeline.topic("events").encode() + b"/0"
    for i in range(count):
        data = Settled(order=order(i), good=label(i))
        at = BEGAN + timedelta(milliseconds=i)
        said = Envelope(id=f"s{i}", type="settled", time=at, key=order(i), data=data)
        headers = ((ORIGIN, Origin(source, i, 0).header()),)
        yield Out(pipeline.topic("outcomes"), where[i], order(i).encode(), encode(said), headers)


def examples(pipeline: Pipeline, count: int) -> Iterator[Out]:
    """As join writes them, all to partition 0: so the order in which they are learned is one."""
    encode = msgspec.json.Encoder().encode
    for i in range(count):
        said = Example(
            id=str(i),
            key=order(i),
            time=BEGAN + timedelta(milliseconds=i),
            features=features(i),
            label=label(i),
            served=0.123456789,
            source=Source.MODEL,
            model="first",
            version=1,
            fingerprint=pipeline.fingerprint,
            baseline=0.5,
        )
        yield Out(pipeline.topic("examples"), 0, order(i).encode(), encode(said))


def event(i: int, at: datetime) -> bytes:
    """A fact's event, as a producer writes it."""
    fields = {"id": str(i), "type": "measured", "time": at, **msgspec.to_builtins(fact(i))}
    return msgspec.json.encode(fields)


def outcome(i: int, at: datetime) -> bytes:
    """The event that says what came true of fact i."""
    fields = {"id": f"s{i}", "type": "settled", "time": at, "order": order(i), "good": label(i)}
    return msgspec.json.encode(fields)


def trained(factory: Callable[[], Any], names: tuple[str, ...], count: int = TRAINED) -> Any:
    estimator = factory()
    for i in range(count):
        row = features(i)
        estimator.learn_one({name: row[name] for name in names}, label(i))
    return estimator


def version(
    pipeline: Pipeline, model: str, estimator: Any, number: int = 1, learned: int = TRAINED
) -> list[Out]:
    """The records of a version, as learn publishes it."""
    opened = begin(dump(estimator), pipeline.models[model].factory, AllowList(pipeline.trusted))
    sealed = seal(
        model=model,
        version=number,
        line=0,
        parent=number - 1,
        fingerprint=pipeline.fingerprint,
        environment=environment(),
        spans=(),
        offsets={},
        learned=learned,
        data=dump(opened),
        published_ms=int(time.time() * 1000),
        key=KEY.encode(),
    )
    where = partition(model.encode(), pipeline.model_partitions)
    return [Out(pipeline.topic("models"), where, key, value) for key, value in sealed.records()]


def versions(pipeline: Pipeline, kind: str = "linear") -> list[Out]:
    """One of the model with traffic, one of the fallback."""
    first = version(pipeline, "first", trained(ESTIMATORS[kind], NUMBERS))
    return [*first, *version(pipeline, "baseline", trained(baseline, ("x0",)))]
