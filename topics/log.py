"""The log as agents see it: read from a position, write and be told, commit or be fenced.

All that talks to Kafka on the data path stands here. Nothing in this module decides what a record
means; positions are the caller's, so a client's idea of a committed offset never matters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, Protocol

import structlog
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    ProducerFenced,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from .connection import Connection

log = structlog.get_logger(__name__)

Headers = Sequence[tuple[str, bytes]]

MAX_RECORD_BYTES = 900_000  # of key, value and headers; Kafka's default limit on a batch is 1 048 588
MAX_DEAD_BYTES = 12_000_000  # of a dead letter: an event that was too large itself, kept whole
BATCH_BYTES = 900_000  # of one produce batch, below the broker's limit with room for its framing
FETCH_WAIT_MS = 100  # a fetch on the old position delays a seek by this at most
DELIVERY_TIMEOUT_MS = 30_000  # of one batch, a commit or a fencing, retries included; then it has failed
LINGER_BYTES = 1_000_000  # for which a reader in no hurry waits: about one step's predictions
READ_TIMEOUT_MS = 6_000  # of one request of a reader, which asks to wait for FETCH_WAIT_MS at most
REQUEST_TIMEOUT_MS = 10_000  # of one request: a dead connection is given up, and two more fit into a delivery
TRANSACTION_TIMEOUT_MS = 10_000  # a stalled writer holds up read_committed readers this long at most
METADATA_MS = 5_000  # between looks at which partitions the group's topics have
HEARTBEAT_MS = 2_500  # a member hears of a rebalance by the answer, however long sessions last
PROGRESS_SECONDS = 1.0  # a commit that only tools read may take from the data's time
STOP_SECONDS = 2.0  # a producer may take to stop; Ctrl-C promises 5 s in all
STOP_LOOK_SECONDS = 0.05  # between looks at whether a consumer has stopped
RETRY_BACKOFF_MS = 20  # between retries of one request
TRANSACTION_BACKOFF_MS = 2  # a transaction's end is polled this often; see docs/design.md, measured


class Record(Protocol):
    """What a reader gets: aiokafka's ConsumerRecord, by the fields that are used."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # ms; the append time where the topic says so
    key: bytes | None
    value: bytes | None
    headers: Headers


class Out(NamedTuple):
    """One record to write. The partition is computed by the writer's declaration."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class DeliveryError(Exception):
    """An output was not acknowledged: its writer must end, for what follows would leave a gap."""


class Fenced(Exception):
    """Another process has taken this partition over: drop everything known of it."""


class SourceGap(Exception):
    """A position lies outside its topic: retention passed it, or the topic was made anew."""

    def __init__(self, positions: Mapping[TopicPartition, int]) -> None:
        named = ", ".join(f"{tp.topic}/{tp.partition} at {offset}" for tp, offset in positions.items())
        super().__init__(
            f"{named}: the log no longer holds this offset; `riverkeeper skip` leads past what retention took"
        )
        self.positions = dict(positions)


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """The size a broker's limit is held against, framing included (70 bytes a record suffice)."""
    return 70 + len(key or b"") + len(value or b"") + sum(len(k) + len(v or b"") + 10 for k, v in headers)


def consumer(connection: Connection, **options: object) -> AIOKafkaConsumer:
    """A consumer that never resets an offset by itself and never sees an aborted record."""
    return connection.consumer(
        **{
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "fetch_max_wait_ms": FETCH_WAIT_MS,
            "max_partition_fetch_bytes": 2_000_000,
            "request_timeout_ms": READ_TIMEOUT_MS,
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            **options,
        },
    )


