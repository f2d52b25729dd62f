"""A model of Kafka's server side: partitions, transactions, fencing and groups, in memory.

What it models, and what of it is checked against a real broker, stands in test_kafka_model.py. Errors are
aiokafka's classes, as the client would make them of a response. Nothing here waits: time comes from the
loop, and chance from its generator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from riverkeeper.topics.log import Headers
from tests.simulator.loop import Handle, Loop

EPOCH_MS = 1_700_000_000_000  # the broker's wall clock when a run begins
REMEMBERED_BATCHES = 5  # of one producer on one partition: repeats of these are known as such
MARKER_SECONDS = (0.0005, 0.004)  # from the decision of a transaction to its marker, each partition
COORDINATION_SECONDS = 0.005  # a group waits this long for others to join an empty one

Answer = Callable[[Any], None]


class Stored:
    """A record in the log, with the fields that a reader uses of aiokafka's ConsumerRecord."""

    __slots__ = (
        "epoch",
        "headers",
        "key",
        "offset",
        "partition",
        "pid",
        "state",
        "timestamp",
        "topic",
        "value",
    )

    def __init__(
        self,
        tp: TopicPartition,
        offset: int,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        pid: int,
        epoch: int,
        state: Fate,
    ) -> None:
        self.topic = tp.topic
        self.partition = tp.partition
        self.offset = offset
        self.timestamp = timestamp
        self.key = key
        self.value = value
        self.headers = headers
        self.pid = pid
        self.epoch = epoch
        self.state = state

    def __repr__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset} {self.state.value} {self.key!r}={self.value!r}"


class Fate(Enum):
    """What readers may see of a place in the log."""

    COMMITTED = "committed"
    PENDING = "pending"
    ABORTED = "aborted"
    MARKER = "marker"


class Message(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class Writes:
    """What a partition's leader knows of one producer."""

    epoch: int
    last: int = -1  # greatest sequence number
    batches: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_BATCHES))


class Partition:
    """One log. `history` keeps what compaction has removed, for the ledger."""

    def __init__(self, tp: TopicPartition, *, compacted: bool) -> None:
        self.tp = tp
        self.compacted = compacted
        self.begin = 0
        self.end = 0
        self.records: list[Stored] = []
        self.offsets: list[int] = []
        self.history: list[Stored] = []
        self.open: dict[int, list[Stored]] = {}  # producer id -> its undecided records
        self.writes: dict[int, Writes] = {}
        self.leaderless_until = 0.0
        self.skew_ms = 0  # of the leader's clock
        self.waiting: dict[object, Callable[[], None]] = {}

    @property
    def stable(self) -> int:
        """The end of what read_committed may see."""
        return min((records[0].offset for records in self.open.values()), default=self.end)

    def read(self, position: int, limit: int, *, committed: bool = True) -> tuple[list[Stored], int]:
        """Up to `limit` records from `position` on, and where to go on; markers are passed over."""
        end = self.stable if committed else self.end
        found: list[Stored] = []
        records = self.records
        for i in range(bisect_left(self.offsets, position), len(records)):
            record = records[i]
            if record.offset >= end:
                break
            if record.state is Fate.COMMITTED or (not committed and record.state is not Fate.MARKER):
                found.append(record)
                if len(found) == limit:
                    return found, record.offset + 1
        return found, max(position, end)

    def put(self, record: Stored) -> None:
        self.records.append(record)
        self.offsets.append(record.offset)
        self.history.append(record)
        self.end = record.offset + 1

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for notify in waiting.values():
            notify()

    def compact(self, keep: int) -> None:
        """Keeps the last value of every key below the last `keep` records, which no cleaner touches."""
        clean = [r for r in self.records if r.offset < min(self.stable, self.end - keep)]
        newest = {r.key: r.offset for r in clean if r.state is Fate.COMMITTED}
        later = {r.key for r in self.records[len(clean) :] if r.state is Fate.COMMITTED}
        kept = [r for r in clean if newest.get(r.key) == r.offset and r.key not in later]
        self.records = [*kept, *self.records[len(clean) :]]
        self.offsets = [r.offset for r in self.records]

    def retain_from(self, offset: int) -> None:
        """Retention: what lies below is gone."""
        self.begin = max(self.begin, min(offset, self.stable))
        cut = bisect_left(self.offsets, self.begin)
        del self.records[:cut], self.offsets[:cut]


class Phase(Enum):
    EMPTY = "empty"
    ONGOING = "ongoing"
    COMMITTING = "committing"
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"


ENDING = (Phase.COMMITTING, Phase.ABORTING)


@dataclass
class Transactions:
    """What the coordinator knows of one transactional id."""

    pid: int
    timeout: float
    epoch: int = -1
    phase: Phase = Phase.EMPTY
    partitions: dict[TopicPartition, None] = field(default_factory=dict)
    begun: int = 0  # counts transactions, for the timer of the one that it was set for


