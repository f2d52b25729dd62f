"""What a system test stands on: topics, processes to run and to kill, producers, and an outside reader.

The reader knows what any program on the topics may know: `read_committed`, and the reading rule. It
shares no code with the agents, so that its sums are a check of theirs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from riverkeeper import Pipeline
from riverkeeper.process import NAMES, Process, topics_of
from riverkeeper.settings import Settings
from riverkeeper.supervisor.policies import Limits
from riverkeeper.topics.catalog import Catalog, Replication, create_embedded
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.messages import Vitals
from riverkeeper.topics.vitals import unpack
from tests.brokers.broker import Broker
from tests.brokers.kafka import _die_with_parent
from tests.system.pipelines import KINDS

SIGNING_KEY = "k" * 40
SESSION_S = 6.0  # the least that settings allow: a dead replica's partitions wait this long
WAIT_S = 60.0  # for what takes a few seconds on an idle machine
REQUEST_MS = 10_000  # of one request: of a broker that is stopped, no answer comes
READ_MS = 50  # one wait of the outside reader
CHUNK = 200  # events sent before the feed looks at how far the agents are
BEHIND = 600  # events that may be unanswered before the feed waits
ROOT = Path(__file__).parents[2]
SUFFIXES = (
    "events",
    "facts",
    "outcomes",
    "dead",
    "predictions",
    "examples",
    "models",
    "shadow",
    "vitals",
    "verdicts",
    "incidents",
)
BY_ORIGIN = ("facts", "outcomes", "dead", "predictions")  # the topics that may hold copies


Watch = Callable[[], None]  # raises what ended the processes that are waited for


class Record(Protocol):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Event(NamedTuple):
    key: str
    value: bytes


class Place(NamedTuple):
    """Where a record stands; sorts by offset within a partition."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def place(record: Record) -> Place:
    return Place(record.topic, record.partition, record.offset)


def cause(record: Record) -> tuple[Place, int]:
    """The record's origin: (where its cause stands, which of that cause's outputs it is)."""
    header = next(value for name, value in record.headers if name == "origin")
    topic, partition, offset, n = header.decode().rsplit("/", 3)
    return Place(topic, int(partition), int(offset)), int(n)


class Reading:
    """The reading rule: of each source partition, what is not greater than the greatest is a copy."""

    def __init__(self) -> None:
        self._greatest: dict[tuple[str, int, str, int], tuple[int, int]] = {}

    def admits(self, record: Record) -> bool:
        source, n = cause(record)
        stream = (record.topic, record.partition, source.topic, source.partition)
        if (source.offset, n) <= self._greatest.get(stream, (-1, -1)):
            return False
        self._greatest[stream] = (source.offset, n)
        return True


def first(records: Iterable[Record]) -> Iterator[Record]:
    """The records that the reading rule admits."""
    return filter(Reading().admits, records)


