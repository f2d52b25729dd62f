"""What producers, and the agents that do not take part in a run, write: at seeded moments, with repeats.

Outputs of an agent that is absent come as the origin rule lets them come: in runs that begin at a checkpoint,
the last ones again after a restart, and with a zombie's in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random

import msgspec

from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Headers
from riverkeeper.topics.messages import Envelope, Example, Prediction, Source, State, Verdict
from riverkeeper.topics.partition import partition as partition_of
from tests.simulator import pipeline as declared
from tests.simulator.kafka import EPOCH_MS
from tests.simulator.ledger import FORGED, advance
from tests.simulator.plan import SCARCE, Plan

# (seconds, topic's suffix, partition, key, value, headers)
Write = Callable[[float, str, int, bytes, bytes, Headers], None]
TIME = datetime(2024, 1, 1, tzinfo=UTC)


class Stream:
    def __init__(self, plan: Plan, pipeline: Pipeline, random: Random, write: Write) -> None:
        self._plan = plan
        self._pipeline = pipeline
        self._random = random
        self._write = write
        self._bursts = [random.uniform(0.0, plan.seconds) for _ in range(random.randint(2, 6))]

    def pour(self) -> None:
        cast = self._plan.cast
        if "ingest" in cast:
            self._events()
        elif "score" in cast:
            self._facts()
        elif "join" in cast:
            self._predictions_and_outcomes()
        else:
            self._examples()
        if "score" in cast and "learn" not in cast:
            self._versions()
        if "score" in cast or "learn" in cast:
            self._verdicts()

    def _moment(self) -> float:
        return self._random.choice(self._bursts) + self._random.random() * 0.01

    def _put(self, at: float, suffix: str, key: str, value: bytes, headers: Headers = ()) -> None:
        where = partition_of(key.encode(), self._pipeline.partitions)
        self._write(min(max(at, 0.0), self._plan.seconds), suffix, where, key.encode(), value, headers)

    def _amount(self) -> float:
        return declared.WILD if self._random.random() < 0.05 else float(self._random.randint(1, 9))

    def _events(self) -> None:
        random, plan = self._random, self._plan
        for n in range(plan.events):
            at, shop = self._moment(), random.choice(declared.SHOPS)
            self._event(at, shop, declared.sale(f"s{n}", f"b{n}", shop, self._amount()))
            if "join" in plan.cast and (random.random() < 0.8 or plan.max_pending == SCARCE):
                self._event(
                    at + random.uniform(-0.5, 1.0), f"b{n}", declared.paid(f"o{n}", f"b{n}", float(n))
                )
            if random.random() < 0.1:
                self._event(at, shop, b'{"poison":')

    def _event(self, at: float, key: str, value: bytes) -> None:
        self._put(at, "events", key, value)
        if self._random.random() < 0.15:  # its producer was not sure
            self._put(at + self._random.random(), "events", key, value)

    def _facts(self) -> None:
        for source, n, header, at in self._origins("events"):
            shop = declared.SHOPS[n % len(declared.SHOPS)]
            data = declared.Sale(basket=f"{source}.{n}", shop=shop, amount=float(n % 9))
            fact = Envelope(id=f"{source}.{n}", type="sale", time=TIME, key=shop, data=data)
            self._put(at, "facts", shop, msgspec.json.encode(fact), header)

    def _predictions_and_outcomes(self) -> None:
        folds: dict[str, object] = {}
        rows = {
            (s, n): advance(folds, "north", float(n % 9)) for s in range(2) for n in range(self._plan.events)
        }
        for source, n, header, at in self._origins("facts"):
            basket = f"{source}.{n}"
            said = Prediction(
                id=basket,
                key=basket,
                time=TIME,
                value=self._random.random(),  # another version may have answered the second time
                source=Source.MODEL,
                reason="",
                asked="memory",
                model="memory",
                version=1,
                fingerprint=self._pipeline.fingerprint,
                fact=f"{self._pipeline.topic('facts')}/{source}/{n}",
                verdict=-1,
                baseline=0.0,
                features=rows[source, n],
            )
            self._put(at, "predictions", basket, msgspec.json.encode(said), header)
        for source, n, header, at in self._origins("events"):
            if n % 5 and self._plan.max_pending != SCARCE:
                continue
            basket = f"{source}.{n}"
            data = declared.Paid(basket=basket, amount=float(n))
            outcome = Envelope(id=f"o{basket}", type="paid", time=TIME, key=basket, data=data)
            self._put(at, "outcomes", basket, msgspec.json.encode(outcome), header)

    def _origins(self, suffix: str) -> list[tuple[int, int, Headers, float]]:
        """(source partition, offset, origin header, moment) of every copy, in each source's order of writing."""
        found: list[tuple[int, int, Headers, float]] = []
        for source in range(self._pipeline.partitions):
            copies = _copies(self._random, self._plan.events // 2)
            moments = sorted(self._moment() for _ in copies)
            name = f"{self._pipeline.topic(suffix)}/{source}"
            found += [
                (source, n, (("origin", f"{name}/{n}/0".encode()),), at)
                for n, at in zip(copies, moments, strict=True)
            ]
        return found

    def _examples(self) -> None:
        folds: dict[str, object] = {}
        for n in range(self._plan.events):
            example = Example(
                id=f"x{n}",
                key=f"b{n}",
                time=TIME,
                features=advance(folds, "north", float(n % 9)),
                label=float(n),
                served=0.0,
                source=Source.FALLBACK,
                model="echo",
                version=1,
                fingerprint=self._pipeline.fingerprint,
                baseline=0.0,
            )
            self._put(self._moment(), "examples", f"b{n}", msgspec.json.encode(example))

    def _versions(self) -> None:
        for model in self._pipeline.models:
            if self._random.random() < 0.9:
                self._version(self._random.random() * self._plan.seconds / 3, model, 1, forged=False)
        if self._plan.forged:
            self._version(self._moment(), "memory", FORGED, forged=True)

    def _version(self, at: float, model: str, number: int, *, forged: bool) -> None:
        where = partition_of(model.encode(), self._pipeline.model_partitions)
        for key, value in declared.version(model, number, forged=forged):
            self._write(min(at, self._plan.seconds), "models", where, key, value, ())

    def _verdicts(self) -> None:
        """Out of traffic and back in turn; a model that learns comes back on a new line, without some examples."""
        count, line = self._plan.verdicts, 0
        for i in range(count):
            at = self._plan.seconds * (i + self._random.random()) / count
            back = i % 2 == 1
            line += back and "learn" in self._plan.cast
            verdict = Verdict(
                model="memory",
                state=State.LIVE if back else State.QUARANTINED,
                follows=i - 1,
                line=line,
                skip=[(0, 0, 3)] if line else [],  # type: ignore[arg-type]  # pydantic makes spans of them
                policy="simulated",
                reason="",
                at_ms=EPOCH_MS,
            )
            self._write(at, "verdicts", 0, b"memory", verdict.encode(), ())


def _copies(random: Random, count: int) -> Sequence[int]:
    """0..count-1 in order, with stretches repeated from a checkpoint, and a zombie's last words between them."""
    written: list[int] = []
    position = 0
    while position < count:
        end = min(count, position + random.randint(1, 6))
        written += range(position, end)
        position = end
        if random.random() < 0.3:
            zombie = [*range(position, min(count, position + random.randint(0, 3)))]
            position = max(0, position - random.randint(0, 4))
            again = [*range(position, min(count, position + random.randint(1, 6)))]
            position += len(again)
            written += _merged(random, zombie, again)
    return written


def _merged(random: Random, one: list[int], other: list[int]) -> list[int]:
    merged: list[int] = []
    while one or other:
        taken = one if not other or (one and random.random() < 0.5) else other
        merged.append(taken.pop(0))
    return merged
