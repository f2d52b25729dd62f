"""The loop under every agent: batch in, step, batch out, state, commit.

An agent's own file says what one partition's state is and what a batch does to it (`Work`), and
which topics that takes (`Agent`). When to read, write, checkpoint, take over and stop is decided
here, once. docs/design.md, "Exactly once, twice over", gives the rules this loop keeps.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import ClassVar

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import AuthenticationFailedError, KafkaError, SaslAuthenticationFailed

from ..models.pipeline import Pipeline
from ..topics import stray
from ..topics.catalog import TopicMissing
from ..topics.connection import Connection
from ..topics.log import (
    DeliveryError,
    Fenced,
    FencedWriter,
    Membership,
    Out,
    Reader,
    Record,
    SourceGap,
    Writer,
)
from ..topics.messages import Vitals
from ..topics.rights import refusal
from ..topics.seat import Seat
from ..topics.store import Inspector, RevisionMismatch, StoreLost
from ..topics.telemetry import Telemetry
from ..topics.vitals import pack

log = structlog.get_logger(__name__)

POLL_MS = 100  # one wait for records; what else is due waits this long at most
PARALLEL_TAKEOVERS = 4  # stores read at once: each holds one partition's state in memory twice
MAX_RESTARTS = 12  # of one agent within RESTART_WINDOW; then its process ends and says why
RESTART_WINDOW = 300.0  # seconds
CLOCK_ACKS = 16  # acknowledgements by which the log's clock is known: a slow one tells it too early
GONE_SECONDS = 12.0  # that a topic is not to be seen, in two looks at least, before it counts as deleted
MAX_BACKOFF = 10.0  # seconds between restarts; a broker that is back is met within this
TURNS_TO_SEND = 8  # of the event loop, by which aiokafka has a batch on the wire


class AgentFailed(Exception):
    """An agent restarted too often; its process has to end."""


class PartitionsDiffer(Exception):
    """A topic has other partitions than declared: outputs would go astray."""


# Trying again cannot help: somebody has to change something first.
FATAL = (
    RevisionMismatch,
    TopicMissing,
    AuthenticationFailedError,
    SaslAuthenticationFailed,
    PartitionsDiffer,
)


@dataclass(frozen=True)
class Limits:
    """The bounds of one agent's loop."""

    max_batch: int = 2_000  # records a step; about 0.1 s of work, so that a lease and a heartbeat survive it
    checkpoint_seconds: float = 1.0  # work that a crash repeats
    checkpoint_records: int = 50_000  # the same, under load
    vitals_seconds: float = 1.0
    session_timeout_ms: int = 10_000  # a dead replica's partitions wait this long
    lease_seconds: float = 0.5


@dataclass(frozen=True)
class Runtime:
    """What every agent of a process shares. Time is an argument: `now` is in seconds since 1970."""

    connection: Connection
    pipeline: Pipeline
    telemetry: Telemetry
    replica: str
    transactions: bool
    limits: Limits = Limits()
    signing_key: bytes = b""
    seat: Callable[[str], Seat] | None = None  # takes a place in a group that a next process finds again
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def now_ms(self) -> int:
        return int(self.now() * 1000)


Batch = Mapping[TopicPartition, Sequence[Record]]
Entry = tuple[bytes, bytes | None]  # one record of a store: key, value (None removes)
Table = MutableMapping[bytes, bytes]  # what a partition of a store stands for


