"""Every checkpoint, as it is committed: the state in the store is what the inputs below its positions fold to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from riverkeeper.models.pipeline import Pipeline
from tests.simulator.kafka import Fate, Kafka, Partition
from tests.simulator.ledger import Wrong, advance, cause, effects, first

Table = Mapping[bytes, bytes]
Seen = dict[str, tuple[int, int]]


class States:
    """Looks at each partition of the stores whenever a transaction on it is committed."""

    def __init__(self, pipeline: Pipeline, kafka: Kafka) -> None:
        self._pipeline = pipeline
        self._kafka = kafka
        self._tables: dict[Partition, dict[bytes, bytes]] = {}
        self._folded: dict[Partition, int] = {}
        self._positions: dict[Partition, dict[str, int]] = {}
        self._checks: dict[str, Callable[[int, Table, Mapping[str, int]], None]] = {
            pipeline.topic("ingest.store"): self._ingest,
            pipeline.topic("score.store"): self._score,
            pipeline.topic("join.store"): self._join,
        }

    def committed(self, partition: Partition) -> None:
        """Raises Wrong if the table as of now does not belong to its head."""
        check = self._checks.get(partition.tp.topic)
        if check is None:
            return
        table = self._tables.setdefault(partition, {})
        start, stable = self._folded.get(partition, 0), partition.stable
        for i in range(start, len(partition.history)):
            record = partition.history[i]
            if record.offset >= stable:
                break
            self._folded[partition] = i + 1
            if record.state is not Fate.COMMITTED or record.key is None:
                continue
            if record.value is None:
                table.pop(record.key, None)
            else:
                table[record.key] = record.value
        if b"head" not in table:
            raise Wrong(f"{partition.tp} holds {sorted(table)}, and no head says where they stand")
        head = msgspec.json.decode(table[b"head"])
        self._never_back(partition, head["positions"])
        self._seen(head)
        check(partition.tp.partition, table, head["positions"])

    def _never_back(self, partition: Partition, positions: dict[str, int]) -> None:
        before = self._positions.get(partition, {})
        for place, position in positions.items():
            if position < before.get(place, 0):
                raise Wrong(f"{partition.tp} went back from {before[place]} to {position} of {place}")
        self._positions[partition] = positions

    def _seen(self, head: Mapping[str, Any]) -> None:
        for place, found in head["seen"].items():
            if place.startswith(self._pipeline.topic("events")):  # written by producers, and read as it is
                continue
            below = self._greatest(place, head["positions"][place])
            if {source: tuple(at) for source, at in found.items()} != below:
                raise Wrong(f"the head has seen {found} of {place}, below its position stand {below}")

    def _input(self, place: str) -> Partition:
        topic, number = place.rsplit("/", 1)
        return self._kafka.partition(topic, int(number))

    def _greatest(self, place: str, position: int) -> Seen:
        greatest: Seen = {}
        for record in first(self._input(place)):
            if record.offset < position:
                source, offset, n = cause(record)
                greatest[source] = (offset, n)
        return greatest

    def _ingest(self, partition: int, table: Table, positions: Mapping[str, int]) -> None:
        place = f"{self._pipeline.topic('events')}/{partition}"
        wanted = [id for offset, _, id in effects(self._input(place)) if offset < positions[place] and id]
        stored = [id for k, v in table.items() if k.startswith(b"ids/") for id, _ in msgspec.json.decode(v)]
        if sorted(stored) != sorted(wanted):
            raise Wrong(f"{place} below {positions[place]} has the ids {wanted}, the store holds {stored}")

    def _score(self, partition: int, table: Table, positions: Mapping[str, int]) -> None:
        place = f"{self._pipeline.topic('facts')}/{partition}"
        wanted: dict[str, Any] = {}
        for record in first(self._input(place)):
            if record.offset < positions[place]:
                data = msgspec.json.decode(record.value or b"")["data"]
                advance(wanted, data["shop"], data["amount"])
        stored = {k.decode(): msgspec.json.decode(v) for k, v in table.items() if k.startswith(b"fold/")}
        if stored != wanted:
            raise Wrong(f"{place} below {positions[place]} folds to {wanted}, the store holds {stored}")

    def _join(self, partition: int, table: Table, positions: Mapping[str, int]) -> None:
        predictions = f"{self._pipeline.topic('predictions')}/{partition}"
        outcomes = f"{self._pipeline.topic('outcomes')}/{partition}"
        predicted = {r.key: r for r in first(self._input(predictions)) if r.offset < positions[predictions]}
        labelled = {r.key for r in first(self._input(outcomes)) if r.offset < positions[outcomes]}
        waiting = sorted(r.value or b"" for key, r in predicted.items() if key not in labelled)
        stored = sorted(value for key, value in table.items() if key.startswith(b"p/"))
        if stored != waiting:
            raise Wrong(f"{predictions}, {positions}: {waiting} are to wait, {stored} do")
        for key in [key for key in table if key[:2] in (b"o/", b"g/") and key[2:] not in labelled]:
            raise Wrong(
                f"{predictions}, {positions}: {key!r} stands in the store, and no outcome of it before"
            )
        for known in labelled:
            name = b"o/" + (known or b"")
            if name not in table:
                raise Wrong(f"{outcomes} below {positions[outcomes]} has {name!r}, the store does not")
            _, _, joined = msgspec.json.decode(table[name])
            if joined != (known in predicted):
                raise Wrong(f"{predictions}, {positions}: {known!r} joined={joined}")


class Lease:
    """No model answers that a verdict has quarantined for longer than a lease, pauses of its process aside.

    Two leases are allowed: one may be waited for once the batch in hand was begun under the other.
    """

    def __init__(self, seconds: float) -> None:
        self._allowed = seconds
        self._verdicts: list[tuple[float, bool]] = []  # (time, whether the model may answer from then on)

    def decided(self, now: float, *, live: bool) -> None:
        self._verdicts.append((now, live))

    def answers(self, now: float, pauses: list[tuple[float, float]], value: bytes | None) -> None:
        if not self._verdicts:
            return
        said = msgspec.json.decode(value or b"")
        if said["source"] != "model" or said["model"] != "memory":
            return
        since = now - self._allowed
        for begun, ended in reversed(pauses):
            if ended > since:
                since -= ended - begun
        known = bisect_left(self._verdicts, (since, False))
        states = [live for _, live in self._verdicts[max(0, known - 1) :]]
        if known == 0 or any(states):
            return
        raise Wrong(f"at {now:.3f} s the quarantined model answered {said['id']}; verdicts {self._verdicts}")