class Outside:
    """Follows every topic of a pipeline from its beginning."""

    def __init__(self, connection: Connection, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._consumer = AIOKafkaConsumer(
            **connection.client_options(),
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=READ_MS,
            max_partition_fetch_bytes=4_000_000,
            request_timeout_ms=REQUEST_MS,
        )
        counts = {spec.name: spec.partitions for spec in topics_of(pipeline)}
        topics = [pipeline.topic(suffix) for suffix in SUFFIXES]
        self._partitions = [TopicPartition(t, p) for t in topics for p in range(counts[t])]
        self._records: dict[str, list[Record]] = {suffix: [] for suffix in SUFFIXES}
        self._reading = Reading()
        self._firsts: Counter[str] = Counter()

    async def __aenter__(self) -> Outside:
        await self._consumer.start()
        self._consumer.assign(self._partitions)
        await self._consumer.seek_to_beginning(*self._partitions)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._consumer.stop()

    def __getitem__(self, suffix: str) -> list[Record]:
        """What was read of a topic so far, in order within a partition."""
        return self._records[suffix]

    def vitals(self) -> Iterator[Vitals]:
        """All that agents told so far, the newest first."""
        return (v for r in reversed(self["vitals"]) for v in reversed(unpack(r.value or b"")))

    async def read(self) -> None:
        """Takes what has come, or waits a moment for it."""
        for tp, records in (await self._consumer.getmany(timeout_ms=READ_MS)).items():
            suffix = tp.topic.removeprefix(f"{self._pipeline.name}.")
            self._records[suffix] += records
            if suffix in BY_ORIGIN:
                self._firsts[suffix] += sum(map(self._reading.admits, records))

    async def read_up(self) -> None:
        """Reads all that is committed now."""
        ends = await self._consumer.end_offsets(self._partitions)
        deadline = time.monotonic() + WAIT_S
        while any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
            assert time.monotonic() < deadline, "the topics could not be read to their ends"
            await self.read()

    async def until(
        self, condition: Callable[[], object], what: str, seconds: float = WAIT_S, watch: Watch = lambda: None
    ) -> None:
        """Reads on until the condition holds; fails by name if it does not within `seconds`."""
        deadline = time.monotonic() + seconds
        watch()
        while not condition():
            watch()
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}; {self.counts()}"
            await self.read()

    def counts(self) -> dict[str, int]:
        return {suffix: len(records) for suffix, records in self._records.items()}

    def firsts(self, suffix: str) -> int:
        """Records of a topic that were read so far, copies left out."""
        return self._firsts[suffix]

    def settled(self) -> int:
        """Events that have had an effect; copies of one count once, else work that is left would look done."""
        return sum(self._firsts[suffix] for suffix in ("facts", "outcomes", "dead"))


@dataclass
class World:
    """A broker with the topics of one pipeline on it."""

    broker: Broker
    kind: str
    pipeline: Pipeline
    outside: Outside
    producer: AIOKafkaProducer
    sent: int = 0

    @property
    def connection(self) -> Connection:
        return self.broker.connection

    def settings(self, **changed: object) -> Settings:
        return Settings.model_validate(
            {
                "broker": self.broker.behind or self.broker.address,
                "port": 0,
                "signing_key": SIGNING_KEY,
                "vitals_seconds": 0.25,
                "session_timeout": SESSION_S,
                **changed,
            }
        )

    async def send(self, events: Iterable[Event]) -> None:
        """Writes events as any program would; returns when all are acknowledged."""
        topic = self.pipeline.topic("events")
        sending = [await self.producer.send(topic, e.value, key=e.key.encode()) for e in events]
        await asyncio.gather(*sending)
        self.sent += len(sending)

    async def feed(self, events: Iterable[Event], repeated: int = 0, watch: Watch = lambda: None) -> None:
        """Writes events no faster than they are worked on. `repeated` bounds those without an effect."""
        waiting = iter(events)
        while chunk := list(islice(waiting, CHUNK)):
            await self.send(chunk)
            await self.outside.until(
                lambda: (
                    self.sent - self.outside.settled() - repeated < BEHIND and self._unanswered() < BEHIND
                ),
                "the agents keep up with the feed",
                watch=watch,
            )

    def _unanswered(self) -> int:
        """Facts without a prediction or outcomes without an example: what learning would be late by."""
        unanswered = self.outside.firsts("facts") - self.outside.firsts("predictions")
        return max(unanswered, self.outside.firsts("outcomes") - len(self.outside["examples"]))

    @asynccontextmanager
    async def running(
        self,
        names: Sequence[str] = NAMES,
        judgement: Limits | None = None,
        **settings: object,
    ) -> AsyncIterator[Process]:
        """A process's agents in this loop, at work; stopped in order at the end."""
        process = Process(self.pipeline, names, self.settings(**settings), judgement=judgement)
        stop = asyncio.Event()
        task = asyncio.create_task(process.run(stop))
        try:
            deadline = time.monotonic() + WAIT_S
            while any(process.unready().values()):
                assert time.monotonic() < deadline, f"not ready: {process.unready()}"
                if task.done():
                    task.result()
                await asyncio.sleep(0.02)
            yield process
        finally:
            stop.set()
            await asyncio.wait_for(task, WAIT_S)

    def spawn(
        self, names: Sequence[str] = NAMES, *, module: str = "riverkeeper", **environment: str
    ) -> Replica:
        """The same as a process of its own; `module` is one that runs as `python -m riverkeeper` does."""
        return Replica.spawn(self, names, environment, module)


