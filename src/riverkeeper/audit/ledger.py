"""The ledger: records in, findings out. No I/O but its scratch file; nothing of the agents.

Feed it every partition of every topic of `ORDER`, in that order, then `settle` it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ..models.features import FeatureFailure, Fold, FoldState
from ..models.pipeline import CONSTANT, Pipeline
from ..topics.log import MAX_RECORD_BYTES, Record
from ..topics.messages import (
    Answer,
    Envelope,
    ErrorCode,
    Example,
    Features,
    Prediction,
    Reason,
    Source,
)
from ..topics.partition import partitions
from .events import Due, Hasher, Invalid, Reader, Window, letter, with_headers
from .obedience import OBEYED_WITHIN_MS, Verdicts
from .report import Notebook, Place, Topic
from .rule import Horizon, Origin, Rule
from .scratch import CAUSES, Scratch
from .settle import TOO_LARGE, UNJUDGED, Expect, Joining, Judge, Settlement, paired
from .versions import Recomputer, Versions

# Verdicts and versions first: a prediction is held against them as it is read.
ORDER = (
    Topic.VERDICTS,
    Topic.MODELS,
    Topic.PREDICTIONS,
    Topic.EXAMPLES,
    Topic.FACTS,
    Topic.OUTCOMES,
    Topic.DEAD,
    Topic.EVENTS,
)
CAUSED_BY = {
    Topic.FACTS: {Topic.EVENTS},
    Topic.OUTCOMES: {Topic.EVENTS},
    Topic.PREDICTIONS: {Topic.FACTS},
    Topic.EXAMPLES: {Topic.PREDICTIONS, Topic.OUTCOMES},
    Topic.DEAD: set(CAUSES),
}
NONE_FEATURES = hash(b"{}")
REASONS = frozenset(reason.value for reason in Reason)
CODES = frozenset(code.value for code in ErrorCode)


class Served(NamedTuple):
    """A prediction that counts, and the hash of what it must repeat of its fact."""

    record: Record
    said: Prediction
    origin: Origin
    lineage: int


class Ledger:
    """One pipeline's account. `key` is what versions are signed with; without it, none is opened."""

    def __init__(
        self,
        pipeline: Pipeline,
        horizon: Horizon,
        scratch: Scratch,
        *,
        key: bytes | None = None,
        recompute: bool = True,
        obeyed_within_ms: int = OBEYED_WITHIN_MS,
    ) -> None:
        self._pipeline = pipeline
        self._horizon = horizon
        self._scratch = scratch
        self.notes = Notebook(pipeline.name)
        self._rule = Rule(pipeline.name)
        self._hash = Hasher(pipeline)
        self._verdicts = Verdicts(pipeline, obeyed_within_ms)
        self._versions = Versions(pipeline, scratch, self.notes, key)
        self._recomputer = Recomputer(pipeline, self._versions) if key and recompute else None
        self._judge = Judge(self.notes, horizon, self._rule, {})
        self._reader = Reader(pipeline, self._hash)
        self._fact = msgspec.json.Decoder(Envelope[pipeline.facts])  # type: ignore[name-defined]
        self._outcome = msgspec.json.Decoder(Envelope[pipeline.outcomes])  # type: ignore[name-defined]
        self._prediction = msgspec.json.Decoder(Prediction)
        self._example = msgspec.json.Decoder(Example)
        self._encode = msgspec.json.Encoder().encode
        self._folding = any(isinstance(each, Fold) for each in pipeline.features)
        self._outcomes: Counter[int] = Counter()  # by partition
        self._strangers: set[int] = set()  # partitions of `facts` whose features other code made
        self._at: tuple[Topic, int] | None = None
        self._begin(0)

    def _begin(self, partition: int) -> None:
        """Forgets what belongs to the partition before: its folds, its ids, its clock."""
        self._folds = FoldState()
        dedupe = self._pipeline.dedupe
        self._window = Window(dedupe) if dedupe is not None else None
        self._clock = 0

    def read(self, topic: Topic, partition: int, records: Sequence[Record]) -> None:
        """The next records of a partition. A partition is read to its end before another is begun."""
        if self._at != (topic, partition):
            self._begin(partition)
            self._at = (topic, partition)
        match topic:
            case Topic.VERDICTS:
                for record in records:
                    self._verdicts.read(record, self.notes)
            case Topic.MODELS:
                for record in records:
                    self._versions.read(record)
            case Topic.PREDICTIONS:
                self._predictions(partition, records)
            case Topic.EXAMPLES:
                self._examples(partition, records)
            case Topic.FACTS:
                self._facts(partition, records)
            case Topic.OUTCOMES:
                self._outcomes_(partition, records)
            case Topic.DEAD:
                self._dead(partition, records)
            case Topic.EVENTS:
                self._events(partition, records)

    # Reading.

    def _caused(self, topic: Topic, record: Record) -> Origin | None:
        """The cause that a record names; None, and a finding, if it names none that could be."""
        origin = self._rule.origin(record)
        if origin is not None and origin.topic in CAUSED_BY[topic]:
            return origin
        place = Place(topic, record.partition, record.offset)
        self.notes.find("doubled", place, "names no record of this pipeline as its cause")
        return None

    def _unreadable(self, record: Record, expect: Expect) -> tuple[int, ...]:
        """A record as a cause, of which only a dead letter can be made."""
        content = letter(record.key, record.value)
        extra = with_headers(content, record.headers)
        return (record.partition, record.offset, expect, record.partition, content, extra, record.timestamp)

    def _predictions(self, partition: int, records: Sequence[Record]) -> None:
        effects, meetings, unreadable = [], [], []
        served: list[Served] = []
        for record in records:
            origin = self._caused(Topic.PREDICTIONS, record)
            if origin is None:
                continue
            first = self._rule.admits(Topic.PREDICTIONS, partition, origin)
            self._clock = max(self._clock, record.timestamp)
            try:
                said = self._prediction.decode(record.value or b"")
            except msgspec.DecodeError as error:
                self._find("altered", Topic.PREDICTIONS, record, f"is no prediction: {error}")
                effects.append(_effect(origin, Topic.PREDICTIONS, record, first, UNJUDGED, UNJUDGED))
                unreadable.append(self._unreadable(record, Expect.UNKNOWN))
                continue
            lineage = self._hash.lineage(said.id, said.key, said.time)
            features = self._features_said(said, origin)
            effects.append(_effect(origin, Topic.PREDICTIONS, record, first, lineage, features))
            self._bounded(record, said, lineage)
            if first:
                self.notes.counts["predictions"] += 1
                served.append(Served(record, said, origin, lineage))
                meetings.append(
                    (
                        partition,
                        hash(said.key),
                        Topic.PREDICTIONS,
                        record.offset,
                        record.timestamp,
                        self._clock,
                        lineage,
                        self._served(said, said.value),
                        UNJUDGED,
                    )
                )
        self._true(served)
        self._recomputed(served)
        self._scratch.add_effects(Topic.FACTS, effects)
        self._scratch.add_meetings(meetings)
        self._scratch.add_causes(Topic.PREDICTIONS, unreadable)

    def _find(self, kind: str, topic: Topic, record: Record, text: str, *explains: int, id: str = "") -> None:
        place = Place(topic, record.partition, record.offset)
        self.notes.find(kind, place, text, *explains, id=id)  # type: ignore[arg-type]

    def _features_said(self, said: Prediction, origin: Origin) -> int:
        """Hash of the features; UNJUDGED where the declared code did not make them."""
        if said.fingerprint != self._pipeline.fingerprint:
            self._strangers.add(origin.partition)
            return UNJUDGED
        return self._hash.json(said.features)

    def _served(self, said: Prediction | Example, value: Answer) -> int:
        return self._hash.json(
            (
                said.id,
                said.key,
                said.time,
                said.features,
                value,
                said.source,
                said.model,
                said.version,
                said.fingerprint,
                said.baseline,
            )
        )

    def _bounded(self, record: Record, said: Prediction, lineage: int) -> None:
        """Copies, too: whoever acts at once acts on them."""
        for what, value in (("value", said.value), ("baseline", said.baseline)):
            if value is not None and not self._pipeline.bounds.admits(value):
                bounds = self._pipeline.bounds
                text = f"{what} {value} lies outside {bounds.low} to {bounds.high}"
                self._find("out_of_bounds", Topic.PREDICTIONS, record, text, lineage, id=said.id)
                return

    def _true(self, served: Sequence[Served]) -> None:
        """What a prediction says of itself: its fact, its code, who answered, under what verdict."""
        for record, said, origin, lineage in served:
            wrong = self._untrue(said, origin)
            if wrong:
                if not self.notes.explained(lineage):
                    self._find("altered", Topic.PREDICTIONS, record, wrong, lineage, id=said.id)
                continue
            if said.model == CONSTANT:
                continue
            known = self._versions.get(said.model, said.version)
            if known is None:
                self._unknown_version(record, said, lineage)
                continue
            disobeyed = self._verdicts.disobeyed(said, record.timestamp, known.line)
            if disobeyed:
                self._find("disobeyed", Topic.PREDICTIONS, record, f"{said.model} {disobeyed}", id=said.id)

    def _untrue(self, said: Prediction, origin: Origin) -> str:
        fact = f"{self._pipeline.topic('facts')}/{origin.partition}/{origin.offset}"
        if said.fact != fact:
            return f"says it answers {said.fact}, but was caused by {fact}"
        if hash(said.fingerprint) not in self._versions.prints:
            return f"names features {said.fingerprint}, which no version was made of"
        if said.source is Source.MODEL:
            if said.reason or said.model != said.asked or said.version < 1:
                return (
                    f"is of a model, but names {said.model} v{said.version} for {said.asked}: {said.reason!r}"
                )
        elif said.reason not in REASONS or said.model not in (self._pipeline.fallback, CONSTANT):
            return f"is of the fallback, but names {said.model}: {said.reason!r}"
        if said.model == CONSTANT and (said.version or said.value != self._pipeline.constant):
            return f"is of the constant, but says {said.value}"
        known = self._versions.get(said.model, said.version)
        if known is not None and known.print != hash(said.fingerprint):
            return f"names features {said.fingerprint}, but its version was made of others"
        return ""

    def _unknown_version(self, record: Record, said: Prediction, lineage: int) -> None:
        name = f"{said.model}/{said.version}"
        newest = self._versions.newest(said.model)
        if self.notes.explained(hash(name), lineage):
            return
        if newest is None or said.version > newest.version:
            self._find(
                "altered",
                Topic.PREDICTIONS,
                record,
                f"names {name}, which was never published",
                lineage,
                id=said.id,
            )
            return
        here = Place(Topic.PREDICTIONS, record.partition, record.offset)
        place = Place(Topic.MODELS, newest.place.partition, -1)
        self.notes.find("lost", place, f"is not there, and {here} was served by it", hash(name), id=name)

    def _recomputed(self, served: Sequence[Served]) -> None:
        if self._recomputer is None:
            return
        by_version: dict[tuple[str, int], list[Served]] = {}
        for each in served:
            said = each.said
            if said.model != CONSTANT and said.fingerprint == self._pipeline.fingerprint:
                by_version.setdefault((said.model, said.version), []).append(each)
        for (model, version), group in by_version.items():
            rows: list[Features] = [each.said.features for each in group]
            answers = [each.said.value for each in group]
            differing = self._recomputer.differing(model, version, rows, answers)
            if differing is None:
                self.notes.unchecked["predictions of versions whose bytes are not kept"] += len(group)
                continue
            self.notes.counts["recomputed"] += len(group)
            for i, answer in differing:
                record, said, _, lineage = group[i]
                if not self.notes.explained(lineage):
                    text = f"says {said.value}, but {model} v{version} answers {answer} to its features"
                    self._find("altered", Topic.PREDICTIONS, record, text, lineage, id=said.id)

    def _examples(self, partition: int, records: Sequence[Record]) -> None:
        rows, meetings = [], []
        for record in records:
            origin = self._caused(Topic.EXAMPLES, record)
            if origin is None:
                continue
            self._rule.admits(Topic.EXAMPLES, partition, origin)
            try:
                example = self._example.decode(record.value or b"")
            except msgspec.DecodeError as error:
                self._find("altered", Topic.EXAMPLES, record, f"is no example: {error}")
                continue
            self.notes.counts["examples"] += 1
            rows.append((partition, record.offset, hash(example.fingerprint)))
            meetings.append(
                (
                    partition,
                    hash(example.key),
                    Topic.EXAMPLES,
                    record.offset,
                    record.timestamp,
                    0,
                    self._hash.lineage(example.id, example.key, example.time),
                    self._served(example, example.served),
                    self._hash.json(example.label),
                )
            )
        self._scratch.add_examples(rows)
        self._scratch.add_meetings(meetings)

    def _facts(self, partition: int, records: Sequence[Record]) -> None:
        effects, causes = [], []
        firsts: list[tuple[Record, Envelope[Any]]] = []
        for record in records:
            origin = self._caused(Topic.FACTS, record)
            if origin is None:
                continue
            first = self._rule.admits(Topic.FACTS, partition, origin)
            try:
                fact = self._fact.decode(record.value or b"")
            except msgspec.DecodeError:
                effects.append(_effect(origin, Topic.FACTS, record, first, hash(record.value), UNJUDGED))
                causes.append(self._unreadable(record, Expect.LETTER if first else Expect.PASSED))
                continue
            lineage = self._hash.fact(fact)
            effects.append(_effect(origin, Topic.FACTS, record, first, self._hash.envelope(fact), lineage))
            if first:
                firsts.append((record, fact))
            else:
                causes.append(
                    (partition, record.offset, Expect.PASSED, 0, lineage, UNJUDGED, record.timestamp)
                )
        self.notes.counts["facts"] += len(firsts)
        causes += self._answerable(partition, firsts)
        causes.sort(key=lambda row: row[1])
        self._scratch.add_effects(Topic.EVENTS, effects)
        self._scratch.add_causes(Topic.FACTS, causes)

    def _answerable(
        self, partition: int, facts: Sequence[tuple[Record, Envelope[Any]]]
    ) -> list[tuple[int, ...]]:
        """The causes that facts are, with the features that their predictions must show."""
        if not facts:
            return []
        hashes = self._replayed(partition, [fact for _, fact in facts])
        join = self._pipeline.join
        keys = [str(getattr(fact.data, join)).encode() for _, fact in facts]
        places = partitions(keys, self._pipeline.partitions)
        return [
            (
                partition,
                record.offset,
                Expect.PREDICTION,
                places[i],
                self._hash.fact(fact),
                hashes[i],
                record.timestamp,
            )
            for i, (record, fact) in enumerate(facts)
        ]

    def _replayed(self, partition: int, facts: Sequence[Envelope[Any]]) -> list[int]:
        """Hash of each fact's features, folded straight through; UNJUDGED where that is not to be known."""
        whole = self._horizon.whole(Topic.FACTS, partition)
        if self._folding and (partition in self._strangers or not whole):
            why = "features with folds, of facts that " + (
                "are not read from their beginning" if not whole else "other code has read, too"
            )
            self.notes.unchecked[why] += len(facts)
            return [UNJUDGED] * len(facts)
        hashes = []
        for row in self._pipeline.graph.extract(self._folds, facts):
            if isinstance(row, FeatureFailure):
                hashes.append(NONE_FEATURES)
                continue
            encoded = self._encode(row)
            # Features that fit no record are left out of it; where exactly that begins is not this sum's affair.
            hashes.append(hash(encoded) if len(encoded) < MAX_RECORD_BYTES // 2 else UNJUDGED)
        return hashes

    def _outcomes_(self, partition: int, records: Sequence[Record]) -> None:
        effects, meetings, unreadable = [], [], []
        for record in records:
            origin = self._caused(Topic.OUTCOMES, record)
            if origin is None:
                continue
            first = self._rule.admits(Topic.OUTCOMES, partition, origin)
            self._clock = max(self._clock, record.timestamp)
            try:
                outcome = self._outcome.decode(record.value or b"")
            except msgspec.DecodeError:
                effects.append(_effect(origin, Topic.OUTCOMES, record, first, hash(record.value), UNJUDGED))
                unreadable.append(self._unreadable(record, Expect.LETTER if first else Expect.PASSED))
                continue
            key = hash(outcome.key)
            effects.append(_effect(origin, Topic.OUTCOMES, record, first, self._hash.envelope(outcome), key))
            if first:
                self._outcomes[partition] += 1
                label = self._hash.json(self._pipeline.label_of(outcome.data))
                meetings.append(
                    (
                        partition,
                        key,
                        Topic.OUTCOMES,
                        record.offset,
                        record.timestamp,
                        self._clock,
                        label,
                        self._outcomes[partition],
                        UNJUDGED,
                    )
                )
        self.notes.counts["outcomes"] += len(meetings)
        self._scratch.add_effects(Topic.EVENTS, effects)
        self._scratch.add_meetings(meetings)
        self._scratch.add_causes(Topic.OUTCOMES, unreadable)

    def _dead(self, partition: int, records: Sequence[Record]) -> None:
        by_cause: dict[Topic, list[tuple[int, ...]]] = {topic: [] for topic in CAUSES}
        for record in records:
            origin = self._caused(Topic.DEAD, record)
            if origin is None:
                continue
            first = self._rule.admits(Topic.DEAD, partition, origin)
            headers = list(record.headers)
            named = dict(headers[:3])
            code = (named.get("code") or b"").decode(errors="replace")
            if code not in CODES or not named.get("reason"):
                self._find("altered", Topic.DEAD, record, f"gives no reason that is known: {code!r}")
            self.notes.counts["dead"] += first
            content, extra = _kept(record)
            if origin.topic in (Topic.PREDICTIONS, Topic.OUTCOMES):
                extra = TOO_LARGE if code == ErrorCode.TOO_LARGE else UNJUDGED
            by_cause[origin.topic].append(_effect(origin, Topic.DEAD, record, first, content, extra))
        for topic, rows in by_cause.items():
            self._scratch.add_effects(topic, rows)

    def _events(self, partition: int, records: Sequence[Record]) -> None:
        due: list[tuple[Record, Due]] = []
        rows = []
        for record in records:
            try:
                due.append((record, self._reader.due(record)))
            except Invalid:
                rows.append(self._unreadable(record, Expect.LETTER))
        places = partitions([each.key for _, each in due], self._pipeline.partitions)
        for (record, each), place in zip(due, places, strict=True):
            expect = self._expected(partition, record, each)
            rows.append((partition, record.offset, expect, place, each.content, each.extra, record.timestamp))
        rows.sort(key=lambda row: row[1])
        self.notes.counts["events"] += len(records)
        self._scratch.add_causes(Topic.EVENTS, rows)

    def _expected(self, partition: int, record: Record, due: Due) -> Expect:
        if self._window is not None:
            repeats = self._window.repeats(due.id, record.timestamp)
            extent = self._horizon.extents[Topic.EVENTS, partition]
            # An id may have come before what was read, and a repeat of it seem to be the first; twice over.
            if not extent.whole and record.timestamp <= extent.since + 2 * self._window.ms:
                return Expect.UNKNOWN
            if repeats:
                return Expect.NOTHING
        return Expect.FACT if due.topic is Topic.FACTS else Expect.OUTCOME

    # Settling.

    def settle(self) -> Notebook:
        """The sums, once all is read."""
        self._versions.check_bytes()
        for topic in CAUSES:
            settlement = Settlement(self._judge, topic)
            settlement.settle(paired(self._scratch.causes(topic), self._scratch.effects(topic)))
        joining = Joining(self._judge, self._pipeline, self._scratch.has_effect, self._outcomes)
        joining.settle(self._scratch.meetings())
        sound = [p not in joining.unsound for p in range(self._pipeline.partitions)]
        self._versions.settle(self._verdicts, self._horizon, sound)
        return self.notes


def _effect(
    origin: Origin, topic: Topic, record: Record, first: bool, content: int, extra: int
) -> tuple[int, ...]:
    return (
        origin.partition,
        origin.offset,
        origin.n,
        topic,
        record.partition,
        record.offset,
        first,
        content,
        extra,
    )


def _kept(record: Record) -> tuple[int, int]:
    """Hashes of what a dead letter kept of its cause: its bytes; its headers behind origin, code and reason."""
    headers = list(record.headers)[3:]
    whole = dict(headers[:2]).get("cut-from-sha256")
    content = letter(record.key, record.value, whole)
    return content, UNJUDGED if whole else with_headers(content, headers)