def give_up_place(consumer: AIOKafkaConsumer) -> None:
    """Before it stops in order: aiokafka lets a named member's place in its group wait for its session."""
    if consumer._coordinator is not None:
        consumer._coordinator._group_instance_id = None


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stops it, however it was just assigned and whatever it waits for.

    While aiokafka's fetcher drops an old assignment it takes its own cancellation for that of a fetch,
    goes on, and `stop` waits for ever: so it is cancelled again until it ends. And where a fetch waits
    to be tried again, its cancellation comes out of `stop` itself, which leaves the connections open.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        while not (await asyncio.wait([stopping], timeout=STOP_LOOK_SECONDS))[0]:
            if consumer._fetcher is not None:
                consumer._fetcher._fetch_task.cancel()
        if stopping.cancelled():
            await _left_open(consumer)
        else:
            stopping.result()
    finally:
        stopping.cancel()  # with whoever waits for it


async def _left_open(consumer: AIOKafkaConsumer) -> None:
    """Closes what a `stop` that was cancelled from within did not come to."""
    fetches = list(consumer._fetcher._pending_tasks) if consumer._fetcher is not None else []
    for fetch in fetches:
        fetch.cancel()
    await asyncio.gather(*fetches, return_exceptions=True)
    await consumer._client.close()


class Reader:
    """Reads partitions from the caller's positions; has no group and no memory of its own.

    With `linger_ms` the broker answers once LINGER_BYTES are there, or after that time.
    """

    def __init__(self, connection: Connection, *, linger_ms: int = 0) -> None:
        lingering = {"fetch_min_bytes": LINGER_BYTES, "fetch_max_wait_ms": linger_ms} if linger_ms else {}
        self._consumer = consumer(connection, **lingering)
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._reached: dict[TopicPartition, int] = {}  # past transaction markers, which are no records

    async def start(self) -> None:
        await self._consumer.start()

    async def stop(self) -> None:
        await stop_consumer(self._consumer)

    def read_from(self, positions: Mapping[TopicPartition, int]) -> None:
        """Replaces what is read. Records fetched from earlier positions are dropped."""
        self._assigned = frozenset(positions)
        self._reached = dict(positions)
        if not positions:
            self._consumer.assign([])
            return
        self._consumer.assign(list(positions))
        for tp, offset in positions.items():
            self._consumer.seek(tp, offset)

    async def poll(
        self, only: Collection[TopicPartition], *, max_records: int, timeout_ms: int
    ) -> dict[TopicPartition, list[Record]]:
        """The next records of the partitions in `only`, at most `max_records` in all.

        Raises SourceGap if a position is outside its partition.
        """
        wanted = self._assigned.intersection(only)
        if not wanted:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        try:
            got: dict[TopicPartition, list[Record]] = await self._consumer.getmany(
                *wanted, timeout_ms=timeout_ms, max_records=max_records
            )
        except OffsetOutOfRangeError as error:
            raise SourceGap(error.args[0]) from error
        for tp in wanted:
            self._reached[tp] = await self._consumer.position(tp)
        return got

    def reached(self, tp: TopicPartition) -> int:
        """Everything below was polled, or is no record; 0 for what is not read."""
        return self._reached.get(tp, 0)

    def lag(self) -> dict[TopicPartition, int]:
        """Committed records known and not yet polled, by partition; those never fetched are left out."""
        ends = {tp: self._consumer.last_stable_offset(tp) for tp in self._assigned}
        return {tp: max(0, end - self._reached[tp]) for tp, end in ends.items() if end is not None}


