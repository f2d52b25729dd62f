"""learn: examples become model versions.

The owner of partition m of `models` teaches the models that hash there. It keeps no store: a version
carries what it has learned and where to go on, so state and position cannot come apart, and the
learner goes on from the very bytes it published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

import msgspec
import structlog
from aiokafka import TopicPartition

from ..models.student import Numbered, Student, start_line
from ..models.unpickle import AllowList
from ..models.version import LIBRARY_BYTES, MAX_MANIFESTS, Assembler, BadVersion, signed
from ..topics.log import Out, Record
from ..topics.messages import UNREADABLE, Example, State, Vitals
from ..topics.partition import partition as partition_of
from ..topics.store import Inspector
from .agent import Agent, Batch, Entry, Runtime, Table, Work
from .backlog import Backlog
from .follow import Verdicts

log = structlog.get_logger(__name__)

SLICE = 200  # examples one model learns before other work of the process gets its turn; some 10 ms
SHARE_BEHIND = 0.1  # of its time that learning takes while score is behind: it never stands still
MAX_REST = 5.0  # seconds from one batch to the next then; a version is due every ten seconds or so


class LearnWork(Work):
    """Partition m of `models`: the models that hash to it."""

    def __init__(self, agent: Learn, partition: int, students: Sequence[Student]) -> None:
        self._agent = agent
        self._partition = partition
        self._students = {student.name: student for student in students}
        self._topic = agent.pipeline.topic("examples")
        self._decoder = msgspec.json.Decoder(Example)
        self._since_ms = agent.runtime.now_ms()
        self._sealed: list[Entry] = []  # versions made, not yet taken by a snapshot
        # Who learns changes in `refresh` only: whoever comes back is read for from where it stopped.
        self._working = self._wanted_at_work()

    def _wanted_at_work(self) -> frozenset[str]:
        routes = self._agent.verdicts.routing.routes
        return frozenset(name for name in self._students if routes[name].state is not State.DESTROYED)

    def _at_work(self) -> list[Student]:
        return [student for name, student in self._students.items() if name in self._working]

    @property
    def positions(self) -> Mapping[TopicPartition, int]:
        at_work = self._at_work()
        return {
            TopicPartition(self._topic, p): min(student.offsets.get(p, 0) for student in at_work)
            for p in range(self._agent.pipeline.partitions)
            if at_work
        }

    def wanted(self) -> Collection[TopicPartition]:
        return () if self._agent.resting() else self.positions.keys()

    async def process(self, batch: Batch) -> list[Out]:
        began = self._agent.runtime.monotonic()
        for tp, records in batch.items():
            numbered = list(self._decoded(records))
            for student in self._at_work():
                behind = self._behind_by_load(student, records[0])
                for i in range(0, len(numbered), SLICE):
                    part = numbered[i : i + SLICE]
                    student.study(tp.partition, part, part[-1][0] + 1, behind=behind)
                    await asyncio.sleep(0)
        self._agent.worked(self._agent.runtime.monotonic() - began)
        return []

    def _behind_by_load(self, student: Student, oldest: Record) -> bool:
        """Whether examples may be shed. What a verdict has it learn again is old, but no backlog."""
        shed = self._agent.pipeline.shed
        if shed is None or shed.examples >= 1:
            return False
        since_ms = self._agent.verdicts.routing.routes[student.name].since_ms
        waited = timedelta(milliseconds=self._agent.log_ms() - oldest.timestamp)
        return oldest.timestamp > since_ms and waited > shed.learn_after

    def _decoded(self, records: Sequence[Record]) -> Iterator[Numbered]:
        for record in records:
            try:
                yield record.offset, self._decoder.decode(record.value or b"")
            except UNREADABLE as error:
                log.error(
                    "unreadable example", offset=record.offset, partition=record.partition, error=str(error)
                )

    def _behind(self) -> list[Student]:
        routes = self._agent.verdicts.routing.routes
        return [student for name, student in self._students.items() if routes[name].line > student.line]

    def outdated(self) -> bool:
        return self._wanted_at_work() != self._working or bool(self._behind())

    async def refresh(self) -> None:
        """Starts the lines that verdicts began since the last look, and those who learn again."""
        routes, behind = self._agent.verdicts.routing.routes, self._behind()
        self._working = self._wanted_at_work()
        if not behind:
            return
        async with Inspector(self._agent.runtime.connection) as inspector:
            models = TopicPartition(self._agent.pipeline.topic("models"), self._partition)
            library = self._agent.library(await inspector.read_table(models))
            beginnings = await self._agent.beginnings(inspector)
        for student in behind:
            await asyncio.to_thread(start_line, student, routes[student.name], library, beginnings)

    def due(self, now: float) -> bool:
        return any(student.due(now) for student in self._at_work())

    async def prepare(self, now: float, *, drained: bool = False) -> None:
        """A forest takes seconds to dump and open: leases and heartbeats go on meanwhile."""
        for student in self._at_work():
            if student.due(now) or (drained and student.ahead):
                self._sealed += await asyncio.to_thread(self._version, student, now)

    def snapshot(self, now: float, *, drained: bool = False) -> list[Entry]:
        sealed, self._sealed = self._sealed, []
        return sealed

    def _version(self, student: Student, now: float) -> list[Entry]:
        runtime = self._agent.runtime
        began = runtime.monotonic()
        try:
            sealed = student.publish(now, runtime.now_ms(), runtime.signing_key)
        except (BadVersion, ValueError) as error:
            log.error("version not published", model=student.name, error=str(error))
            return []
        seconds = runtime.monotonic() - began
        student.spent(now, seconds)
        runtime.telemetry.published(student.name, sealed.manifest.size, seconds)
        return [*sealed.records(), *((key, None) for key in student.expired())]

    def vitals(self) -> list[Vitals]:
        runtime, since = self._agent.runtime, self._since_ms
        self._since_ms = runtime.now_ms()
        found = [s.vitals(runtime.replica, since, self._since_ms) for s in self._at_work()]
        for each in found:
            runtime.telemetry.learned(each.model, each.learned)
            runtime.telemetry.shed_examples(each.model, each.counts.get("examples_shed", 0))
            if each.labelled:
                live, baseline = each.error / each.labelled, each.baseline_error / each.labelled
                runtime.telemetry.errors(each.model, live, baseline)
        return found


class Learn(Agent):
    name = "learn"
    linger_ms = 50  # versions are published less often by far

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.verdicts = Verdicts(runtime)
        self.backlog = Backlog(runtime)
        self._rest_until = 0.0  # monotonic seconds

    def resting(self) -> bool:
        """Whether learning makes way for serving just now."""
        return self.runtime.monotonic() < self._rest_until and self.backlog.stands()

    def worked(self, seconds: float) -> None:
        """After work of that length, a rest that leaves learning its share of the time."""
        if self.backlog.stands():
            now = self.runtime.monotonic()
            rest = max(0.0, self._rest_until - now) + seconds * (1 / SHARE_BEHIND - 1)
            self._rest_until = now + min(MAX_REST, rest)

    @property
    def group_topics(self) -> list[str]:
        return [self.pipeline.topic("models")]

    @property
    def partitions(self) -> int:
        return self.pipeline.model_partitions

    @property
    def store(self) -> str:
        return self.pipeline.topic("models")

    async def attend(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
        self.verdicts, self.backlog = Verdicts(self.runtime), Backlog(self.runtime)
        return [*await self.verdicts.follow(stack), *await self.backlog.follow(stack)]

    async def open(self, partition: int, table: Table, inspector: Inspector) -> LearnWork:
        library = self.library(table)
        beginnings = await self.beginnings(inspector)
        allow = AllowList(self.pipeline.trusted)
        students = []
        for name in self.pipeline.models:
            if partition_of(name.encode(), self.pipeline.model_partitions) == partition:
                student = Student(name, self.pipeline, allow)
                start_line(student, self.verdicts.routing.routes[name], library, beginnings)
                students.append(student)
        return LearnWork(self, partition, students)

    def library(self, table: Table) -> Assembler:
        """Every version that a partition of `models` holds, of those that were signed with our key."""
        library = Assembler(keep=MAX_MANIFESTS, max_bytes=LIBRARY_BYTES)  # the log itself says what is kept
        for key, value in table.items():
            try:
                signed(key, value, self.runtime.signing_key)
                library.feed(key, value)
            except BadVersion as error:
                log.error("unreadable version", key=key, error=str(error))
        return library

    async def beginnings(self, inspector: Inspector) -> dict[int, int]:
        topic = self.pipeline.topic("examples")
        tps = [TopicPartition(topic, p) for p in range(self.pipeline.partitions)]
        return {tp.partition: offset for tp, offset in (await inspector.beginnings(tps)).items()}