class Kafka:
    """The cluster: what arrives is applied at once, in the order of arrival."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.random = loop.random
        self.partitions: dict[TopicPartition, Partition] = {}
        self.counts: dict[str, int] = {}
        self.transactions: dict[str, Transactions] = {}
        self.groups: dict[str, Group] = {}
        self.on_commit: Callable[[Partition], None] = lambda partition: None
        self.refusals = 0.0  # share of an agent's batches that the broker refuses for good
        self._pids = 0

    def create(self, topic: str, partitions: int, *, compacted: bool = False) -> None:
        self.counts[topic] = partitions
        for p in range(partitions):
            tp = TopicPartition(topic, p)
            self.partitions[tp] = Partition(tp, compacted=compacted)

    def partition(self, topic: str, number: int) -> Partition:
        return self.partitions[TopicPartition(topic, number)]

    def now_ms(self, partition: Partition) -> int:
        return EPOCH_MS + int(self.loop.now * 1000) + partition.skew_ms

    def led(self, tp: TopicPartition) -> Partition:
        """Raises NotLeaderForPartitionError while nobody leads."""
        partition = self.partitions[tp]
        if partition.leaderless_until > self.loop.now:
            raise kafka_errors.NotLeaderForPartitionError()
        return partition

    # Produce.

    def produce(
        self,
        tp: TopicPartition,
        messages: Sequence[Message],
        *,
        pid: int = -1,
        epoch: int = -1,
        sequence: int = -1,
        transactional_id: str | None = None,
    ) -> int:
        """Appends a batch, or raises what the broker answers; a batch known from before is not appended.

        Returns the append time in ms.
        """
        partition = self.led(tp)
        if pid >= 0 and self.refusals and self.random.random() < self.refusals:
            raise kafka_errors.UnknownError()
        if transactional_id is not None:
            self._verify(transactional_id, tp, pid, epoch)
        if pid >= 0 and self._repeated(partition, pid, epoch, sequence, len(messages)):
            return self.now_ms(partition)
        undecided = transactional_id is not None
        state = Fate.PENDING if undecided else Fate.COMMITTED
        now = self.now_ms(partition)
        for key, value, headers in messages:
            record = Stored(tp, partition.end, now, key, value, headers, pid, epoch, state)
            partition.put(record)
            if undecided:
                partition.open.setdefault(pid, []).append(record)
        partition.wake()
        return now

    def _verify(self, transactional_id: str, tp: TopicPartition, pid: int, epoch: int) -> None:
        """A leader asks the coordinator whether the transaction holds this partition (KIP-890)."""
        known = self.transactions.get(transactional_id)
        if known is None or known.pid != pid or known.epoch != epoch:
            raise kafka_errors.InvalidProducerEpoch()
        if known.phase is not Phase.ONGOING or tp not in known.partitions:
            raise kafka_errors.InvalidTxnState()

    @staticmethod
    def _repeated(partition: Partition, pid: int, epoch: int, first: int, count: int) -> bool:
        writes = partition.writes.get(pid)
        if writes is None:
            writes = partition.writes[pid] = Writes(epoch, last=first - 1)  # no state: any number may begin
        if epoch < writes.epoch:
            raise kafka_errors.InvalidProducerEpoch()
        if epoch > writes.epoch:
            if first != 0:
                raise kafka_errors.OutOfOrderSequenceNumber()
            writes.epoch, writes.last = epoch, -1
            writes.batches.clear()
        if (first, count) in writes.batches:
            return True
        if first <= writes.last:
            raise kafka_errors.DuplicateSequenceNumber()
        if first != writes.last + 1:
            raise kafka_errors.OutOfOrderSequenceNumber()
        writes.batches.append((first, count))
        writes.last = first + count - 1
        return False

    # Transactions.

    def init_producer_id(self, transactional_id: str | None, timeout: float) -> tuple[int, int]:
        """(producer id, epoch). Fences whoever had the transactional id, once its transaction has ended."""
        if transactional_id is None:
            self._pids += 1
            return self._pids, 0
        known = self.transactions.get(transactional_id)
        if known is None:
            self._pids += 1
            known = self.transactions[transactional_id] = Transactions(self._pids, timeout)
        if known.phase in ENDING:
            raise kafka_errors.ConcurrentTransactions()
        if known.phase is Phase.ONGOING:
            self._abort_as_broker(known)
            raise kafka_errors.ConcurrentTransactions()
        known.epoch += 1
        known.timeout = timeout
        known.phase = Phase.EMPTY
        return known.pid, known.epoch

    def add_partitions(
        self, transactional_id: str, pid: int, epoch: int, tps: Iterable[TopicPartition]
    ) -> None:
        known = self._owned(transactional_id, pid, epoch)
        if known.phase in ENDING:
            raise kafka_errors.ConcurrentTransactions()
        if known.phase is not Phase.ONGOING:
            known.phase = Phase.ONGOING
            known.partitions = {}
            known.begun += 1
            self.loop.happen(known.timeout * (1 + self.random.random()), self._time_out, known, known.begun)
        known.partitions.update(dict.fromkeys(tps))

    def end_transaction(self, transactional_id: str, pid: int, epoch: int, *, commit: bool) -> None:
        known = self._owned(transactional_id, pid, epoch)
        if known.phase is Phase.ONGOING:
            self._end(known, commit=commit)
        elif known.phase in ENDING:
            if (known.phase is Phase.COMMITTING) is not commit:
                raise kafka_errors.InvalidTxnState()
            raise kafka_errors.ConcurrentTransactions()
        elif known.phase is not (Phase.COMMITTED if commit else Phase.ABORTED):
            raise kafka_errors.InvalidTxnState()

    def _owned(self, transactional_id: str, pid: int, epoch: int) -> Transactions:
        known = self.transactions.get(transactional_id)
        if known is None or known.pid != pid:
            raise kafka_errors.InvalidProducerIdMapping()
        if known.epoch != epoch:
            raise kafka_errors.InvalidProducerEpoch()
        return known

    def _abort_as_broker(self, known: Transactions) -> None:
        """The coordinator's own abort goes out under the next epoch, so that the writer is fenced by it."""
        known.epoch += 1
        self._end(known, commit=False)

    def _time_out(self, known: Transactions, begun: int) -> None:
        if known.phase is Phase.ONGOING and known.begun == begun:
            self._abort_as_broker(known)

    def _end(self, known: Transactions, *, commit: bool) -> None:
        known.phase = Phase.COMMITTING if commit else Phase.ABORTING
        for tp in known.partitions:
            self._send_marker(known, tp, known.epoch, commit)

    def _send_marker(self, known: Transactions, tp: TopicPartition, epoch: int, commit: bool) -> None:
        low, high = MARKER_SECONDS
        self.loop.happen(low + (high - low) * self.random.random(), self._mark, known, tp, epoch, commit)

    def _mark(self, known: Transactions, tp: TopicPartition, epoch: int, commit: bool) -> None:
        partition = self.partitions[tp]
        if partition.leaderless_until > self.loop.now:
            self._send_marker(known, tp, epoch, commit)
            return
        state = Fate.COMMITTED if commit else Fate.ABORTED
        for record in partition.open.pop(known.pid, ()):
            record.state = state
        writes = partition.writes.setdefault(known.pid, Writes(epoch))
        if epoch > writes.epoch:
            writes.epoch, writes.last = epoch, -1
            writes.batches.clear()
        now = self.now_ms(partition)
        partition.put(Stored(tp, partition.end, now, None, None, (), known.pid, epoch, Fate.MARKER))
        del known.partitions[tp]
        if not known.partitions:
            known.phase = Phase.COMMITTED if commit else Phase.ABORTED
        partition.wake()
        if commit:
            self.on_commit(partition)

    # Groups.

    def group(self, name: str) -> Group:
        if name not in self.groups:
            self.groups[name] = Group(self.loop)
        return self.groups[name]