class Writer:
    """Writes without transactions: one unacknowledged batch per partition, in order.

    After a DeliveryError the writer is spent: aiokafka numbers on past a batch that failed for
    good, which would leave a gap between what readers see.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._producer: AIOKafkaProducer | None = None
        self._spent: DeliveryError | None = None
        self.appended_ms: int | None = (
            None  # by the broker's clock, of the last write; None: it stamps nothing
        )

    async def start(self) -> None:
        self._producer = self._connection.producer(
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_DEAD_BYTES + 100_000,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )
        await self._producer.start()

    async def stop(self) -> None:
        if self._producer is not None:
            await _stop(self._producer)

    async def write(self, outs: Iterable[Out]) -> None:
        """Returns once every record is acknowledged by all in-sync replicas; else DeliveryError."""
        assert self._producer is not None, "start() comes first"
        if self._spent is not None:
            raise self._spent
        try:
            self.appended_ms = await _deliver(self._producer, outs)
        except DeliveryError as error:
            self._spent = DeliveryError(str(error))  # a fresh one: the other's traceback holds the batch
            raise


class FencedWriter:
    """The one writer of a partition's state. Starting it fences whoever wrote before.

    Without transactions (the embedded broker) nothing is fenced, and a commit is a plain write.
    """

    def __init__(self, connection: Connection, transactional_id: str, *, transactions: bool) -> None:
        self._transactions = transactions
        self._spent: Fenced | DeliveryError | None = None
        self._producer = connection.producer(
            acks="all",
            enable_idempotence=True,
            transactional_id=transactional_id if transactions else None,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_DEAD_BYTES + 100_000,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=TRANSACTION_BACKOFF_MS,
        )

    async def start(self) -> None:
        """Raises DeliveryError if the predecessor cannot be fenced in time."""
        async with _in_time("fencing"):
            await self._producer.start()

    async def stop(self) -> None:
        await _stop(self._producer)

    async def commit(self, outs: Sequence[Out]) -> None:
        """Writes all of `outs` or none. Raises Fenced or DeliveryError; the writer is then spent."""
        if self._spent is not None:
            raise self._spent
        try:
            await self._commit(outs)
        except (Fenced, DeliveryError) as error:
            self._spent = type(error)(str(error))
            raise
        except BaseException:
            self._spent = DeliveryError("a commit was given up midway: whether it stands is not known")
            raise

    async def _commit(self, outs: Sequence[Out]) -> None:
        if not self._transactions:
            await _deliver(self._producer, outs)
            return
        try:
            await self._producer.begin_transaction()
            # aiokafka commits a transaction whose batch was refused: every delivery comes first.
            await _deliver(self._producer, outs)
            async with _in_time("commit"):
                await self._producer.commit_transaction()
        except ProducerFenced as error:
            raise Fenced(str(error)) from error
        except DeliveryError as error:
            if isinstance(error.__cause__, ProducerFenced):
                raise Fenced(str(error)) from error
            with suppress(KafkaError, AssertionError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._producer.abort_transaction()
            raise
        except (KafkaError, AssertionError) as error:  # aiokafka asserts the states of a transaction
            raise DeliveryError(f"transaction: {error!r}") from error


@asynccontextmanager
async def _in_time(what: str) -> AsyncIterator[None]:
    """aiokafka retries what is idempotent without end; here it ends, and the whole stay with it."""
    try:
        async with asyncio.timeout(DELIVERY_TIMEOUT_MS / 1000):
            yield
    except TimeoutError as error:
        raise DeliveryError(f"{what}: no answer for {DELIVERY_TIMEOUT_MS} ms") from error


async def _stop(producer: AIOKafkaProducer) -> None:
    """A producer waits for its last batches as it stops; of a broker that is gone, not for ever."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await producer.stop()
    except TimeoutError:
        # What stop() did not come to: without it the sender would go on trying, unseen.
        sender = producer._sender.sender_task
        if sender is not None:
            sender.cancel()
        await producer.client.close()


async def _deliver(producer: AIOKafkaProducer, outs: Iterable[Out]) -> int | None:
    """The append time of the last batch, if the topic takes the broker's."""
    appended = None
    waiting = _batches(producer, outs)
    try:
        while waiting:
            round_ = {place: batches.pop(0) for place, batches in waiting.items()}
            appended = await _deliver_round(producer, round_)
            waiting = {place: batches for place, batches in waiting.items() if batches}
    except KafkaError as error:
        raise DeliveryError(repr(error)) from error
    return appended