class Work(ABC):
    """All that an agent knows of one partition, and what it does with a batch of its inputs."""

    @property
    @abstractmethod
    def positions(self) -> Mapping[TopicPartition, int]:
        """The next offset to read of every input."""

    @abstractmethod
    async def process(self, batch: Batch) -> list[Out]:
        """One step. Records below `positions` may come again and must change nothing."""

    @abstractmethod
    def due(self, now: float) -> bool:
        """Whether the state should be made durable; `now` is monotonic seconds."""

    @abstractmethod
    def snapshot(self, now: float, *, drained: bool = False) -> list[Entry]:
        """What to write so that the state up to `positions` is durable, since the last snapshot."""

    def opening(self) -> list[Entry]:
        """What must be durable before the first output."""
        return []

    def outdated(self) -> bool:
        """Whether `refresh` has something to do."""
        return False

    async def refresh(self) -> None:  # noqa: B027  most work follows nothing
        """Takes up what was decided elsewhere; positions may go back. No checkpoint is on its way."""

    async def prepare(self, now: float, *, drained: bool = False) -> None:  # noqa: B027  most snapshots are cheap
        """Does what a snapshot needs and takes long, away from the event loop."""

    def pass_over(self, tp: TopicPartition, reached: int) -> None:  # noqa: B027  a version keeps offsets of examples only
        """All records of an input below `reached` were processed; markers may stand before it."""

    def repeats(self) -> int:
        """Copies of a cause's outputs that were passed over since the last call."""
        return 0

    def lost(self) -> None:  # noqa: B027  most work shows nothing that another process goes on to show
        """The partition is another process's to report."""

    def delivered(self) -> None:  # noqa: B027  most work has nothing to do then
        """The outputs of the last step are acknowledged."""

    def wanted(self) -> Collection[TopicPartition]:
        """The inputs to read from; those left out are paused."""
        return self.positions.keys()

    def vitals(self) -> list[Vitals]:
        """What was seen since the last call."""
        return []


@dataclass
class Owner:
    """A partition that this process owns: its writer, its work, its checkpoint on the way."""

    partition: int
    store: str
    writer: FencedWriter
    work: Work
    committing: asyncio.Task[None] | None = None

    def entries(self, entries: Sequence[Entry]) -> list[Out]:
        store, partition = self.store, self.partition
        # A NamedTuple's own constructor is a function of Python.
        return [tuple.__new__(Out, (store, partition, key, value, ())) for key, value in entries]

    async def settle(self) -> None:
        """Waits for the checkpoint on the way; raises what befell it."""
        task, self.committing = self.committing, None
        if task is not None:
            await task

    async def close(self) -> None:
        task, self.committing = self.committing, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        finally:
            await self.writer.stop()


@dataclass
class Session:
    """One stay in the consumer group: everything in it is dropped together."""

    reader: Reader
    writer: Writer
    owners: dict[int, Owner] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)  # partition -> why it is not worked on
    target: frozenset[int] | None = None  # partitions assigned, not yet taken over
    news: asyncio.Event = field(default_factory=asyncio.Event)  # a target came, or a failure
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    sending: asyncio.Task[None] | None = None  # outputs of the last step, on their way
    over: bool = False
    failure: Exception | None = None  # of a hand-over: aiokafka logs and forgets what a listener raises

    def end(self) -> None:
        self.over = True

    async def sent(self) -> None:
        """Returns once all outputs are acknowledged; raises what befell them."""
        task, self.sending = self.sending, None
        if task is not None:
            await task

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """One turn. If it fails, state may be ahead of its outputs: a rebalance that waits for the turn
        must not make that durable."""
        async with self.turn:
            try:
                yield
            except BaseException:
                self.end()
                raise

    def positions(self) -> dict[TopicPartition, int]:
        """Where to read on: an input that two owners share is read from the lesser position."""
        least: dict[TopicPartition, int] = {}
        for owner in self.owners.values():
            for tp, offset in owner.work.positions.items():
                least[tp] = min(offset, least.get(tp, offset))
        return least