class Stage(Enum):
    STABLE = "stable"
    JOINING = "joining"  # waits for the members to join again
    SYNCING = "syncing"  # waits for the leader's assignment


@dataclass
class Member:
    id: str
    topics: tuple[str, ...]
    session: float  # seconds
    rebalance: float  # seconds
    heard: float
    joined: Answer | None = None  # answers its JoinGroup
    synced: Answer | None = None  # answers its SyncGroup


class Joined(NamedTuple):
    """The answer to a JoinGroup; `topics` by member for the leader, who assigns."""

    member: str
    generation: int
    topics: Mapping[str, tuple[str, ...]] | None


Assignments = Mapping[str, tuple[TopicPartition, ...]]


class Group:
    """A consumer group's coordinator. Answers come later, through the callable that a request brings."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.stage = Stage.STABLE
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.committed: dict[TopicPartition, int] = {}
        self._assigned: dict[str, tuple[TopicPartition, ...]] = {}
        self._named = 0
        self._instances: dict[str, str] = {}  # static members: instance id -> member id
        self._deadline: Handle | None = None

    def join(
        self,
        id: str,
        topics: tuple[str, ...],
        session: float,
        rebalance: float,
        answer: Answer,
        *,
        instance: str | None = None,
    ) -> None:
        if instance is not None and id and self._instances.get(instance) not in (None, id):
            answer(kafka_errors.UnknownError())
            return
        if instance is not None and not id and instance in self._instances:
            self._replace(instance, answer)
            return
        if id and id not in self.members:
            answer(kafka_errors.UnknownMemberIdError())
            return
        if not id:
            self._named += 1
            id = f"m{self._named}"
        known = self.members.get(id)
        if known is None:
            known = self.members[id] = Member(id, topics, session, rebalance, self.loop.now)
            if instance is not None:
                self._instances[instance] = id
            self.loop.happen(session, self._watch, known)
        known.heard, known.joined, known.synced = self.loop.now, answer, None
        if self.stage is not Stage.JOINING:
            self._rebalance()
        self._maybe_complete()

    def _replace(self, instance: str, answer: Answer) -> None:
        """A static member came back under no member id: it takes its place, and the old one is fenced."""
        old = self.members.pop(self._instances[instance])
        self._named += 1
        id = self._instances[instance] = f"m{self._named}"
        new = self.members[id] = Member(id, old.topics, old.session, old.rebalance, self.loop.now)
        self.loop.happen(old.session, self._watch, new)
        for waiting in (old.joined, old.synced):
            if waiting is not None:
                waiting(kafka_errors.UnknownError())
        if self.stage is Stage.STABLE:
            self._assigned[id] = self._assigned.pop(old.id, ())
            answer(Joined(id, self.generation, None))
            return
        new.joined = answer
        if self.stage is not Stage.JOINING:
            self._rebalance()
        self._maybe_complete()

    def sync(self, id: str, generation: int, assignments: Assignments | None, answer: Answer) -> None:
        known = self.members.get(id)
        if known is None:
            answer(kafka_errors.UnknownMemberIdError())
        elif generation != self.generation:
            answer(kafka_errors.IllegalGenerationError())
        elif self.stage is Stage.JOINING:
            answer(kafka_errors.RebalanceInProgressError())
        elif self.stage is Stage.STABLE:
            answer(self._assigned.get(id, ()))
        else:
            known.heard, known.synced = self.loop.now, answer
            if assignments is not None:
                self._assigned = dict(assignments)
                self.stage = Stage.STABLE
                for member in self.members.values():
                    waiting, member.synced = member.synced, None
                    if waiting is not None:
                        member.heard = self.loop.now
                        waiting(self._assigned.get(member.id, ()))

    def heartbeat(self, id: str, generation: int) -> None:
        """Raises what the coordinator answers to one who is not, or no longer, in order."""
        known = self.members.get(id)
        if known is None:
            raise kafka_errors.UnknownMemberIdError()
        if generation != self.generation:
            raise kafka_errors.IllegalGenerationError()
        known.heard = self.loop.now
        if self.stage is Stage.JOINING:
            raise kafka_errors.RebalanceInProgressError()

    def commit(self, id: str, generation: int, offsets: Mapping[TopicPartition, int]) -> None:
        self.heartbeat(id, generation)
        self.committed.update(offsets)

    def leave(self, id: str) -> None:
        if id in self.members:
            self._remove(id)

    def _watch(self, member: Member) -> None:
        if self.members.get(member.id) is not member:
            return
        waits = member.joined is not None or member.synced is not None
        if waits or member.heard + member.session > self.loop.now:
            heard = self.loop.now if waits else member.heard
            self.loop.happen(heard + member.session - self.loop.now, self._watch, member)
        else:
            self._remove(member.id)

    def _remove(self, id: str) -> None:
        del self.members[id]
        self._instances = {instance: known for instance, known in self._instances.items() if known != id}
        if not self.members:
            self.stage = Stage.STABLE
            return
        if self.stage is not Stage.JOINING:
            self._rebalance()
        self._maybe_complete()

    def _rebalance(self) -> None:
        self.stage = Stage.JOINING
        for member in self.members.values():
            waiting, member.synced = member.synced, None
            if waiting is not None:
                waiting(kafka_errors.RebalanceInProgressError())
        longest = max(member.rebalance for member in self.members.values())
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.happen(longest, self._give_up_on_the_missing)

    def _give_up_on_the_missing(self) -> None:
        if self.stage is not Stage.JOINING:
            return
        for id in [id for id, member in self.members.items() if member.joined is None]:
            del self.members[id]
            self._instances = {i: known for i, known in self._instances.items() if known != id}
        self._maybe_complete()

    def _maybe_complete(self) -> None:
        if self.stage is Stage.JOINING and all(m.joined is not None for m in self.members.values()):
            self.loop.happen(COORDINATION_SECONDS * self.loop.random.random(), self._complete)

    def _complete(self) -> None:
        if self.stage is not Stage.JOINING or not self.members:
            return
        if any(member.joined is None for member in self.members.values()):
            return
        self.generation += 1
        self.stage = Stage.SYNCING
        topics = {member.id: member.topics for member in self.members.values()}
        leader = next(iter(self.members))
        for member in self.members.values():
            answer, member.joined = member.joined, None
            assert answer is not None
            member.heard = self.loop.now
            answer(Joined(member.id, self.generation, topics if member.id == leader else None))