def _batches(producer: AIOKafkaProducer, outs: Iterable[Out]) -> dict[tuple[str, int], list[BatchBuilder]]:
    """The records of each partition, in their order, in as few batches as they fit into."""
    batches: dict[tuple[str, int], list[BatchBuilder]] = {}
    now = int(time.time() * 1000)
    for topic, partition, key, value, headers in outs:
        place, named = (topic, partition), list(headers)
        filled = batches.get(place)
        if filled is None:
            filled = batches[place] = [producer.create_batch()]
        if filled[-1].append(key=key, value=value, timestamp=now, headers=named) is None:
            filled.append(producer.create_batch())
            if filled[-1].append(key=key, value=value, timestamp=now, headers=named) is None:
                raise DeliveryError(
                    f"{topic}/{partition}: a record of {len(value or b'')} bytes fits no batch"
                )
    return batches


async def _deliver_round(
    producer: AIOKafkaProducer, batches: Mapping[tuple[str, int], BatchBuilder]
) -> int | None:
    """One batch to each partition, all awaited, so that no partition has two on the way."""
    futures = []
    for (topic, partition), batch in batches.items():
        batch.close()
        try:
            futures.append(await producer.send_batch(batch, topic, partition=partition))
        except KafkaError:
            await asyncio.gather(*futures, return_exceptions=True)  # they fail of the same
            raise
    async with _in_time("delivery"):
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    stamps = [stamp for outcome in outcomes if (stamp := getattr(outcome, "timestamp", -1)) > 0]
    return max(stamps, default=None)


OnAssigned = Callable[[frozenset[TopicPartition]], Awaitable[None]]
OnRevoked = Callable[[], Awaitable[None]]


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """A seat in a consumer group: says which partitions are ours, and reads none of them.

    Kept apart from reading so that no client default ever decides a position. Both callbacks run
    inside the rebalance: `revoked` must return only once nothing of the old assignment is at work.
    A member with a name takes its place again, if it comes back within its session.
    """

    def __init__(
        self,
        connection: Connection,
        group: str,
        topics: Sequence[str],
        *,
        assigned: OnAssigned,
        revoked: OnRevoked,
        session_timeout_ms: int,
        name: str | None = None,
    ) -> None:
        self._assigned, self._revoked = assigned, revoked
        self._topics = list(topics)
        rebalance_ms = max(session_timeout_ms, DELIVERY_TIMEOUT_MS)
        self._consumer = consumer(
            connection,
            group_id=group,
            group_instance_id=name,
            # aiokafka's default assignor may split partition p of two topics between members.
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=min(session_timeout_ms // 4, HEARTBEAT_MS),
            rebalance_timeout_ms=rebalance_ms,
            # A join is answered when every member has joined, or the rebalance is over without some.
            request_timeout_ms=rebalance_ms + REQUEST_TIMEOUT_MS,
            max_partition_fetch_bytes=1,
            metadata_max_age_ms=METADATA_MS,
        )

    async def start(self) -> None:
        await self._consumer.start()
        self._consumer.subscribe(self._topics, listener=self)

    async def stop(self) -> None:
        give_up_place(self._consumer)
        await stop_consumer(self._consumer)

    async def watch(self) -> None:
        """Runs for ever; raises what the coordinator could not recover from."""
        while True:
            with suppress(NoOffsetForPartitionError, OffsetOutOfRangeError):
                await self._consumer.getmany(timeout_ms=500)

    def partition_counts(self) -> dict[str, int]:
        """Of the group's topics, as a broker told within METADATA_MS; 0 for one that is not there."""
        return {topic: len(self._consumer.partitions_for_topic(topic) or ()) for topic in self._topics}

    async def show_progress(self, positions: Mapping[TopicPartition, int]) -> None:
        """Commits to the group what tools show as lag. Nothing of ours ever reads it back."""
        ours = self._consumer.assignment()
        shown = {tp: position for tp, position in positions.items() if tp in ours}
        if shown:
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await self._consumer.commit(shown)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._revoked()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._consumer.pause(*assigned)
        for tp in assigned:
            # Nothing is read here; but without a position aiokafka looks for one a thousand times a second.
            self._consumer.seek(tp, 0)
        await self._assigned(frozenset(assigned))