@asynccontextmanager
async def world(broker: Broker, kind: str) -> AsyncIterator[World]:
    """A pipeline of this kind under a name that no other test has."""
    pipeline = KINDS[kind](f"{kind}-{uuid.uuid4().hex[:8]}")
    specs = topics_of(pipeline)
    if broker.embedded is not None:
        create_embedded(broker.embedded, specs)
    else:
        async with Catalog(broker.connection, Replication(broker.copies, broker.min_insync)) as catalog:
            await catalog.create(specs)
    producer = AIOKafkaProducer(
        **broker.connection.client_options(),
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        request_timeout_ms=REQUEST_MS,
    )
    await producer.start()
    try:
        async with Outside(broker.connection, pipeline) as outside:
            yield World(broker, kind, pipeline, outside, producer)
    finally:
        await producer.stop()


@dataclass
class Replica:
    """A whole process with agents in it."""

    process: subprocess.Popen[bytes]
    log: Path
    expected: bool = field(default=False)  # to be gone

    @classmethod
    def spawn(
        cls, world: World, names: Sequence[str], environment: dict[str, str], module: str = "riverkeeper"
    ) -> Replica:
        handle, path = tempfile.mkstemp(prefix=f"{world.pipeline.name}-", suffix=".log")
        settings = {
            "RIVERKEEPER_BROKER": world.broker.behind or world.broker.address,
            "RIVERKEEPER_PORT": "0",
            "RIVERKEEPER_SIGNING_KEY": SIGNING_KEY,
            "RIVERKEEPER_SESSION_TIMEOUT": str(SESSION_S),
            "RIVERKEEPER_VITALS_SECONDS": "0.25",
            "RIVERKEEPER_LOG_FORMAT": "console",
            "PYTHONHASHSEED": "0",  # as it would set itself, by starting a second time
            "SYSTEM_KIND": world.kind,
            "SYSTEM_NAME": world.pipeline.name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        with os.fdopen(handle, "wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    module,
                    "run",
                    "tests.system.named:pipeline",
                    "--agents",
                    ",".join(names),
                ],
                cwd=ROOT,
                env={**os.environ, **settings, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent(),  # from the main thread, which lives as long as the tests
            )
        return cls(process, Path(path))

    def check(self) -> None:
        """Fails with the end of its log if it ended by itself."""
        if not self.expected and self.process.poll() is not None:
            raise AssertionError(f"a process ended with {self.process.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def kill(self) -> None:
        """kill -9."""
        self.expected = True
        self.process.kill()
        self.process.wait(WAIT_S)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """SIGTERM, and an orderly end."""
        self.check()
        self.expected = True
        self.process.terminate()
        code = await asyncio.to_thread(self.process.wait, WAIT_S)
        assert code == 0, f"SIGTERM ended it with {code}:\n{self.tail()}"


@contextmanager
def processes() -> Iterator[list[Replica]]:
    """Processes added here do not outlive the block; if it fails, the ends of their logs are shown."""
    replicas: list[Replica] = []
    try:
        yield replicas
    except BaseException:
        for replica in replicas:
            sys.stderr.write(f"--- {replica.process.pid}\n{replica.tail()}\n")
        raise
    finally:
        for replica in replicas:
            replica.kill()
            replica.log.unlink()


def now_ms() -> int:
    """This machine's clock, which is the broker's, too."""
    return time.time_ns() // 1_000_000
