"""Work whose position, seen origins and state are kept together in the agent's store."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec
from aiokafka import TopicPartition

from ..models.pipeline import Pipeline
from ..topics.log import MAX_DEAD_BYTES, MAX_RECORD_BYTES, Out, Record, record_bytes
from ..topics.messages import BadRecord, ErrorCode, Origin
from ..topics.store import HEAD_KEY, ORIGIN, Head, Inspector, Progress, RevisionMismatch, StoreLost
from .agent import Agent, Batch, Entry, Limits, Runtime, Work

MAX_REASON_CHARS = 1_000  # of a dead letter: parsers may quote what they did not understand


class Tracked(Work):
    """A step over admitted records, and a store that holds what it changed."""

    def __init__(self, progress: Progress, revision: str, limits: Limits, *, fresh: bool) -> None:
        self.progress = progress
        self._revision = revision
        self._limits = limits
        self._fresh = fresh  # no head stands in the store, or one that lets another revision begin
        self._since = 0  # records read since the last snapshot
        self._at = 0.0  # monotonic seconds of it

    @abstractmethod
    async def step(self, tp: TopicPartition, records: Sequence[Record]) -> list[Out]:
        """The outputs of the records, in their order; advances the state."""

    @abstractmethod
    def changes(self) -> list[Entry]:
        """The entries of the store that changed since the last call."""

    @property
    def positions(self) -> Mapping[TopicPartition, int]:
        return self.progress.positions

    async def process(self, batch: Batch) -> list[Out]:
        outs: list[Out] = []
        for tp, records in batch.items():
            self._since += len(records)
            admitted = self.progress.admit(tp, records)
            if admitted:
                outs += await self.step(tp, admitted)
        return outs

    def pass_over(self, tp: TopicPartition, reached: int) -> None:
        self._since += self.progress.pass_over(tp, reached)

    def repeats(self) -> int:
        found, self.progress.repeats = self.progress.repeats, 0
        return found

    def due(self, now: float) -> bool:
        return self._since >= self._limits.checkpoint_records or (
            self._since > 0 and now - self._at >= self._limits.checkpoint_seconds
        )

    def snapshot(self, now: float, *, drained: bool = False) -> list[Entry]:
        self._since, self._at = 0, now
        head = self.progress.head(self._revision, drained=drained)
        return [*self.changes(), (HEAD_KEY, msgspec.json.encode(head))]

    def opening(self) -> list[Entry]:
        """A head that names this revision: from the first output on, another one must wait."""
        if not self._fresh:
            return []
        return [(HEAD_KEY, msgspec.json.encode(self.progress.head(self._revision, drained=False)))]


async def resume(
    pipeline: Pipeline,
    table: Mapping[bytes, bytes],
    inputs: Sequence[TopicPartition],
    filtered: frozenset[str],
    inspector: Inspector,
) -> tuple[Progress, bool]:
    """Where to go on, and whether the store holds no head of this revision yet.

    Raises RevisionMismatch if other agents may still be at work under another revision, SourceGap
    if an input no longer is the log that was read.
    """
    stored = table.get(HEAD_KEY)
    if stored is None:
        return Progress(await inspector.beginnings(inputs), filtered), True
    head = msgspec.json.decode(stored, type=Head)
    if head.revision != pipeline.revision and not head.drained:
        raise RevisionMismatch(
            f"{pipeline.name}: the store of {inputs[0].topic}/{inputs[0].partition} was written under revision "
            f"{head.revision}, this process runs {pipeline.revision}. Stop the agents of the old revision in "
            "order (SIGTERM), so that they mark their stores as drained; then start again"
        )
    progress = Progress.restore(head, inputs, filtered)
    await inspector.check(progress.positions, progress.last)
    return progress, head.drained


async def check_store(
    agent: Agent,
    partition: int,
    table: Mapping[bytes, bytes],
    inputs: Sequence[TopicPartition],
    outputs: Sequence[TopicPartition],
    inspector: Inspector,
) -> None:
    """Raises StoreLost if the store was cut, or emptied though there are outputs that cannot be made again.

    Outputs by origin can, while the inputs are there from their beginning: readers pass over the copies.
    Else the outputs are searched for one whose cause is among the inputs, which takes as long as they are:
    that one partition of them is not empty tells nothing, for other partitions of the inputs lead there, too.
    The embedded broker cuts every topic, and outlives no agent that could have written before.
    """
    if not agent.runtime.transactions:
        return
    store = TopicPartition(agent.store, partition)
    begin, _ = await inspector.range(store)
    if begin:
        raise StoreLost(
            f"{agent.store}/{partition}: its first {begin} records were deleted, and with them part of what "
            f"{agent.name} knows; keep it compacted only, stop {agent.name}, delete the topic and create it anew"
        )
    if HEAD_KEY in table:
        return
    if not agent.transactional_outputs and not any((await inspector.beginnings(inputs)).values()):
        return
    for tp in outputs:
        if await inspector.has_effect(tp, inputs):
            raise StoreLost(
                f"{agent.store}/{partition} is empty, though {agent.name} has written to {tp.topic}: what it "
                f"would write again cannot be told from that. Restore the store from a copy; or stop the agents, "
                f"make it, {tp.topic} and all that is made of that anew, and start again"
            )


def unreadable(runtime: Runtime, agent: str, record: Record, error: Exception) -> Out:
    """The dead letter of a record on one of our own topics that does not decode; it is counted."""
    runtime.telemetry.dead(agent, ErrorCode.UNREADABLE)
    return dead_letter(runtime.pipeline, record, BadRecord(ErrorCode.UNREADABLE, str(error)))


def dead_letter(pipeline: Pipeline, record: Record, bad: BadRecord) -> Out:
    """The record's own key, value and headers, behind its origin, the code and the reason.

    What no dead letter can hold (a topic that others declared larger than ours) is cut, and the whole
    one's size and hash stand in its place.
    """
    source = f"{record.topic}/{record.partition}".encode()
    headers = [
        (ORIGIN, Origin(source, record.offset, 0).header()),
        ("code", bad.code.value.encode()),
        ("reason", bad.reason[:MAX_REASON_CHARS].encode(errors="replace")),
    ]
    value, original = record.value, record.headers
    if record_bytes(record.key, value, original) > MAX_DEAD_BYTES - MAX_RECORD_BYTES:
        whole = value or b""
        digest = sha256(whole).hexdigest().encode()
        headers += [("cut-from-bytes", b"%d" % len(whole)), ("cut-from-sha256", digest)]
        value, original = whole[:MAX_RECORD_BYTES], ()
    return Out(pipeline.topic("dead"), record.partition, record.key, value, [*headers, *original])
