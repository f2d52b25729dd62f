"""One run: a seed decides what is written, what goes wrong and when; then quiet, then the account."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import structlog
from aiokafka import TopicPartition

from riverkeeper.agents.agent import Agent, Runtime
from riverkeeper.agents.ingest import Ingest
from riverkeeper.agents.join import Join
from riverkeeper.agents.learn import Learn
from riverkeeper.agents.score import Score
from riverkeeper.process import topics_of
from riverkeeper.topics.log import Headers
from riverkeeper.topics.telemetry import Telemetry
from tests.simulator import pipeline as declared
from tests.simulator.clients import OVERLAPPING, Network, SimulatedConnection
from tests.simulator.kafka import EPOCH_MS, Kafka, Message, Partition
from tests.simulator.ledger import Ledger, Wrong
from tests.simulator.lines import Lines
from tests.simulator.loop import CURRENT, Life, Loop, Process, Stuck
from tests.simulator.plan import Plan
from tests.simulator.states import Lease, States
from tests.simulator.stream import Stream

AGENTS: dict[str, type[Agent]] = {a.name: a for a in (Ingest, Score, Join, Learn)}
SETTLE_SECONDS = 200.0  # of quiet: delivery and transaction time-outs, a rebalance and the longest back-off
LOOK_SECONDS = 0.25  # between looks whether all is done
AFTERMATH_SECONDS = 0.5  # for what stray requests still do once all is done


@dataclass
class Outcome:
    """How a run ended; equal fingerprints are equal runs."""

    seed: int
    wrong: str
    fingerprint: int
    steps: int
    seconds: float  # virtual
    faults: Counter[str]
    trace: list[str] = field(default_factory=list)


class World:
    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.seed = seed
        self.tracing = tracing
        self.trace: list[str] = []
        self.random = Random(seed)
        self.plan = plan = Plan.drawn(self.random)
        self.loop = Loop(self.random, lateness=plan.lateness)
        self.loop.blown = self._fault
        self.kafka = Kafka(self.loop)
        self.kafka.refusals = plan.refusals
        self.network = Network(
            self.kafka, latency=plan.latency, stragglers=plan.stragglers, loss=plan.loss, sent=self._sent
        )
        self.pipeline = declared.pipeline(plan.max_pending, plan.delivery)
        self.ledger = Ledger(self.pipeline, self.kafka, plan.cast)
        self.lines = Lines(self.ledger)
        self.states = States(self.pipeline, self.kafka)
        self.lease = Lease(2 * (plan.limits.lease_seconds + plan.lateness))
        self.kafka.on_commit = self._committed
        self.processes: dict[str, Process] = {}  # by place
        self.faults: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.quiet = False
        self.closing = False
        self._passed = False  # the moment run for has come
        self._unwritten = 0
        self._waiting: dict[Partition, deque[Message]] = {}
        self._lives = 0
        self._predictions = self.pipeline.topic("predictions")

    def note(self, what: str) -> None:
        if self.tracing:
            self.trace.append(f"{self.loop.now:9.4f} {what}")

    # The run.

    def run(self) -> Outcome:
        RUNNING.append(self)
        wrong = ""
        try:
            self._prepare()
            self._until(self.plan.seconds)
            self._heal()
            self._drain()
            self._until(self.loop.now + AFTERMATH_SECONDS)
            if self.plan.stop_in_order:
                self._stop_all()
            self._settle()
        except (Wrong, Stuck) as error:
            wrong = f"{type(error).__name__}: {error}"
            if self.tracing:
                self.trace += self.loop.waiting()
        finally:
            RUNNING.pop()
        return Outcome(
            seed=self.seed,
            wrong=wrong,
            fingerprint=self._fingerprint(),
            steps=self.loop.steps,
            seconds=self.loop.now,
            faults=self.faults,
            trace=self.trace,
        )

    def _fingerprint(self) -> int:
        state = f"{self.loop.steps} {self.loop.now!r} {self.random.random()!r}"
        for tp, partition in self.kafka.partitions.items():
            logged = [(r.offset, r.state.value, r.key, r.value) for r in partition.history]
            state += f"{tp.topic}/{tp.partition} {logged}"
        return zlib.crc32(state.encode())

    def _until(self, when: float) -> None:
        self._passed = False
        self.loop.happen(max(0.0, when - self.loop.now), self._pass)
        self.loop.run(lambda: self._passed)

    def _pass(self) -> None:
        self._passed = True

    def _drain(self) -> None:
        deadline = self.loop.now + SETTLE_SECONDS
        while missing := self._missing():
            if self.loop.now > deadline:
                raise Wrong(f"after {SETTLE_SECONDS:.0f} s of quiet: {missing}")
            self._until(self.loop.now + LOOK_SECONDS)

    def _missing(self) -> str:
        if self._unwritten:
            return f"{self._unwritten} records that wait for a leader"
        return self.ledger.missing() or (self.lines.missing() if "learn" in self.plan.cast else "")

    def _stop_all(self) -> None:
        self.closing = True
        for process in self.processes.values():
            process.stop.set()
        deadline = self.loop.now + SETTLE_SECONDS
        while running := [p.name for p in self.processes.values() if not p.ended]:
            if self.loop.now > deadline:
                raise Wrong(f"{running} did not stop within {SETTLE_SECONDS:.0f} s")
            self._until(self.loop.now + LOOK_SECONDS)

    def _settle(self) -> None:
        self.ledger.settle()
        if "learn" in self.plan.cast:
            self.lines.settle()
        if self.unexpected:
            raise Wrong(f"unexpected: {self.unexpected[0]}")
        if self.loop.complaints:
            raise Wrong(f"asyncio complains: {self.loop.complaints[0]}")

    # What is looked at on the way.

    def _committed(self, partition: Partition) -> None:
        self.states.committed(partition)

    def _sent(self, process: Process, topic: str, messages: list[Message]) -> None:
        if topic == self._predictions:
            for message in messages:
                self.lease.answers(self.loop.now, process.pauses, message.value)

    # What is there, and what is written.

    def _prepare(self) -> None:
        for spec in topics_of(self.pipeline):
            compacted = spec.config.get("cleanup.policy") == "compact"
            self.kafka.create(spec.name, spec.partitions, compacted=compacted)
        Stream(self.plan, self.pipeline, self.random, self._write_at).pour()
        self._plan_outages()
        for i in range(self.plan.processes):
            self.loop.happen(self.random.random() * 0.3, self._start, f"p{i}")

    def _write_at(
        self, at: float, suffix: str, partition: int, key: bytes, value: bytes, headers: Headers
    ) -> None:
        self._unwritten += 1
        self.loop.happen(at, self._write, suffix, partition, Message(key, value, headers))

    def _write(self, suffix: str, number: int, message: Message) -> None:
        partition = self.kafka.partition(self.pipeline.topic(suffix), number)
        waiting = self._waiting.setdefault(partition, deque())
        waiting.append(message)
        if len(waiting) == 1:
            self._try(partition, waiting)

    def _try(self, partition: Partition, waiting: deque[Message]) -> None:
        """Writes what waits for a leader, in its order, as an idempotent producer does; or tries again."""
        if partition.leaderless_until > self.loop.now:
            self.loop.happen(partition.leaderless_until - self.loop.now, self._try, partition, waiting)
            return
        while waiting:
            message = waiting.popleft()
            self._unwritten -= 1
            self.kafka.produce(partition.tp, [message])
            if partition.tp.topic == self.pipeline.topic("verdicts"):
                self.lease.decided(self.loop.now, live=b'"state":"live"' in (message.value or b""))

    def _plan_outages(self) -> None:
        random = self.random
        touched = {
            "ingest": "events facts outcomes dead",
            "score": "verdicts models facts predictions shadow",
        }
        touched |= {"join": "predictions outcomes examples", "learn": "verdicts models examples"}
        topics = [suffix for agent in self.plan.cast for suffix in f"{touched[agent]} {agent}.store".split()]
        topics = [topic for topic in topics if topic != "learn.store"]
        for _ in range(self.plan.outages):
            topic = self.pipeline.topic(random.choice(topics))
            tp = TopicPartition(topic, random.randrange(self.kafka.counts[topic]))
            at = random.uniform(0.0, self.plan.seconds)
            self.loop.happen(at, self._lose_leader, tp, self.plan.outage * random.uniform(0.3, 1.0))
        for _ in range(self.plan.compactions):
            self.loop.happen(random.uniform(0.0, self.plan.seconds), self._compact)

    def _lose_leader(self, tp: TopicPartition, seconds: float) -> None:
        self.note(f"{tp.topic}/{tp.partition} has no leader for {seconds:.2f} s")
        partition = self.kafka.partitions[tp]
        partition.leaderless_until = self.loop.now + seconds
        partition.skew_ms = self.random.randint(-300, 300)  # the next leader's clock

    def _compact(self) -> None:
        for partition in self.kafka.partitions.values():
            if partition.compacted:
                partition.compact(keep=self.random.randint(1, 6))

    # Processes.

    def _start(self, place: str) -> None:
        self._lives += 1
        skew = self.random.choice((0.0, 0.0, -3_600.0, 3_600.0))
        process = self.processes[place] = Process(place, self._lives, wall_skew=skew)
        self.note(f"{process.name} starts")
        if self.closing:
            process.stop.set()
        self._arm(process)
        self.loop.spawn(process, self._main(process))

    async def _main(self, process: Process) -> None:
        """A process as riverkeeper.process runs one: when an agent fails for good, it ends and is started again."""
        runtime = self._runtime(process)
        agents = [AGENTS[name](runtime) for name in self.plan.cast]
        try:
            async with asyncio.TaskGroup() as group:
                for agent in agents:
                    group.create_task(agent.run(process.stop))
        except BaseExceptionGroup as error:
            self.note(f"{process.name} fails: {error.exceptions[0]!r}")
        process.ended = True
        self.note(f"{process.name} has ended")
        if not self.closing:
            self.loop.happen(self.random.uniform(0.05, 1.0), self._start, process.place)

    def _runtime(self, process: Process) -> Runtime:
        loop = self.loop
        return Runtime(
            connection=SimulatedConnection(self.network),
            pipeline=self.pipeline,
            telemetry=TELEMETRY,
            replica=process.place,
            transactions=True,
            limits=self.plan.limits,
            signing_key=declared.SIGNING_KEY,
            now=lambda: EPOCH_MS / 1000 + loop.now + process.wall_skew,
            monotonic=lambda: loop.now,
        )

    # Faults.

    def _arm(self, process: Process) -> None:
        if self.quiet or self.faults.total() >= self.plan.most_faults:
            process.fuse = -1
        else:
            process.fuse = int(self.random.expovariate(1 / self.plan.fuse))

    def _fault(self, process: Process) -> None:
        kind = self.random.choice(self.plan.faults)
        self.faults[kind] += 1
        self.note(f"{process.name}: {kind}")
        _FAULTS[kind](self, process)
        self._arm(process)

    def _crash(self, process: Process) -> None:
        self.loop.kill(process)
        self.loop.happen(self.random.uniform(0.02, 1.5), self._start, process.place)

    def _pause(self, process: Process) -> None:
        self._halt(process, self._session() * self.random.uniform(0.8, 3.0))

    def _stall(self, process: Process) -> None:
        self._halt(process, self.random.random() * 0.05)

    def _halt(self, process: Process, seconds: float) -> None:
        process.life = Life.PAUSED
        process.pauses.append((self.loop.now, self.loop.now + seconds))
        self.loop.happen(seconds, self._resume, process)

    def _resume(self, process: Process) -> None:
        if process.life is Life.PAUSED:
            self.note(f"{process.name} goes on")
            self.loop.resume(process)

    def _cut(self, process: Process) -> None:
        process.cut_until = self.loop.now + self._session() * self.random.uniform(0.1, 2.5)

    def _stop(self, process: Process) -> None:
        process.stop.set()

    def _session(self) -> float:
        return self.plan.limits.session_timeout_ms / 1000

    def _heal(self) -> None:
        self.note("quiet")
        self.quiet = True
        self.network.loss = self.network.stragglers = self.kafka.refusals = 0.0
        for process in self.processes.values():
            process.fuse = -1
            process.cut_until = 0.0
            self._resume(process)


_FAULTS: dict[str, Callable[[World, Process], None]] = {
    "crash": World._crash,
    "pause": World._pause,
    "stall": World._stall,
    "cut": World._cut,
    "stop": World._stop,
}

RUNNING: list[World] = []  # the one run that is on
TELEMETRY = Telemetry()  # written to and never read: one for all runs


def _heard(_logger: Any, _method: str, event: Any) -> Any:
    """structlog's last processor: nothing is printed; a failure that no fault explains is kept."""
    if RUNNING:
        world = RUNNING[-1]
        process = CURRENT.get()
        world.note(f"{process.name if process else ''} log: {dict(event)}")
        own_fault = event.get("exc_info") is not None or OVERLAPPING in str(event.get("error"))
        if event.get("event") == "restart" and own_fault:
            world.unexpected.append(f"{event.get('agent')}: {event.get('error')}")
    raise structlog.DropEvent


def listen() -> None:
    """Sends the agents' logs to the run that is on."""
    structlog.configure(
        processors=[_heard],
        wrapper_class=structlog.make_filtering_bound_logger(30),  # warnings
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )


def simulate(seed: int, *, tracing: bool = False) -> Outcome:
    return World(seed, tracing=tracing).run()
