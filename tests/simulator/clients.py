"""aiokafka's clients, by the methods that the agents call, over the model of Kafka.

What the library does beside the protocol is kept where it decides something: which errors are retried
without end, which come to the caller and which end the producer; that a batch which failed for good leaves
a gap in the sequence; that a rebalance listener's failure is swallowed; that a commit goes through even if
a batch of it was refused. Read in aiokafka 0.14's producer/sender.py, producer/message_accumulator.py,
consumer/fetcher.py and consumer/group_coordinator.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError

from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Headers
from tests.simulator.kafka import Answer, Joined, Kafka, Message, Stored
from tests.simulator.loop import CURRENT, Life, Process

CONCURRENT_SECONDS = 0.02  # aiokafka's own wait while the last transaction is being marked
METADATA_SECONDS = 0.1  # between looks for a leader
REQUEST_SECONDS = 40.0  # aiokafka's default request time-out: of an offset request, retries included
OVERLAPPING = "a transaction was begun before the last one had ended"
MAX_FETCHED = 500  # aiokafka's max_poll_records is none; ours asks for at most 2 000


def _current() -> Process:
    process = CURRENT.get()
    assert process is not None, "clients belong to a process"
    return process


class Network:
    """Between processes and the cluster: requests and answers take time, get lost, and overtake each other."""

    def __init__(
        self,
        kafka: Kafka,
        *,
        latency: float = 0.002,
        stragglers: float = 0.0,
        loss: float = 0.0,
        sent: Callable[[Process, str, list[Message]], None] = lambda process, topic, messages: None,
    ) -> None:
        self.kafka = kafka
        self.loop = kafka.loop
        self.random = kafka.loop.random
        self.latency = latency  # seconds, the most that most take, one way
        self.stragglers = stragglers  # share of requests and answers that take a hundred times as long
        self.sent = sent  # told of every batch as its writer hands it over
        self.loss = loss  # share of requests and answers that never arrive

    def delay(self) -> float:
        drawn = self.random.random()
        if drawn < self.stragglers:
            return self.latency * 100 * self.random.random()
        return self.latency * drawn

    def lost(self, process: Process) -> bool:
        if process.cut_until > self.loop.now:
            return True
        return self.loss > 0 and self.random.random() < self.loss

    def request(self, apply: Callable[[], Any]) -> asyncio.Future[Any]:
        """What the cluster answers; KafkaConnectionError if the request or its answer was lost."""
        return self.ask(lambda answer: answer(apply()))

    def ask(self, apply: Callable[[Answer], None]) -> asyncio.Future[Any]:
        """The same for what is answered later, through the callable that `apply` is given."""
        process = _current()
        future = self.loop.create_future()
        if process.life is not Life.DEAD:
            self.loop.happen(self.delay(), self._arrive, process, apply, future)
        return future

    def _arrive(self, process: Process, apply: Callable[[Answer], None], future: asyncio.Future[Any]) -> None:
        if self.lost(process):
            self.loop.happen(self.delay(), self._answer, future, kafka_errors.KafkaConnectionError())
            return

        def answer(result: Any) -> None:
            self.loop.happen(self.delay(), self._return, process, future, result)

        try:
            apply(answer)
        except KafkaError as error:
            answer(error)

    def _return(self, process: Process, future: asyncio.Future[Any], result: Any) -> None:
        self._answer(future, kafka_errors.KafkaConnectionError() if self.lost(process) else result)

    @staticmethod
    def _answer(future: asyncio.Future[Any], result: Any) -> None:
        if future.done():
            return
        if isinstance(result, KafkaError):
            future.set_exception(result)
        else:
            future.set_result(result)


class SimulatedConnection(Connection):
    """A connection that leads to the model."""

    def __init__(self, network: Network) -> None:
        super().__init__("simulated:0")
        object.__setattr__(self, "network", network)

    network: Network

    def consumer(self, **options: Any) -> Any:
        return Consumer(self.network, **options)

    def producer(self, **options: Any) -> Any:
        return Producer(self.network, **options)

    def admin(self) -> Any:
        return Admin(self.network)


class Admin:
    def __init__(self, network: Network) -> None:
        self._network = network

    async def start(self) -> None:
        await self._network.request(lambda: None)

    async def close(self) -> None:
        pass

    async def list_topics(self) -> list[str]:
        counts: Mapping[str, int] = await self._network.request(lambda: self._network.kafka.counts)
        return list(counts)

    async def describe_topics(self, topics: Sequence[str]) -> list[dict[str, Any]]:
        counts: Mapping[str, int] = await self._network.request(lambda: self._network.kafka.counts)
        return [{"topic": topic, "partitions": [*range(counts[topic])]} for topic in topics]


class Batch:
    """aiokafka's BatchBuilder."""

    def __init__(self, max_bytes: int) -> None:
        self.messages: list[Message] = []
        self._room = max_bytes - 61  # a batch's own header
        self._closed = False

    def append(
        self, *, timestamp: int, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> object | None:
        if self._closed:
            return None
        size = 32 + len(key or b"") + len(value or b"") + sum(len(k) + len(v) + 4 for k, v in headers)
        if self.messages and size > self._room:
            self._closed = True
            return None
        self._room -= size
        self.messages.append(Message(key, value, tuple(headers)))
        return self

    def close(self) -> None:
        self._closed = True


class Delivered(NamedTuple):
    """What aiokafka tells of a batch that was appended: the broker's time, in ms."""

    timestamp: int


class _Sender:
    """What log.py takes of aiokafka's sender when a producer does not stop by itself."""

    def __init__(self, producer: Producer) -> None:
        self.sender_task = self
        self.cancel = producer.give_up


class _Client:
    async def close(self) -> None:
        pass


class Producer:
    """One unacknowledged batch per partition; idempotent, so that a batch is retried until it is in.

    Each partition has its own leader's connection here: in a cluster large enough it has one.
    """

    def __init__(
        self,
        network: Network,
        *,
        transactional_id: str | None = None,
        transaction_timeout_ms: int = 60_000,
        max_batch_size: int,
        request_timeout_ms: int,
        retry_backoff_ms: int,
        **_: object,
    ) -> None:
        self._network = network
        self._kafka = network.kafka
        self._loop = network.loop
        self._id = transactional_id
        self._timeout = transaction_timeout_ms / 1000
        self._max_batch = max_batch_size
        self._ttl = request_timeout_ms / 1000
        self._backoff = retry_backoff_ms / 1000
        self._pid, self._epoch = -1, -1
        self._sequences: dict[TopicPartition, int] = {}
        self._busy: dict[TopicPartition, asyncio.Future[Delivered]] = {}  # batches on their way
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._closed = False
        self._fatal: KafkaError | None = None
        self._in_transaction = self._ending = False
        self._added: dict[TopicPartition, asyncio.Future[None]] = {}
        self._sender = _Sender(self)
        self.client = _Client()

    async def start(self) -> None:
        await self._network.request(lambda: None)  # bootstrap: its failure is the caller's
        while True:
            try:
                self._pid, self._epoch = await self._network.request(
                    lambda: self._kafka.init_producer_id(self._id, self._timeout)
                )
                return
            except KafkaError:
                await asyncio.sleep(self._backoff)

    async def stop(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._busy and self._fatal is None:
            await asyncio.wait(list(self._busy.values()))
        self.give_up()

    def give_up(self) -> None:
        """The sender is cancelled: what has been sent may still arrive."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def _task(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    # Batches.

    def create_batch(self) -> Batch:
        return Batch(self._max_batch)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Delivered]:
        tp = TopicPartition(topic, partition)
        if self._id is not None and not self._in_transaction:
            raise kafka_errors.IllegalOperation("Can't send messages while not in transaction")
        began = self._loop.now
        while tp in self._busy:  # aiokafka waits until the one before has been taken
            left = began + self._ttl - self._loop.now
            if left <= 0:
                raise kafka_errors.KafkaTimeoutError()
            await asyncio.wait([self._busy[tp]], timeout=left)
        if self._closed:
            raise kafka_errors.ProducerClosed()
        if self._fatal is not None:
            raise self._fatal
        future: asyncio.Future[Delivered] = self._loop.create_future()
        future.add_done_callback(_looked_at)
        self._busy[tp] = future
        self._network.sent(_current(), topic, batch.messages)
        self._task(self._send(tp, batch, future))
        return asyncio.shield(future)

    async def _send(self, tp: TopicPartition, batch: Batch, future: asyncio.Future[Delivered]) -> None:
        try:
            appended = await self._sent(tp, batch)
        except KafkaError as error:
            future.set_exception(error)
        else:
            future.set_result(Delivered(appended))
        finally:
            self._busy.pop(tp, None)
            if not future.done():
                future.cancel()

    async def _sent(self, tp: TopicPartition, batch: Batch) -> int:
        if self._id is not None:
            await self._added_to_transaction(tp)
        born = self._loop.now
        partition = self._kafka.partitions[tp]
        sequence: int | None = None
        while True:
            if partition.leaderless_until > self._loop.now:  # known from the metadata
                if self._loop.now - born > self._ttl:
                    self._sequence(tp, batch, sequence)  # numbered, though it is never sent
                    raise kafka_errors.LeaderNotAvailableError()
                await asyncio.sleep(METADATA_SECONDS)
                continue
            sequence = self._sequence(tp, batch, sequence)
            try:
                appended: int = await self._network.request(
                    partial(
                        self._kafka.produce,
                        tp,
                        batch.messages,
                        pid=self._pid,
                        epoch=self._epoch,
                        sequence=sequence,
                        transactional_id=self._id,
                    )
                )
                return appended
            except kafka_errors.DuplicateSequenceNumber:
                return -1
            except kafka_errors.InvalidProducerEpoch as error:
                raise kafka_errors.ProducerFenced() from error
            except KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(self._backoff)

    def _sequence(self, tp: TopicPartition, batch: Batch, known: int | None) -> int:
        if known is not None:
            return known
        first = self._sequences.get(tp, 0)
        self._sequences[tp] = first + len(batch.messages)
        return first

    # Transactions.

    async def begin_transaction(self) -> None:
        if self._fatal is not None:
            raise AssertionError("Invalid state transition TransactionState.FATAL_ERROR")
        if self._in_transaction or self._ending:
            raise AssertionError(OVERLAPPING)
        self._in_transaction = True
        self._added = {}

    async def _added_to_transaction(self, tp: TopicPartition) -> None:
        if tp not in self._added:
            self._added[tp] = self._loop.create_future()
            self._added[tp].add_done_callback(_looked_at)
            self._task(self._add(tp))
        await asyncio.shield(self._added[tp])

    async def _add(self, tp: TopicPartition) -> None:
        assert self._id is not None
        id = self._id
        try:
            await self._coordinated(lambda: self._kafka.add_partitions(id, self._pid, self._epoch, [tp]))
        except KafkaError as error:
            self._die(error)
            self._added[tp].set_exception(error)
        else:
            self._added[tp].set_result(None)

    async def _coordinated(self, apply: Callable[[], None]) -> None:
        """A request to the transaction coordinator; what cannot be retried ends the sender."""
        while True:
            try:
                await self._network.request(apply)
                return
            except kafka_errors.ConcurrentTransactions:
                await asyncio.sleep(CONCURRENT_SECONDS)
            except kafka_errors.InvalidProducerEpoch as error:
                raise kafka_errors.ProducerFenced() from error
            except kafka_errors.KafkaConnectionError:
                await asyncio.sleep(self._backoff)

    def _die(self, error: KafkaError) -> None:
        self._fatal = error
        for future in self._busy.values():
            if not future.done():
                future.set_exception(error)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def commit_transaction(self) -> None:
        await self._finish(commit=True)

    async def abort_transaction(self) -> None:
        await self._finish(commit=False)

    async def _finish(self, *, commit: bool) -> None:
        if self._fatal is not None:
            raise self._fatal
        assert self._in_transaction and self._id is not None
        self._in_transaction = False
        if not self._added:
            return
        self._ending = True
        ended: asyncio.Future[None] = self._loop.create_future()
        ended.add_done_callback(_looked_at)
        self._task(self._end(commit, ended))
        await asyncio.shield(ended)

    async def _end(self, commit: bool, ended: asyncio.Future[None]) -> None:
        """aiokafka flushes first, and looks at no batch's outcome."""
        assert self._id is not None
        id = self._id
        try:
            if self._busy:
                await asyncio.wait(list(self._busy.values()))
            await self._coordinated(
                lambda: self._kafka.end_transaction(id, self._pid, self._epoch, commit=commit)
            )
        except KafkaError as error:
            self._die(error)
            ended.set_exception(error)
        else:
            self._ending = False
            ended.set_result(None)
        finally:
            if not ended.done():
                ended.cancel()


def _looked_at(future: asyncio.Future[Any]) -> None:
    """A failure that nobody awaits is nobody's."""
    if not future.cancelled():
        future.exception()


class Consumer:
    """Reads assigned partitions; with a group, holds a seat in it."""

    def __init__(
        self,
        network: Network,
        *,
        group_id: str | None = None,
        group_instance_id: str | None = None,
        isolation_level: str = "read_uncommitted",
        auto_offset_reset: str = "latest",
        partition_assignment_strategy: Sequence[Any] = (),
        session_timeout_ms: int = 10_000,
        heartbeat_interval_ms: int = 3_000,
        rebalance_timeout_ms: int | None = None,
        retry_backoff_ms: int = 100,
        **_: object,
    ) -> None:
        self._network = network
        self._kafka = network.kafka
        self._loop = network.loop
        self._committed_only = isolation_level == "read_committed"
        self._backoff = retry_backoff_ms / 1000
        self._positions: dict[TopicPartition, int | None] = {}
        self._paused: set[TopicPartition] = set()
        self._stable: dict[TopicPartition, int] = {}
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._coordinator: Coordinator | None = None
        self._fetcher = None
        self._client = _Client()
        if group_id is not None:
            self._coordinator = Coordinator(
                self,
                network,
                group_id,
                group_instance_id,
                partition_assignment_strategy,
                session=session_timeout_ms / 1000,
                heartbeat=heartbeat_interval_ms / 1000,
                rebalance=(rebalance_timeout_ms or session_timeout_ms) / 1000,
                backoff=self._backoff,
            )

    async def start(self) -> None:
        await self._network.request(lambda: None)

    async def stop(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        if self._coordinator is not None:
            await self._coordinator.close()
        if _current().cut_until > self._loop.now:  # a fetch waits to be tried again
            raise asyncio.CancelledError

    # Positions.

    def assign(self, tps: Iterable[TopicPartition]) -> None:
        self._positions = dict.fromkeys(tps)
        self._stable = {}
        self._wake()

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return _Cluster(self._kafka.counts).partitions_for_topic(topic)

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp not in self._positions:
            raise kafka_errors.IllegalStateError(f"No current assignment for partition {tp}")
        self._positions[tp] = offset
        self._wake()

    def pause(self, *tps: TopicPartition) -> None:
        self._paused.update(tps)

    async def position(self, tp: TopicPartition) -> int:
        if tp not in self._positions:
            raise kafka_errors.IllegalStateError(f"Partition {tp} is not assigned")
        position = self._positions[tp]
        assert position is not None, "every assignment is followed by a seek"
        return position

    def last_stable_offset(self, tp: TopicPartition) -> int | None:
        return self._stable.get(tp)

    async def beginning_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets(lambda: {tp: self._kafka.led(tp).begin for tp in tps})

    async def end_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        def ends() -> dict[TopicPartition, int]:
            led = {tp: self._kafka.led(tp) for tp in tps}
            return {tp: p.stable if self._committed_only else p.end for tp, p in led.items()}

        return await self._offsets(ends)

    async def _offsets(self, apply: Callable[[], dict[TopicPartition, int]]) -> dict[TopicPartition, int]:
        began = self._loop.now
        while True:
            try:
                found: dict[TopicPartition, int] = await self._network.request(apply)
                return found
            except KafkaError as error:
                if not error.retriable:
                    raise
                if self._loop.now - began > REQUEST_SECONDS:
                    raise kafka_errors.KafkaTimeoutError() from error
                await asyncio.sleep(self._backoff)

    # Records.

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Stored]]:
        self._check_open()
        if self._coordinator is not None:
            self._coordinator.check()
        deadline = self._loop.now + timeout_ms / 1000
        while True:
            await self._wait(tps, deadline)
            if self._closed:
                return {}
            got = self._fetched(tps, max_records or MAX_FETCHED)
            if got or self._loop.now >= deadline:
                return got

    def _check_open(self) -> None:
        if self._closed:
            raise kafka_errors.ConsumerStoppedError()

    async def _wait(self, tps: Sequence[TopicPartition], deadline: float) -> None:
        """Until something may be read, or the time is up."""
        waiter = self._waiter = self._loop.create_future()
        random = self._network.random.random
        late = self._loop.lateness
        timer = self._loop.happen(max(0.0, deadline - self._loop.now) + late * random(), _wake, waiter)
        readable = False
        for tp in self._readable(tps):
            partition = self._kafka.partitions[tp]
            position = self._positions[tp]
            assert position is not None
            if not partition.begin <= position <= partition.end:
                readable = True
            elif position < (partition.stable if self._committed_only else partition.end):
                readable = True
            else:
                partition.waiting[self] = self._wake
        if readable:
            self._loop.happen(self._network.delay(), _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def _readable(self, tps: Sequence[TopicPartition]) -> list[TopicPartition]:
        process = _current()
        if process.cut_until > self._loop.now:
            return []
        now, partitions = self._loop.now, self._kafka.partitions
        return [
            tp
            for tp, position in self._positions.items()
            if position is not None
            and (not tps or tp in tps)
            and tp not in self._paused
            and partitions[tp].leaderless_until <= now
        ]

    def _fetched(self, tps: Sequence[TopicPartition], limit: int) -> dict[TopicPartition, list[Stored]]:
        got: dict[TopicPartition, list[Stored]] = {}
        for tp in self._readable(tps):
            partition = self._kafka.partitions[tp]
            position = self._positions[tp]
            assert position is not None
            if not partition.begin <= position <= partition.end:
                if got:
                    break
                raise kafka_errors.OffsetOutOfRangeError({tp: position})
            self._stable[tp] = partition.stable
            records, self._positions[tp] = partition.read(position, limit, committed=self._committed_only)
            if records:
                got[tp] = records
                limit -= len(records)
                if not limit:
                    break
        return got

    def _wake(self) -> None:
        """New records are on their way to a consumer that waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            self._loop.happen(self._network.delay(), _wake, waiter)

    # The group.

    def subscribe(self, topics: Sequence[str], *, listener: Any) -> None:
        assert self._coordinator is not None
        self._coordinator.take(tuple(topics), listener)

    def seated(self, tps: Iterable[TopicPartition]) -> None:
        self.assign(tps)
        self._paused.clear()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        assert self._coordinator is not None
        for tp in offsets:
            if tp not in self._positions:
                raise kafka_errors.IllegalStateError(f"Partition {tp} is not assigned")
        await self._coordinator.commit(offsets)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Cluster:
    """The metadata that an assignor asks for."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {*range(self._counts[topic])} if topic in self._counts else None


class _Subscription:
    def __init__(self, topics: tuple[str, ...]) -> None:
        self.subscription = list(topics)


class Coordinator:
    """A member of a group, as aiokafka's GroupCoordinator plays it."""

    def __init__(
        self,
        consumer: Consumer,
        network: Network,
        group: str,
        instance: str | None,
        assignors: Sequence[Any],
        *,
        session: float,
        heartbeat: float,
        rebalance: float,
        backoff: float,
    ) -> None:
        self._consumer = consumer
        self._network = network
        self._loop = network.loop
        self._group = network.kafka.group(group)
        self._group_instance_id = instance
        self._assignor = assignors[0] if assignors else None
        self._session, self._interval, self._rebalance = session, heartbeat, rebalance
        self._backoff = backoff
        self._topics: tuple[str, ...] = ()
        self._listener: Any = None
        self._member, self._generation = "", -1
        self._closing = False
        self._stir = asyncio.Event()  # a rejoin is needed, or the seat is given up
        self._rejoin = True
        self._failure: KafkaError | None = None  # what a heartbeat could not cope with
        self._coordination: asyncio.Task[None] | None = None
        self._heartbeats: asyncio.Task[None] | None = None

    def take(self, topics: tuple[str, ...], listener: Any) -> None:
        self._topics, self._listener = topics, listener
        self._coordination = self._loop.create_task(self._coordinate())

    def check(self) -> None:
        """Raises what ended the coordination for good."""
        if self._coordination is not None and self._coordination.done():
            self._coordination.result()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def close(self) -> None:
        self._closing = True
        self._stir.set()
        if self._coordination is not None and not self._coordination.done():
            await self._coordination
        await self._stop_heartbeats()
        if self._generation > 0 and self._group_instance_id is None:
            member = self._member
            try:
                await self._network.request(lambda: self._group.leave(member))
            except KafkaError:
                pass

    async def _coordinate(self) -> None:
        prepared = False
        while not self._closing:
            if not self._rejoin:
                await self._stir.wait()
                self._stir.clear()
                continue
            if not prepared:
                await self._called(self._listener.on_partitions_revoked(self._consumer.assignment()))
                prepared = True
            await self._stop_heartbeats()
            assigned = await self._joined()
            if assigned is None:
                await asyncio.sleep(self._backoff)
                continue
            prepared = False
            self._consumer.seated(assigned)
            await self._called(self._listener.on_partitions_assigned({*assigned}))
            self._heartbeats = self._loop.create_task(self._beat())

    @staticmethod
    async def _called(callback: Any) -> None:
        try:
            await callback
        except Exception:  # noqa: BLE001  aiokafka logs what a listener raises and goes on
            pass

    async def _joined(self) -> tuple[TopicPartition, ...] | None:
        try:
            joined: Joined = await self._network.ask(
                lambda answer: self._group.join(
                    self._member,
                    self._topics,
                    self._session,
                    self._rebalance,
                    answer,
                    instance=self._group_instance_id,
                )
            )
            self._member, self._generation = joined.member, joined.generation
            self._rejoin = False
            assignments = self._assign(joined.topics) if joined.topics is not None else None
            assigned: tuple[TopicPartition, ...] = await self._network.ask(
                lambda answer: self._group.sync(joined.member, joined.generation, assignments, answer)
            )
        except kafka_errors.UnknownMemberIdError:
            self._reset()
            return None
        except KafkaError:
            self._rejoin = True
            return None
        return assigned

    def _assign(self, topics: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[TopicPartition, ...]]:
        assert self._assignor is not None
        members = {member: _Subscription(subscribed) for member, subscribed in topics.items()}
        found = self._assignor.assign(_Cluster(self._network.kafka.counts), members)
        return {
            member: tuple(TopicPartition(topic, p) for topic, ps in each.assignment for p in ps)
            for member, each in found.items()
        }

    def _reset(self) -> None:
        self._member, self._generation = "", -1
        self._request_rejoin()

    def _request_rejoin(self) -> None:
        self._rejoin = True
        self._stir.set()

    async def _beat(self) -> None:
        wait = self._interval
        while self._member:
            await asyncio.sleep(wait)
            wait = self._interval
            member, generation = self._member, self._generation
            try:
                await self._network.request(partial(self._group.heartbeat, member, generation))
            except kafka_errors.RebalanceInProgressError:
                self._request_rejoin()
            except (kafka_errors.UnknownMemberIdError, kafka_errors.IllegalGenerationError):
                self._reset()
            except kafka_errors.KafkaConnectionError:
                wait = self._backoff
            except KafkaError as error:
                self._failure = error
                return

    async def _stop_heartbeats(self) -> None:
        task, self._heartbeats = self._heartbeats, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        member, generation = self._member, self._generation
        while True:
            try:
                request = self._network.request(lambda: self._group.commit(member, generation, offsets))
                request.add_done_callback(_looked_at)
                await asyncio.shield(request)
                return
            except kafka_errors.RebalanceInProgressError as error:
                self._request_rejoin()
                raise kafka_errors.CommitFailedError() from error
            except (kafka_errors.UnknownMemberIdError, kafka_errors.IllegalGenerationError) as error:
                self._reset()
                raise kafka_errors.CommitFailedError() from error
            except KafkaError:
                await asyncio.sleep(self._backoff)