class Agent(ABC):
    """A replicated consumer of one pipeline. Subclasses say which topics, and open the work."""

    name: ClassVar[str]
    linger_ms: ClassVar[int] = 0  # that records may wait for others, so that a step is for many of them

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.pipeline = runtime.pipeline
        self.log = log.bind(agent=self.name, pipeline=self.pipeline.name)
        self._unready = "starting"
        self._session: Session | None = None
        self._seat: Seat | None = None
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._vitals_at = 0.0
        self._gone_since: dict[str, float] = {}  # topic -> monotonic seconds
        self.to_come = 1  # partitions of the batch at hand that are not processed yet
        self._steps = 0
        self._log_ahead: deque[float] = deque(maxlen=CLOCK_ACKS)  # ms of the log's clock less monotonic ms

    # What a subclass provides.

    @property
    @abstractmethod
    def group_topics(self) -> list[str]:
        """Topics whose partition p makes its owner the owner of p."""

    @property
    def partitions(self) -> int:
        """How many partitions each group topic is declared to have."""
        return self.pipeline.partitions

    @property
    def store(self) -> str:
        """The compacted topic whose partition p holds the state of p."""
        return self.pipeline.topic(f"{self.name}.store")

    def held(self, key: bytes, value: bytes) -> bytes:
        """What of an entry of the store is held until `open` has taken it up."""
        return value

    @abstractmethod
    async def open(self, partition: int, table: Table, inspector: Inspector) -> Work:
        """The work of a partition from what its store holds; it may take from the table what it takes up.

        Raises SourceGap, StoreLost, RevisionMismatch.
        """

    async def attend(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
        """Starts what the agent follows besides its inputs; returns what must keep running."""
        return []

    @property
    def transactional_outputs(self) -> bool:
        """Whether outputs, state and positions go in one transaction per batch, instead of by origin."""
        return False

    def own_vitals(self) -> list[Vitals]:
        """What the agent saw apart from its partitions, since the last call."""
        return []

    # What an agent knows of the log's clock.

    def log_ms(self) -> int:
        """Now by the clock that stamps what is appended, as acknowledgements told it: a process's own may
        be wrong, or jump. That one counts until the first acknowledgement, and where nothing is stamped."""
        if not self._log_ahead:
            return self.runtime.now_ms()
        return int(self.runtime.monotonic() * 1000 + max(self._log_ahead))

    async def _write(self, session: Session, outs: Sequence[Out]) -> None:
        if not outs:
            return
        steps = self._steps
        await session.writer.write(outs)
        # An acknowledgement that a step kept waiting would tell the log's clock too early.
        if session.writer.appended_ms is not None and steps == self._steps:
            self._log_ahead.append(session.writer.appended_ms - self.runtime.monotonic() * 1000)

    async def acknowledged(self) -> None:
        """Returns once all outputs of earlier steps are; raises what befell them."""
        if self._session is not None:
            await self._session.sent()

    # What a process does with an agent.

    @property
    def unready(self) -> str:
        """Why the agent is not working yet; "" if it is."""
        return self._unready

    @property
    def stopped(self) -> Mapping[int, str]:
        return self._session.stopped if self._session else {}

    def behind(self) -> int:
        """Records known to be unread, over all partitions owned here."""
        return sum(self._session.reader.lag().values()) if self._session else 0

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then leaves in order. Raises AgentFailed, or what is fatal."""
        if self.runtime.seat is not None:
            self._seat = self.runtime.seat(self.pipeline.agent_group(self.name))
        try:
            await self._work(stop)
        finally:
            if self._seat is not None:
                self._seat.leave()

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                with stray.named():
                    await self._stay(stop)
            except Exception as error:  # noqa: BLE001  the boundary: a failed stay is dropped whole and begun anew
                cause = _first(error)
                if isinstance(cause, FATAL):
                    raise cause from None
                refused = refusal(cause)
                if refused is not None:
                    raise refused from cause
                await self._back_off(cause, stop)
            finally:
                self._unready = "stopped"

    async def _back_off(self, error: Exception, stop: asyncio.Event) -> None:
        now = self.runtime.monotonic()
        self._restarts.append(now)
        self.runtime.telemetry.restarted(self.name)
        expected = isinstance(error, DeliveryError | Fenced | KafkaError | OSError)
        self.log.warning("restart", error=repr(error), exc_info=None if expected else error)
        if len(self._restarts) == MAX_RESTARTS and now - self._restarts[0] < RESTART_WINDOW:
            raise AgentFailed(
                f"{self.pipeline.name}: {self.name} failed {MAX_RESTARTS} times in {RESTART_WINDOW:.0f} s; "
                f"last: {error!r}"
            ) from error
        recent = sum(now - at < RESTART_WINDOW for at in self._restarts)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(MAX_BACKOFF, 0.1 * 2**recent)):
                await stop.wait()

    async def _stay(self, stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            session = self._session = Session(
                Reader(self.runtime.connection, linger_ms=self.linger_ms), Writer(self.runtime.connection)
            )
            await _entered(stack, session.reader)
            await _entered(stack, session.writer)
            stack.push_async_callback(self._drop, session)
            followed = await self.attend(stack)
            membership = self._membership(session, stop)
            await _entered(stack, membership)
            stack.callback(session.end)
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(_forever(f)) for f in (*followed, membership.watch())]
                await self._loop(session, membership, stop)
                await self._leave(session)
                for task in background:
                    task.cancel()

    def _membership(self, session: Session, stop: asyncio.Event) -> Membership:
        async def assigned(partitions: frozenset[TopicPartition]) -> None:
            try:
                session.target = self._owned(partitions)
            except PartitionsDiffer as error:
                session.failure = error
            session.news.set()

        async def revoked() -> None:
            async with session.turn:
                session.target = None
                if session.over:
                    return
                try:
                    await self._hand_over(session, drained=stop.is_set())
                except Exception as error:  # noqa: BLE001  raised again by the loop, which ends the stay
                    session.failure = error
                    session.end()  # what was handed over once is not handed over again

        return Membership(
            self.runtime.connection,
            self.pipeline.agent_group(self.name),
            self.group_topics,
            assigned=assigned,
            revoked=revoked,
            session_timeout_ms=self.runtime.limits.session_timeout_ms,
            name=None if self._seat is None else self._seat.name,
        )

    def _owned(self, partitions: frozenset[TopicPartition]) -> frozenset[int]:
        """The partition numbers that are ours in every group topic; a split assignment is refused."""
        by_topic = {t: {tp.partition for tp in partitions if tp.topic == t} for t in self.group_topics}
        numbers = next(iter(by_topic.values()))
        if any(other != numbers for other in by_topic.values()):
            raise PartitionsDiffer(
                f"{self.name}: {by_topic} is split; give the topics equal partition counts"
            )
        if numbers and max(numbers) >= self.partitions:
            raise self._too_many(self.group_topics[0], max(numbers) + 1)
        return frozenset(numbers)

    async def _loop(self, session: Session, membership: Membership, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._report(session, membership)  # and so know the log's clock before the first batch
            if not session.owners:
                await self._idle(session)
            async with session.at_work():
                if session.failure is not None:
                    raise session.failure
                if session.target is not None:
                    await self._take_over_all(session)
                if session.owners:
                    await self._take_turn(session)
            await asyncio.sleep(0)

    async def _idle(self, session: Session) -> None:
        """Waits for partitions; not in a turn, for which a rebalance would have to wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_MS / 1000):
                await session.news.wait()
        session.news.clear()

    # One turn.

    async def _take_turn(self, session: Session) -> None:
        outdated = [owner for owner in session.owners.values() if owner.work.outdated()]
        if outdated or (session.sending is not None and session.sending.done()):
            await session.sent()
        for owner in outdated:
            await owner.settle()
            await owner.work.refresh()
        if outdated:
            session.reader.read_from(session.positions())
        wanted = {tp for owner in session.owners.values() for tp in owner.work.wanted()}
        try:
            batch = await session.reader.poll(
                wanted, max_records=self.runtime.limits.max_batch, timeout_ms=POLL_MS
            )
        except SourceGap as gap:
            await self._stop_partitions(session, gap)
            return
        began = self.runtime.monotonic()
        if batch:
            await self._step(session, batch)
            self.runtime.telemetry.stepped(
                self.name, sum(map(len, batch.values())), self.runtime.monotonic() - began
            )
            for tp, records in batch.items():
                self.runtime.telemetry.read(self.name, tp.topic, len(records))
        for owner in session.owners.values():
            for tp in owner.work.positions:
                owner.work.pass_over(tp, session.reader.reached(tp))
        await self._checkpoint(session)

    async def _step(self, session: Session, batch: Batch) -> None:
        self._steps += 1
        made: list[tuple[Owner, list[Out]]] = []
        shares = [
            (owner, share)
            for owner in session.owners.values()
            if (share := {tp: records for tp, records in batch.items() if tp in owner.work.positions})
        ]
        for done, (owner, share) in enumerate(shares):
            self.to_come = len(shares) - done
            made.append((owner, await owner.work.process(share)))
        outs = [out for _, mine in made for out in mine]
        # Nothing of this step may stand in the log before all of the last one does: of what comes later a reader
        # takes the earlier for repeats.
        await session.sent()
        if self.transactional_outputs and self.runtime.transactions:
            for owner, _ in made:
                await owner.settle()  # a producer has one transaction at a time
            now = self.runtime.monotonic()
            states = [owner.entries(owner.work.snapshot(now)) for owner, _ in made]
            sending = _all(
                owner.writer.commit([*mine, *state])
                for (owner, mine), state in zip(made, states, strict=True)
            )
        else:
            sending = _named(self._write(session, outs))
        session.sending = asyncio.create_task(self._send(session, sending, outs))
        for _ in range(TURNS_TO_SEND):
            await asyncio.sleep(0)

    async def _send(self, session: Session, sending: Awaitable[None], outs: Sequence[Out]) -> None:
        await sending
        self.runtime.telemetry.wrote(self.name, outs)
        for owner in session.owners.values():
            owner.work.delivered()

    async def _checkpoint(self, session: Session) -> None:
        """Starts the checkpoints that are due, once all outputs up to here are acknowledged."""
        now = self.runtime.monotonic()
        for owner in session.owners.values():
            if owner.committing is not None and owner.committing.done():
                await owner.settle()
            if owner.committing is None and owner.work.due(now):
                await session.sent()
                await owner.work.prepare(now)
                entries = owner.entries(owner.work.snapshot(now))
                owner.committing = asyncio.create_task(self._commit(owner, entries))

    async def _commit(self, owner: Owner, entries: list[Out]) -> None:
        began = self.runtime.monotonic()
        await owner.writer.commit(entries)
        self.runtime.telemetry.checkpointed(self.name, self.runtime.monotonic() - began)

    # Taking over and handing over.

    async def _take_over_all(self, session: Session) -> None:
        assert session.target is not None
        wanted, session.target = session.target, None
        session.stopped.clear()
        self.runtime.telemetry.partition_stopped(self.name, 0)
        limit = asyncio.Semaphore(PARALLEL_TAKEOVERS)
        async with asyncio.TaskGroup() as group:
            for partition in wanted - session.owners.keys():
                group.create_task(_named(self._take_over(session, partition, limit)))
        session.reader.read_from(session.positions())
        self._unready = ""
        self.log.info("partitions", owned=sorted(session.owners), stopped=session.stopped)

    async def _take_over(self, session: Session, partition: int, limit: asyncio.Semaphore) -> None:
        """Fence, read, check; the caller seeks and opens. Any other order serves stale state."""
        async with limit:
            writer = FencedWriter(
                self.runtime.connection,
                self.pipeline.transactional_id(self.name, partition),
                transactions=self.runtime.transactions,
            )
            try:
                await writer.start()
                async with Inspector(self.runtime.connection) as inspector:
                    table = await inspector.read_table(TopicPartition(self.store, partition), self.held)
                    work = await self.open(partition, table, inspector)
                owner = Owner(partition, self.store, writer, work)
                opening = work.opening()
                if opening:
                    await writer.commit(owner.entries(opening))
            except (SourceGap, StoreLost) as error:
                await writer.stop()
                self._stop_partition(session, partition, error)
            except BaseException:
                await writer.stop()
                raise
            else:
                session.owners[partition] = owner
                self.runtime.telemetry.took_over(self.name)

    async def _stop_partitions(self, session: Session, gap: SourceGap) -> None:
        await session.sent()
        for partition, owner in list(session.owners.items()):
            if gap.positions.keys() & owner.work.positions.keys():
                del session.owners[partition]
                await owner.close()
                self._stop_partition(session, partition, gap)
        session.reader.read_from(session.positions())

    def _stop_partition(self, session: Session, partition: int, error: SourceGap | StoreLost) -> None:
        session.stopped[partition] = str(error)
        self.runtime.telemetry.partition_stopped(self.name, len(session.stopped))
        self.log.error("partition stopped", partition=partition, reason=str(error))

    async def _leave(self, session: Session) -> None:
        async with session.turn:
            if session.failure is not None:
                raise session.failure
            if session.target is not None:
                await self._take_over_all(session)
            await self._hand_over(session, drained=True)
            session.over = True

    async def _hand_over(self, session: Session, *, drained: bool) -> None:
        """Makes what was done durable, and lets go of every partition."""
        self._unready = "waiting for partitions"
        for tp in session.positions():
            self.runtime.telemetry.forget_lag(self.name, tp.topic, tp.partition)
        session.reader.read_from({})
        await session.sent()
        owners = list(session.owners.values())
        await _all(self._part_with(owner, drained=drained) for owner in owners)
        session.owners.clear()

    async def _part_with(self, owner: Owner, *, drained: bool) -> None:
        await owner.settle()
        now = self.runtime.monotonic()
        await owner.work.prepare(now, drained=drained)
        entries = owner.work.snapshot(now, drained=drained)
        if entries:
            await owner.writer.commit(owner.entries(entries))
        owner.work.lost()
        await owner.close()

    async def _drop(self, session: Session) -> None:
        """Forgets everything without a word to the log: whoever comes next starts at the checkpoint."""
        session.over = True
        closing = [owner.close() for owner in session.owners.values()]
        session.owners.clear()
        if session.sending is not None:
            session.sending.cancel()
            closing.append(session.sent())
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                self.log.info("not closed in order", error=repr(outcome))

    # What is told to others.

    async def _report(self, session: Session, membership: Membership) -> None:
        now = self.runtime.monotonic()
        if now - self._vitals_at < self.runtime.limits.vitals_seconds:
            return
        self._vitals_at = now
        self._check_topics(membership.partition_counts(), now)
        vitals = [v for owner in session.owners.values() for v in owner.work.vitals()]
        vitals += self.own_vitals()
        vitals += [self._trouble(p, why) for p, why in session.stopped.items()]
        repeats = sum(owner.work.repeats() for owner in session.owners.values())
        self.runtime.telemetry.duplicates(self.name, repeats)
        topic = self.pipeline.topic("vitals")
        await self._write(session, [Out(topic, 0, key, value) for key, value in pack(vitals)])
        for tp, lag in session.reader.lag().items():
            self.runtime.telemetry.lag(self.name, tp.topic, tp.partition, lag)
        await membership.show_progress(session.positions())

    def _check_topics(self, counts: Mapping[str, int], now: float) -> None:
        """Topics go and grow without a word to who reads them: Kafka's clients wait for them to come back."""
        for topic, count in counts.items():
            if count:
                self._gone_since.pop(topic, None)
            elif now - self._gone_since.setdefault(topic, now) >= GONE_SECONDS:
                raise TopicMissing(topic)
            if count > self.partitions:
                raise self._too_many(topic, count)

    def _too_many(self, topic: str, count: int) -> PartitionsDiffer:
        return PartitionsDiffer(
            f"{topic} has {count} partitions, but {self.partitions} are declared; "
            "drain the agents before partitions are added, and declare the new count"
        )

    def _trouble(self, partition: int, why: str) -> Vitals:
        now = self.runtime.now_ms()
        return Vitals(
            agent=self.name,  # type: ignore[arg-type]  # the four names are the four agents
            replica=self.runtime.replica,
            model="",
            from_ms=now,
            to_ms=now,
            trouble=f"{self.name}/{partition}: {why}",
        )


async def _entered(stack: AsyncExitStack, service: Reader | Writer | Membership) -> None:
    stack.push_async_callback(service.stop)
    await service.start()


def _first(error: BaseException) -> Exception:
    """The first failure inside a task group's, which is what the others were cancelled for."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """One that fails leaves the others time: none may be at work once this has returned."""
    for outcome in await asyncio.gather(*map(_named, works), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _named(work: Awaitable[None]) -> None:
    """For whoever takes a cancelled task for one that was asked to end."""
    with stray.named():
        await work


async def _forever(work: Awaitable[None]) -> None:
    await _named(work)
    raise RuntimeError("a task that runs for ever has ended")
