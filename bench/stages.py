"""Where each microsecond of score, ingest, join and learn goes: the stages of their steps, without a broker.

Each stage is timed by itself over the same batches, in processor time. What is missing to the whole process's
microseconds (parts score, ingest, join and learn) is aiokafka's fetching and sending, and the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import ConsumerRecord

from bench.harness import Options, medians
from bench.work import (
    ESTIMATORS,
    KEY,
    NUMBERS,
    Declared,
    baseline,
    events,
    examples,
    facts,
    outcomes,
    predictions,
    trained,
)
from riverkeeper.agents.agent import Owner, Runtime
from riverkeeper.agents.ingest import Ingest, IngestWork, Parser, RecentIds
from riverkeeper.agents.join import Join, JoinWork, Matcher
from riverkeeper.agents.pending import Packing
from riverkeeper.agents.score import Score, ScoreWork
from riverkeeper.models import fastpath
from riverkeeper.models.features import FoldState
from riverkeeper.models.quality import learn
from riverkeeper.models.serving import Serving, View, answer
from riverkeeper.models.version import interned
from riverkeeper.process import answer_promptly
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import BATCH_BYTES, Out
from riverkeeper.topics.messages import Example, Features, Span
from riverkeeper.topics.partition import partitions
from riverkeeper.topics.store import Progress
from riverkeeper.topics.telemetry import Telemetry

BATCH = 2_000  # records, as agents take them at most
BATCHES = 20


async def measure(options: Options) -> dict[str, Any]:
    answer_promptly()
    batches = BATCHES if options.size > 10_000 else 1
    runs: dict[str, list[dict[str, float]]] = {"score": [], "ingest": [], "join": [], "learn": []}
    for _ in range(options.rounds * batches):
        runs["score"].append(_score())
        runs["ingest"].append(_ingest())
        runs["join"].append(_join())
        runs["learn"].append(_learn())
    return {f"{agent}, us a record": medians(found) for agent, found in runs.items()}


class Clock:
    """Processor microseconds a record, stage by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = work()
        self.stages[stage] = (time.process_time() - began) / BATCH * 1e6
        return made


def _runtime(declared: Declared) -> Runtime:
    connection = Connection("127.0.0.1:1")  # which nobody uses
    pipeline = declared.pipeline()
    return Runtime(
        connection, pipeline, Telemetry(), replica="stages", transactions=True, signing_key=KEY.encode()
    )


def _records(outs: Sequence[Out]) -> tuple[TopicPartition, list[ConsumerRecord]]:
    tp, now = TopicPartition(outs[0].topic, 0), int(time.time() * 1000)
    sizes = [(len(out.key or b""), len(out.value or b"")) for out in outs]
    return tp, [
        ConsumerRecord(tp.topic, 0, i, now, 1, out.key, out.value, None, *size, tuple(out.headers))
        for i, (out, size) in enumerate(zip(outs, sizes, strict=True))
    ]


def _appended(outs: Sequence[Out]) -> None:
    batch = BatchBuilder(BATCH_BYTES, 0)
    for out in outs:
        headers = list(out.headers)
        if batch.append(key=out.key, value=out.value, timestamp=0, headers=headers) is None:
            batch = BatchBuilder(BATCH_BYTES, 0)
            batch.append(key=out.key, value=out.value, timestamp=0, headers=headers)


def _score() -> dict[str, float]:
    runtime, clock = _runtime(Declared("stages")), Clock()
    pipeline, agent = runtime.pipeline, Score(runtime)
    tp, records = _records(list(facts(pipeline, BATCH)))
    progress = Progress({tp: 0}, frozenset([tp.topic]))
    work = ScoreWork(agent, progress, FoldState(), fresh=True)
    first = fastpath.compile("binary", trained(ESTIMATORS["linear"], NUMBERS))
    spare = fastpath.compile("binary", trained(baseline, ("x0",)))
    serving = {
        "first": Serving("first", 1, 0, 3_000, first),
        "baseline": Serving("baseline", 1, 0, 3_000, spare, 5.0),
    }
    view = View(agent.verdicts.routing, serving, lease=True)
    admitted = clock("origin: what was not read before", lambda: progress.admit(tp, records))
    decoded, _ = clock("decode and validate", lambda: work._decoded(admitted))
    envelopes = [envelope for _, envelope in decoded]
    rows = clock("features", lambda: pipeline.graph.extract(FoldState(), envelopes))
    ids = [envelope.id for envelope in envelopes]
    answers = clock(
        "both models, bounds, who answers", lambda: answer(pipeline, view, ids, rows, time.monotonic)
    )
    keys = work._join_keys(decoded)
    encoded = [key.encode() for key in keys]
    where = clock("partition", lambda: partitions(encoded, pipeline.partitions))
    outs = clock(
        "lineage, origin, encode",
        lambda: work._predictions(tp, decoded, rows, answers, view, keys, encoded, where),
    )
    clock("into batches", lambda: _appended(outs))
    work._written.append((Span(0, 0, BATCH), [record.timestamp for record in records], answers))
    clock("telemetry and vitals", work.delivered)
    return {"in all": sum(clock.stages.values()), **clock.stages}


