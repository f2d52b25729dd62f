"""What must hold in the end, from the log alone: every event accounted for, once.

The model's logs are read as they were written, compaction aside, by code that shares nothing with the agents'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.messages import Example, Prediction
from tests.simulator.kafka import Fate, Kafka, Partition, Stored

Cause = tuple[str, int]  # "topic/partition", offset


class Wrong(Exception):
    """An invariant does not hold."""


def cause(record: Stored) -> tuple[str, int, int]:
    """(source, offset, n) of a record's origin."""
    for name, value in record.headers:
        if name == "origin":
            source, offset, n = value.decode().rsplit("/", 2)
            return source, int(offset), int(n)
    raise Wrong(f"{record} has no origin")


def visible(partition: Partition) -> list[Stored]:
    stable = partition.stable
    return [r for r in partition.history if r.state is Fate.COMMITTED and r.offset < stable]


def first(partition: Partition) -> list[Stored]:
    """By the reading rule: of each source, what is greater than the greatest so far."""
    greatest: dict[str, tuple[int, int]] = {}
    found = []
    for record in visible(partition):
        source, offset, n = cause(record)
        if (offset, n) > greatest.get(source, (-1, -1)):
            greatest[source] = (offset, n)
            found.append(record)
    return found


def effects(partition: Partition) -> Iterator[tuple[int, str, Any]]:
    """(offset, topic, id) of every event of a partition of `events` that has an output, by a straight reading."""
    seen: set[str] = set()
    for record in visible(partition):
        try:
            event = msgspec.json.decode(record.value or b"")
        except msgspec.DecodeError:
            yield record.offset, "dead", None
            continue
        if event["id"] not in seen:
            seen.add(event["id"])
            yield record.offset, "facts" if event["type"] == "sale" else "outcomes", event["id"]


def advance(folds: dict[str, Any], shop: str, amount: float) -> dict[str, Any]:
    """The features of a fact by the folds before it, which then take it in."""
    level, sales = folds.get(f"fold/trade/{shop}", 0.0), folds.get(f"fold/count/{shop}", 0)
    folds[f"fold/trade/{shop}"], folds[f"fold/count/{shop}"] = 0.5 * level + amount, sales + 1
    return {"amount": amount, "doubled": amount * 2, "trade": level, "count": sales}


