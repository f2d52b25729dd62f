"""score: every fact gets exactly one prediction, from a model that may answer or from the fallback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
from aiokafka import TopicPartition

from ..models.features import FeatureFailure, FoldState
from ..models.pipeline import CONSTANT
from ..models.profile import Profile, Sample
from ..models.serving import Answers, Observed, Pressure, Served, View, answer
from ..topics.log import MAX_RECORD_BYTES, Out, Record, record_bytes
from ..topics.messages import (
    UNREADABLE,
    WAITED,
    Envelope,
    Features,
    Origin,
    Prediction,
    Reason,
    ShadowAnswer,
    Sketch,
    Source,
    Span,
    Vitals,
)
from ..topics.partition import partitions
from ..topics.store import ORIGIN, ORIGIN_ROOM, Inspector, Progress
from .agent import Agent, Entry, Runtime, Table
from .follow import Verdicts
from .versions import Versions
from .work import Tracked, check_store, resume, unreadable

ATTEMPTS = 3  # answers to one batch while verdicts keep changing; the last is without a lease

# What a batch took counts at once if it took longer, and fades by a fifth with each that took less: too
# early is a fact for the fallback, too late a broken deadline.
FADING = 0.8
# Of a deadline, that the writing of a batch may be expected to take: after one that stalled, fresh facts
# are asked for again.
MAX_REST = 0.5
MS = timedelta(milliseconds=1)
PREDICTION_ROOM = record_bytes(None, None, ORIGIN_ROOM)  # of a prediction's record, beside key and value

Facts = Sequence[tuple[Record, Envelope[Any]]]
Rows = Sequence[Features | FeatureFailure]


@dataclass
class Pace:
    """Seconds that turns of all partitions lately took: per fact to ask models, and in all for the rest,
    acknowledgement included."""

    ask: float = 0.0
    rest: float = 0.0
    _began: float | None = None
    _asking: float = 0.0
    _asked: int = 0

    def begin(self, now: float) -> None:
        if self._began is None:
            self._began, self._asking, self._asked = now, 0.0, 0

    def answered(self, answers: Answers) -> None:
        # A fallback that was asked for late facts, too, is no part of what asking costs.
        asked = answers.observed.values()
        self._asking += sum(each.seconds for each in asked if each.asked <= answers.punctual)
        self._asked += answers.punctual

    def end(self, now: float) -> None:
        if self._began is not None:
            self.rest = max(now - self._began - self._asking, self.rest * FADING)
            self.ask = max(self._asking / self._asked if self._asked else 0.0, self.ask * FADING)
            self._began = None


class ScoreWork(Tracked):
    """Partition p of `facts`."""

    def __init__(self, agent: Score, progress: Progress, folds: FoldState, *, fresh: bool) -> None:
        super().__init__(progress, agent.pipeline.revision, agent.runtime.limits, fresh=fresh)
        self._agent = agent
        self._pipeline = agent.pipeline
        self._folds = folds
        self._decoder = msgspec.json.Decoder(Envelope[agent.pipeline.facts])  # type: ignore[name-defined]
        self._encode = msgspec.json.Encoder().encode
        self._observed: dict[str, Observed] = {}
        self._sample = Sample()
        self._spans: dict[int, Span] = {}
        self._since_ms = agent.runtime.now_ms()
        # What was covered, append times, answers: not acknowledged yet
        self._written: list[tuple[Span, Sequence[int], Answers]] = []

    async def step(self, tp: TopicPartition, records: Sequence[Record]) -> list[Out]:
        facts, dead = self._decoded(records)
        if not facts:
            return dead
        rows = self._pipeline.graph.extract(self._folds, [envelope for _, envelope in facts])
        self._agent.versions.recent.extend(row for row in rows[-64:] if not isinstance(row, FeatureFailure))
        await (
            self._agent.acknowledged()
        )  # what is answered now is to be written now: leases end, deadlines pass
        self._agent.pace.begin(self._agent.runtime.monotonic())
        appended = [record.timestamp for record, _ in facts]
        self._agent.profile.see(rows, [envelope.time for _, envelope in facts], appended)
        view, answers = await self._answered(facts, rows, appended)
        self._agent.pace.answered(answers)
        covered = Span(tp.partition, facts[0][0].offset, facts[-1][0].offset + 1)
        self._written.append((covered, appended, answers))
        keys = self._join_keys(facts)
        encoded = [key.encode() for key in keys]
        where = partitions(encoded, self._pipeline.partitions)
        predictions = self._predictions(tp, facts, rows, answers, view, keys, encoded, where)
        return [*predictions, *self._shadows(tp, facts, answers, keys, where), *dead]

    def _decoded(self, records: Sequence[Record]) -> tuple[Facts, list[Out]]:
        facts, dead = [], []
        for record in records:
            try:
                facts.append((record, self._decoder.decode(record.value or b"")))
            except UNREADABLE as error:
                dead.append(unreadable(self._agent.runtime, "score", record, error))
        return facts, dead

    async def _answered(self, facts: Facts, rows: Rows, appended: Sequence[int]) -> tuple[View, Answers]:
        """Answers under a lease that still holds when they are about to be written, or without one."""
        ids = [envelope.id for _, envelope in facts]
        keys = [envelope.key for _, envelope in facts]
        clock = self._agent.runtime.monotonic
        for _ in range(ATTEMPTS - 1):
            view = await self._agent.view()
            answers = answer(self._pipeline, view, ids, rows, clock, self._pressure(appended), keys)
            if not view.lease or await self._agent.still(view):
                return view, answers
        view = View(self._agent.verdicts.routing, {}, lease=False)
        return view, answer(self._pipeline, view, ids, rows, clock, keys=keys)

    def _pressure(self, appended: Sequence[int]) -> Pressure:
        """A fact's age is by the log's own clock; one from the future of it has just come."""
        now = self._agent.log_ms()
        self._agent.waited(max(0, now - appended[0]))
        pipeline, deadline = self._pipeline, self._pipeline.deadline
        behind = pipeline.shed is not None and now - appended[0] > pipeline.backlog / MS
        if deadline is None:
            return Pressure(behind=behind)
        ends = self._agent.runtime.monotonic() + deadline.total_seconds()
        due = (ends - np.maximum(now - np.asarray(appended, dtype=np.float64), 0.0) / 1000).tolist()
        pace = self._agent.pace
        rest = min(pace.rest, MAX_REST * deadline.total_seconds())
        return Pressure(due, rest, pace.ask, self._agent.to_come, behind)

    def _predictions(
        self,
        tp: TopicPartition,
        facts: Facts,
        rows: Rows,
        answers: Answers,
        view: View,
        keys: Sequence[str],
        encoded: Sequence[bytes],
        where: Sequence[int],
    ) -> list[Out]:
        source = f"{tp.topic}/{tp.partition}"
        topic, origin = self._pipeline.topic("predictions"), source.encode()
        outs = []
        for (record, envelope), row, said, key, encoded_key, partition in zip(
            facts, rows, answers.served, keys, encoded, where, strict=True
        ):
            fact = f"{source}/{record.offset}"
            features = row if type(row) is dict else {}
            value = self._prediction(fact, key, envelope, said, features, view)
            if PREDICTION_ROOM + len(encoded_key) + len(value) > MAX_RECORD_BYTES:
                # Features that fit no record cannot be learned from either: the answer goes without them.
                value = self._prediction(fact, key, envelope, self._without_features(said), {}, view)
            headers = ((ORIGIN, b"%b/%d/0" % (origin, record.offset)),)  # as Origin.header
            outs.append(Out._make((topic, partition, encoded_key, value, headers)))  # in half of Out's time
        return outs

    def _prediction(
        self,
        fact: str,
        key: str,
        envelope: Envelope[Any],
        said: Served,
        features: Features,
        view: View,
    ) -> bytes:
        return self._encode(
            Prediction(
                id=envelope.id,
                key=key,
                time=envelope.time,
                value=said.value,
                source=said.source,
                reason=said.reason,
                asked=said.asked,
                model=said.model,
                version=said.version,
                fingerprint=self._pipeline.fingerprint,
                fact=fact,
                verdict=view.routing.offset,
                baseline=said.baseline,
                features=features,
            )
        )

    def _without_features(self, said: Served) -> Served:
        reason = Reason.FEATURE_FAILED.value
        return Served(self._pipeline.constant, Source.FALLBACK, reason, said.asked, CONSTANT, 0, None)

    def _join_keys(self, facts: Facts) -> list[str]:
        join = self._pipeline.join
        return [str(getattr(envelope.data, join)) for _, envelope in facts]

    def _shadows(
        self,
        tp: TopicPartition,
        facts: Facts,
        answers: Answers,
        keys: Sequence[str],
        where: Sequence[int],
    ) -> list[Out]:
        source = f"{tp.topic}/{tp.partition}".encode()
        topic, fingerprint = self._pipeline.topic("shadow"), self._pipeline.fingerprint
        counted: Counter[int] = Counter()
        outs = []
        # In the order of their causes: of what goes back to an earlier one, a reader takes nothing.
        for index, model, version, value, reason in sorted(answers.shadows, key=lambda shadow: shadow.place):
            record, envelope = facts[index]
            said = ShadowAnswer(
                id=envelope.id,
                key=keys[index],
                time=envelope.time,
                model=model,
                version=version,
                fingerprint=fingerprint,
                value=value,
                reason=reason,
            )
            origin = Origin(source, record.offset, counted[index]).header()
            counted[index] += 1
            out = Out(topic, where[index], keys[index].encode(), self._encode(said), ((ORIGIN, origin),))
            if record_bytes(out.key, out.value, out.headers) <= MAX_RECORD_BYTES:  # a shadow may be missing
                outs.append(out)
        return outs

    def delivered(self) -> None:
        written, self._written = self._written, []
        telemetry, now = self._agent.runtime.telemetry, self._agent.log_ms()
        self._agent.pace.end(self._agent.runtime.monotonic())
        for covered, appended, answers in written:
            self._cover(covered)
            self._agent.shed(answers)
            self._sample.see(answers)
            telemetry.latency(np.maximum(now - np.asarray(appended, dtype=np.float64), 0.0) / 1000)
            counts = Counter((said.asked, said.source, said.reason) for said in answers.served)
            for (model, source, reason), count in counts.items():
                telemetry.predicted(model, source, reason, count)
            for model, observed in answers.observed.items():
                telemetry.out_of_bounds(model, observed.out_of_bounds)
                self._observed.setdefault(model, Observed()).add(observed)

    def _cover(self, span: Span) -> None:
        known = self._spans.get(span.partition)
        self._spans[span.partition] = span if known is None else known._replace(end=span.end)

    def changes(self) -> list[Entry]:
        return list(self._folds.changes().items())

    def vitals(self) -> list[Vitals]:
        runtime, since = self._agent.runtime, self._since_ms
        self._since_ms = runtime.now_ms()
        observed, self._observed = self._observed, {}
        sketches = self._sample.take()
        spans, self._spans = tuple(self._spans.values()), {}
        return [
            Vitals(
                agent="score",
                replica=runtime.replica,
                model=model,
                version=seen.version,
                line=seen.line,
                spans=spans,
                from_ms=since,
                to_ms=self._since_ms,
                asked=seen.asked,
                served=seen.served,
                warming=seen.warming,
                out_of_bounds=seen.out_of_bounds,
                raised=seen.raised,
                seconds=seen.seconds,
                answers=seen.answers,
                sketch=sketches.get(model, Sketch()),
            )
            for model, seen in observed.items()
        ]


class Score(Agent):
    name = "score"

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.pace = Pace()
        self.profile = Profile(self.pipeline.graph.wanted, self.pipeline.slices)
        self._waited_ms = 0  # the longest that a fact had waited for its batch, since the last vitals
        self._counts: Counter[str] = (
            Counter()
        )  # since then: facts, those that were late, those spared a model
        self._since_ms = runtime.now_ms()
        self._follow()

    def _follow(self) -> None:
        self.verdicts = Verdicts(self.runtime)
        self.versions = Versions(self.runtime, self.verdicts)

    @property
    def group_topics(self) -> list[str]:
        return [self.pipeline.topic("facts")]

    @property
    def transactional_outputs(self) -> bool:
        return self.pipeline.delivery == "transactional"

    async def attend(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
        self.pace = Pace()  # a turn that failed has no end
        self._follow()
        return [*await self.verdicts.follow(stack), *await self.versions.follow(stack)]

    async def view(self) -> View:
        """What is known now, under a lease if one can be had."""
        lease = await self.verdicts.lease()
        return View(self.verdicts.routing, self.versions.serving, lease)

    async def still(self, view: View) -> bool:
        """Whether the lease holds and no verdict has come since."""
        lease = await self.verdicts.lease()
        return lease and self.verdicts.routing is view.routing

    async def open(self, partition: int, table: Table, inspector: Inspector) -> ScoreWork:
        inputs = [TopicPartition(self.pipeline.topic("facts"), partition)]
        filtered = frozenset(self.group_topics)
        predictions = self.pipeline.topic("predictions")
        outputs = [TopicPartition(predictions, p) for p in range(self.pipeline.partitions)]
        await check_store(self, partition, table, inputs, outputs, inspector)
        progress, fresh = await resume(self.pipeline, table, inputs, filtered, inspector)
        return ScoreWork(self, progress, FoldState.restore(table.items()), fresh=fresh)

    def waited(self, ms: int) -> None:
        self._waited_ms = max(self._waited_ms, ms)

    def shed(self, answers: Answers) -> None:
        """Counts what an acknowledged batch left undone."""
        reasons = Counter(said.reason for said in answers.served)
        self._counts["facts"] += len(answers.served)
        for reason in (Reason.LATE, Reason.TOO_SLOW):
            self._counts[reason.value] += reasons[reason.value]
        for model, facts in answers.spared.items():
            self._counts["shadows_shed"] += facts
            self.runtime.telemetry.shed_shadows(model, facts)

    def own_vitals(self) -> list[Vitals]:
        """How far behind this process is and what it shed, and the gate's refusals: without an answer
        there is no other sign of them."""
        refusals, self.versions.refusals = self.versions.refusals, {}
        now = self.runtime.now_ms()
        refused = [
            Vitals(
                agent="score",
                replica=self.runtime.replica,
                model=manifest.model,
                version=manifest.version,
                line=manifest.line,
                from_ms=now,
                to_ms=now,
                warming=int(manifest.learned < self.pipeline.models[manifest.model].warmup),
                gate=code,
            )
            for manifest, code in refusals.values()
        ]
        return [self._backlog(now), *refused]

    def _backlog(self, now: int) -> Vitals:
        counts = {**{name: n for name, n in self._counts.items() if n}, WAITED: self._waited_ms}
        self.runtime.telemetry.waited(self._waited_ms / 1000)
        since, self._since_ms = self._since_ms, now
        self._waited_ms = 0
        self._counts.clear()
        seen = self.profile.take()
        return Vitals(
            agent="score",
            replica=self.runtime.replica,
            model="",
            from_ms=since,
            to_ms=now,
            counts=counts,
            event_ms=seen.event_ms,
            features=seen.features,
            slices=seen.slices,
            ages=seen.ages,
        )
