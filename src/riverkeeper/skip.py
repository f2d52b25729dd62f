"""An operator's way on where retention took records that an agent had not read: what is gone is passed over, on record."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from aiokafka import TopicPartition

from .models.features import PipelineError, did_you_mean
from .models.pipeline import Pipeline
from .topics.connection import Connection
from .topics.log import FencedWriter, Out, SourceGap
from .topics.store import HEAD_KEY, MAX_GAPS, Gap, Head, Inspector, place

STORED = ("ingest", "score", "join")  # learn passes over what is gone by itself: its versions say so


async def skip(
    connection: Connection, pipeline: Pipeline, where: str, reason: str, *, by: str
) -> Sequence[Gap]:
    """Moves the checkpoint of "agent/partition" to where its inputs begin now; returns what it passed over.

    Whoever owns the partition is fenced, and takes it over anew from there.
    Raises PipelineError for a name that is not one and if there is nothing to pass over or an
    input was made anew; Fenced if the owner's restart came in between.
    """
    agent, partition = _named(pipeline, where)
    store = pipeline.topic(f"{agent}.store")
    async with Inspector(connection) as inspector:
        await _passed_over(inspector, store, partition, where)  # else nobody is fenced for nothing
        writer = FencedWriter(connection, pipeline.transactional_id(agent, partition), transactions=True)
        try:
            await writer.start()
            head, gone = await _passed_over(inspector, store, partition, where)
            stamped = [msgspec.structs.replace(g, reason=reason, by=by, at_ms=_now_ms()) for g in gone]
            moved = msgspec.structs.replace(
                head,
                positions=head.positions | {gap.place: gap.end for gap in stamped},
                last={at: last for at, last in head.last.items() if at not in {g.place for g in stamped}},
                gaps=[*head.gaps, *stamped][-MAX_GAPS:],
            )
            await writer.commit([Out(store, partition, HEAD_KEY, msgspec.json.encode(moved))])
        finally:
            await writer.stop()
    return stamped


def _named(pipeline: Pipeline, where: str) -> tuple[str, int]:
    agent, _, number = where.partition("/")
    if agent not in STORED:
        hint = did_you_mean(agent, STORED, f"; one of {', '.join(STORED)} is")
        raise PipelineError(f"{agent!r} is no agent with a position to move{hint}")
    if not number.isdecimal() or int(number) >= pipeline.partitions:
        raise PipelineError(
            f"{where!r} names no partition: write {agent}/0 to {agent}/{pipeline.partitions - 1}"
        )
    return agent, int(number)


async def _passed_over(
    inspector: Inspector, store: str, partition: int, where: str
) -> tuple[Head, list[Gap]]:
    table = await inspector.read_table(TopicPartition(store, partition))
    if HEAD_KEY not in table:
        raise PipelineError(f"{where} has no checkpoint in {store}: it has read nothing yet")
    head = msgspec.json.decode(table[HEAD_KEY], type=Head)
    gone = []
    for at, position in head.positions.items():
        topic, _, number = at.rpartition("/")
        tp = TopicPartition(topic, int(number))
        begin, _ = await inspector.range(tp)
        if position < begin:
            gone.append(Gap(at, position, begin))
        else:
            await _is_the_same(inspector, tp, position, head)
    if not gone:
        raise PipelineError(f"{where} misses nothing: all from its position on is there")
    return head, gone


async def _is_the_same(inspector: Inspector, tp: TopicPartition, position: int, head: Head) -> None:
    at = place(tp)
    try:
        await inspector.check({tp: position}, {tp: head.last[at]} if at in head.last else {})
    except SourceGap as gap:
        raise PipelineError(
            f"{at} was made anew: its old offsets come again for other records, and what agents wrote for those could "
            "not be told from what they would write now. Make the pipeline's topics anew, or name the pipeline anew"
        ) from gap


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