class Ledger:
    """The account of a run. `agents` are those at work: the topics of the others are input, or empty."""

    def __init__(self, pipeline: Pipeline, kafka: Kafka, agents: Sequence[str]) -> None:
        self.pipeline = pipeline
        self.kafka = kafka
        self.agents = agents

    def partitions(self, suffix: str) -> Iterator[Partition]:
        topic = self.pipeline.topic(suffix)
        for p in range(self.kafka.counts[topic]):
            yield self.kafka.partition(topic, p)

    def firsts(self, *suffixes: str) -> list[Stored]:
        return [record for s in suffixes for partition in self.partitions(s) for record in first(partition)]

    # What is still to do.

    def missing(self) -> str:
        """What the agents have not come to yet; "" if nothing."""
        if "ingest" in self.agents:
            made = {cause(r)[:2] for r in self.firsts("facts", "outcomes", "dead")}
            if lacking := [place for place in self._expected() if place not in made]:
                return f"events without effect: {lacking}"
        if "score" in self.agents:
            answered = {cause(r)[:2] for r in self.firsts("predictions")}
            if lacking := [place for place in self._replayed() if place not in answered]:
                return f"facts without prediction: {lacking}"
        if "join" in self.agents:
            joined = {example.key for example in self.examples()}
            if unjoined := [key for key in self._pairs() if key not in joined]:
                return f"pairs without example: {unjoined}"
        return ""

    def _expected(self) -> dict[Cause, str]:
        found: dict[Cause, str] = {}
        for partition in self.partitions("events"):
            source = f"{partition.tp.topic}/{partition.tp.partition}"
            found |= {(source, offset): topic for offset, topic, _ in effects(partition)}
        return found

    def _replayed(self) -> dict[Cause, dict[str, Any]]:
        """Every first fact -> its features, by a straight fold of the log."""
        rows: dict[Cause, dict[str, Any]] = {}
        for partition in self.partitions("facts"):
            source = f"{partition.tp.topic}/{partition.tp.partition}"
            folds: dict[str, Any] = {}
            for record in first(partition):
                data = msgspec.json.decode(record.value or b"")["data"]
                rows[source, record.offset] = advance(folds, data["shop"], data["amount"])
        return rows

    def _pairs(self) -> dict[str, list[Any]]:
        """Join keys with a prediction and an outcome -> the labels seen."""
        predicted = {prediction(r).key for r in self.firsts("predictions")}
        labels: dict[str, list[Any]] = {}
        for record in self.firsts("outcomes"):
            outcome = msgspec.json.decode(record.value or b"")
            labels.setdefault(outcome["key"], []).append(outcome["data"]["amount"])
        return {key: found for key, found in labels.items() if key in predicted}

    def examples(self) -> list[Example]:
        return [
            msgspec.json.decode(r.value or b"", type=Example)
            for partition in self.partitions("examples")
            for r in visible(partition)
        ]

    # What must hold.

    def settle(self) -> None:
        """Raises Wrong for the first thing that does not add up."""
        if "ingest" in self.agents:
            self._events_have_one_effect()
        if "score" in self.agents:
            self._facts_have_one_prediction()
        if "join" in self.agents:
            self._pairs_have_one_example()

    def _events_have_one_effect(self) -> None:
        expected, made = self._expected(), set()
        for suffix in ("facts", "outcomes", "dead"):
            for record in self.firsts(suffix):
                source, offset, _ = cause(record)
                wanted = expected.get((source, offset))
                if wanted != suffix:
                    raise Wrong(f"{source}@{offset} is among {suffix}; it belongs to {wanted}")
                if (source, offset) in made:
                    raise Wrong(f"{source}@{offset} is among {suffix} twice")
                made.add((source, offset))
        for place in expected.keys() - made:
            raise Wrong(f"{place} is lost")

    def _facts_have_one_prediction(self) -> None:
        rows, answered = self._replayed(), set()
        for record in self.firsts("predictions"):
            source, offset, _ = cause(record)
            if (source, offset) not in rows:
                raise Wrong(f"a prediction of {source}@{offset}, which is no first fact")
            if (source, offset) in answered:
                raise Wrong(f"{source}@{offset} is answered twice")
            answered.add((source, offset))
            said, row = prediction(record).features, rows[source, offset]
            if said != row:
                raise Wrong(f"{source}@{offset} was answered with {said}, a replay gives {row}")
        for place in rows.keys() - answered:
            raise Wrong(f"{place} has no prediction")
        for partition in self.partitions("predictions"):
            for record in visible(partition):
                self._inside(record)

    def _inside(self, record: Stored) -> None:
        said = prediction(record)
        if not self.pipeline.bounds.admits(said.value):
            raise Wrong(f"{record} is out of bounds")
        if said.fingerprint != self.pipeline.fingerprint or said.version == FORGED:
            raise Wrong(f"{record} was served by a version that no gate lets through")

    def _pairs_have_one_example(self) -> None:
        pairs, made = self._pairs(), set()
        served = {(said := prediction(r)).key: said for r in self.firsts("predictions")}
        for example in self.examples():
            if example.key not in pairs:
                raise Wrong(f"an example of {example.key}, which is no pair")
            if example.key in made:
                raise Wrong(f"{example.key} has two examples")
            made.add(example.key)
            said = served[example.key]
            if (example.features, example.served, example.id) != (said.features, said.value, said.id):
                raise Wrong(f"{example} was not served so: {said}")
            if example.label not in pairs[example.key]:
                raise Wrong(f"{example} has another label than {pairs[example.key]}")
        for key in pairs.keys() - made:
            raise Wrong(f"{key} has no example")


FORGED = 1_000_000  # the number of a version that somebody else signed


def prediction(record: Stored) -> Prediction:
    return msgspec.json.decode(record.value or b"", type=Prediction)
