"""A healthy log of any length, made without agents: as long as it is, it takes no memory to tell.

The model answers nothing yet, so the constant does; each fact has its outcome, and each pair its example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

import msgspec
import numpy as np

from riverkeeper import Pipeline
from riverkeeper.audit.ledger import ORDER, Ledger
from riverkeeper.audit.report import Notebook, Topic
from riverkeeper.audit.rule import Extent, Horizon
from riverkeeper.audit.scratch import Scratch
from riverkeeper.topics.messages import Envelope, Example, Prediction, Source
from riverkeeper.topics.partition import partitions
from tests.audit.tape import Rec
from tests.system.pipelines import Reading, Truth

SENSORS = 100
BEGAN_MS = 1_767_225_600_000
CHUNK = 5_000  # records at a time, as the reader reads them
CAUSED = (Topic.EVENTS, Topic.FACTS, Topic.OUTCOMES, Topic.PREDICTIONS, Topic.EXAMPLES)


class Synthetic:
    """`count` facts of the pipeline "gauges", ten a second, and all that follows from them."""

    def __init__(self, pipeline: Pipeline, count: int) -> None:
        self.pipeline = pipeline
        self.count = count
        self._encode = msgspec.json.Encoder().encode
        self._by_key = self._placed([f"s{i % SENSORS}".encode() for i in range(SENSORS)])
        numbers = [
            self._placed([f"n{i}".encode() for i in range(start, min(start + CHUNK, count))])
            for start in range(0, count, CHUNK)
        ]
        self._by_join = np.concatenate(numbers)

    def _placed(self, keys: Sequence[bytes]) -> np.ndarray:
        return np.array(partitions(keys, self.pipeline.partitions), dtype=np.uint8)

    def _sensor_places(self) -> np.ndarray:
        return self._by_key[np.arange(self.count) % SENSORS]

    def ends(self) -> dict[tuple[Topic, int], int]:
        found: dict[tuple[Topic, int], int] = {}
        sensors = self._sensor_places()
        for p in range(self.pipeline.partitions):
            facts, met = int((sensors == p).sum()), int((self._by_join == p).sum())
            found[Topic.EVENTS, p], found[Topic.FACTS, p] = 2 * facts, facts
            for topic in (Topic.OUTCOMES, Topic.PREDICTIONS, Topic.EXAMPLES):
                found[topic, p] = met
            found[Topic.DEAD, p] = 0
        found[Topic.MODELS, 0] = found[Topic.VERDICTS, 0] = 0
        return found

    def records(self, topic: Topic, partition: int) -> Iterator[Rec]:
        if topic not in CAUSED:
            return
        sensors = self._sensor_places()
        ranks = np.empty(self.count, dtype=np.int64)
        for p in range(self.pipeline.partitions):
            ranks[sensors == p] = np.arange((sensors == p).sum())
        places = sensors if topic in (Topic.EVENTS, Topic.FACTS) else self._by_join
        means: dict[str, float] = {}
        drifts = self._drifts(means) if topic in (Topic.PREDICTIONS, Topic.EXAMPLES) else None
        offset = 0
        for i in range(self.count):
            features = next(drifts) if drifts is not None else {}
            if places[i] != partition:
                continue
            for record in self._made(topic, i, partition, offset, int(sensors[i]), int(ranks[i]), features):
                yield record
                offset += 1

    def _drifts(self, means: dict[str, float]) -> Iterator[dict[str, float]]:
        for i in range(self.count):
            sensor = f"s{i % SENSORS}"
            mean = means.get(sensor, 0.0)
            yield {"level": self._level(i), "drift": mean}
            means[sensor] = 0.75 * mean + 0.25 * self._level(i)

    @staticmethod
    def _level(i: int) -> float:
        return 10.0 + i * 7919 % 1_000 / 16

    def _made(
        self,
        topic: Topic,
        i: int,
        partition: int,
        offset: int,
        sensor: int,
        rank: int,
        features: dict[str, float],
    ) -> Iterator[Rec]:
        name, number, level = f"s{i % SENSORS}", f"n{i}", self._level(i)
        time = datetime.fromtimestamp((BEGAN_MS + i * 100) / 1000, UTC)
        fact = Reading(sensor=name, number=number, level=level, kind="a")
        truth = Truth(number=number, level=level + 1.0)
        ids = f"r/{number}", f"t/{number}"
        at = BEGAN_MS + i * 100
        match topic:
            case Topic.EVENTS:
                told = {"id": ids[0], "type": "reading", "time": time, **msgspec.structs.asdict(fact)}
                yield self._rec(topic, partition, offset, at, name, told)
                told = {"id": ids[1], "type": "truth", "time": time, **msgspec.structs.asdict(truth)}
                yield self._rec(topic, partition, offset + 1, at, name, told)
            case Topic.FACTS:
                said = Envelope(id=ids[0], type="reading", time=time, key=name, data=fact)
                yield self._rec(topic, partition, offset, at, name, said, (Topic.EVENTS, sensor, 2 * rank))
            case Topic.OUTCOMES:
                came = Envelope(id=ids[1], type="truth", time=time, key=number, data=truth)
                yield self._rec(
                    topic, partition, offset, at, number, came, (Topic.EVENTS, sensor, 2 * rank + 1)
                )
            case Topic.PREDICTIONS:
                answer = self._prediction(i, time, sensor, rank, features)
                yield self._rec(topic, partition, offset, at, number, answer, (Topic.FACTS, sensor, rank))
            case Topic.EXAMPLES:
                answer = self._prediction(i, time, sensor, rank, features)
                example = Example(
                    id=answer.id,
                    key=answer.key,
                    time=answer.time,
                    features=answer.features,
                    label=truth.level,
                    served=answer.value,
                    source=answer.source,
                    model=answer.model,
                    version=answer.version,
                    fingerprint=answer.fingerprint,
                    baseline=answer.baseline,
                )
                yield self._rec(
                    topic, partition, offset, at, number, example, (Topic.OUTCOMES, partition, offset)
                )

    def _prediction(
        self, i: int, time: datetime, sensor: int, rank: int, features: dict[str, float]
    ) -> Prediction:
        return Prediction(
            id=f"r/n{i}",
            key=f"n{i}",
            time=time,
            value=0.0,
            source=Source.FALLBACK,
            reason="no_version",
            asked="line",
            model="constant",
            version=0,
            fingerprint=self.pipeline.fingerprint,
            fact=f"{self.pipeline.topic('facts')}/{sensor}/{rank}",
            verdict=-1,
            baseline=None,
            features=dict(features),
        )

    def _rec(
        self,
        topic: Topic,
        partition: int,
        offset: int,
        at: int,
        key: str,
        value: object,
        cause: tuple[Topic, int, int] | None = None,
    ) -> Rec:
        headers: tuple[tuple[str, bytes], ...] = ()
        if cause is not None:
            origin = f"{self.pipeline.topic(cause[0].suffix)}/{cause[1]}/{cause[2]}/0"
            headers = (("origin", origin.encode()),)
        name = self.pipeline.topic(topic.suffix)
        return Rec(name, partition, offset, at, key.encode(), self._encode(value), headers)

    def audited(self) -> Notebook:
        """The ledger over all of it, fed as the reader feeds it."""
        ends = self.ends()
        horizon = Horizon({place: Extent(0, end) for place, end in ends.items()}, dict(ends), dict(ends))
        with Scratch() as scratch:
            ledger = Ledger(self.pipeline, horizon, scratch)
            for topic in ORDER:
                for partition in range(self.pipeline.partitions if topic in CAUSED else 0):
                    records = self.records(topic, partition)
                    while chunk := list(islice(records, CHUNK)):
                        ledger.read(topic, partition, chunk)
            return ledger.settle()


def began() -> datetime:
    return datetime.fromtimestamp(BEGAN_MS / 1000, UTC) - timedelta(seconds=1)