def _ingest() -> dict[str, float]:
    runtime, clock = _runtime(Declared("stages")), Clock()
    pipeline, agent = runtime.pipeline, Ingest(runtime)
    tp, records = _records(list(events(pipeline, BATCH)))
    assert pipeline.dedupe is not None
    recent, parser = RecentIds(pipeline.dedupe), Parser(pipeline)
    work = IngestWork(agent, Progress({tp: 0}), recent, fresh=True)
    parsed = clock("parse, validate, encode", lambda: [parser.parse(record) for record in records])
    pairs = list(zip(records, parsed, strict=True))
    clock("dedupe, size", lambda: [work._checked(record, made) for record, made in pairs])
    outs = clock("partition, origin", lambda: work._outs(tp, pairs))
    clock("into batches", lambda: _appended(outs))
    clock("ids to the store", work.changes)
    return {"in all": sum(clock.stages.values()), **clock.stages}


def _join() -> dict[str, float]:
    """Of a prediction that waits and of its outcome, which takes it out; nothing else waits."""
    runtime, clock = _runtime(Declared("stages")), Clock()
    pipeline, packing = runtime.pipeline, Packing()
    predicted, waits = _records(list(predictions(pipeline, BATCH)))
    came, truths = _records(list(outcomes(pipeline, BATCH)))
    matcher = Matcher(pipeline.label.within, pipeline.max_pending)
    progress = Progress({predicted: 0, came: 0}, frozenset([predicted.topic, came.topic]))
    work = JoinWork(Join(runtime), 0, progress, matcher, fresh=True)
    clock("origins", lambda: (progress.admit(predicted, waits), progress.admit(came, truths)))
    pairs = [(record, record.value or b"") for record in waits]
    served = clock("prediction: decode and validate", lambda: [packing.decode(value) for _, value in pairs])
    kept = clock(
        "prediction: pack",
        lambda: [packing.pack(one, value) for one, (_, value) in zip(served, pairs, strict=True)],
    )
    keys = [one.key.encode() for one in served]
    rows = [(record.timestamp, record.offset, value) for record, value in pairs]
    clock(
        "prediction: wait",
        lambda: [matcher.predict(key, it, *row) for key, it, row in zip(keys, kept, rows, strict=True)],
    )
    said = clock(
        "outcome: decode and validate",
        lambda: [work._outcome.decode(record.value or b"") for record in truths],
    )
    labels = [
        (pipeline.label_of(each.data), record.timestamp) for each, record in zip(said, truths, strict=True)
    ]
    met = clock(
        "outcome: meet",
        lambda: [matcher.come_true(key, *label) for key, label in zip(keys, labels, strict=True)],
    )
    made = clock(
        "example: unpack",
        lambda: [
            packing.example(one.key, it, label)
            for one, ((_, it),), (label, _) in zip(served, met, labels, strict=True)
        ],
    )
    pairs_out = list(zip(truths, made, strict=True))
    outs = clock("example: encode", lambda: [work._out(record, b"x/0/1/0", one) for record, one in pairs_out])
    entries = clock("entries of the store", work.changes)
    owner = Owner(0, "store", None, work)  # type: ignore[arg-type]  # which writes nothing
    state = clock("entries of the store, as records", lambda: owner.entries(entries))
    clock("into batches", lambda: _appended([*outs, *state]))
    return {"in all": sum(clock.stages.values()), **clock.stages}


def _learn() -> dict[str, float]:
    pipeline, clock = Declared("stages").pipeline(), Clock()
    values = [out.value or b"" for out in examples(pipeline, BATCH)]
    decoder = msgspec.json.Decoder(Example)
    found = clock("decode", lambda: [decoder.decode(value) for value in values])
    rows = clock("texts made one", lambda: [interned(example.features) for example in found])
    scorer = fastpath.Scorer("binary", trained(ESTIMATORS["linear"], NUMBERS, 100))
    clock("error of what is published", lambda: scorer([example.features for example in found]))
    clock("River's learn_one", lambda: _taught(rows, found))
    return {"in all": sum(clock.stages.values()), **clock.stages}


def _taught(rows: Sequence[Features], found: Sequence[Example]) -> None:
    estimator = ESTIMATORS["linear"]()
    for row, example in zip(rows, found, strict=True):
        learn("binary", estimator, row, example.label)
