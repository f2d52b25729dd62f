"""The supervisor on a broker: vitals in, verdicts out, and nothing forgotten by a restart."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from faust.types import TP

from riverkeeper.models.features import PipelineError
from riverkeeper.operate import hold
from riverkeeper.supervisor.app import KEEP_S, Supervisor, topics_needed
from riverkeeper.supervisor.faust_app import Consumer
from riverkeeper.supervisor.healths import Healths
from riverkeeper.supervisor.operator import Overruled, issue
from riverkeeper.supervisor.policies import Health, Limits
from riverkeeper.topics.catalog import Catalog, Replication, TopicSpec, create_embedded
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import FencedWriter, Out, Writer
from riverkeeper.topics.messages import Incident, Manifest, Span, State, Verdict, Vitals
from tests.brokers.broker import Broker

LIMITS = Limits(min_dwell_ms=200, probation_answers=100, probation_examples=100, trouble_ms=1_500)
WAIT_S = 20.0  # a rebalance of the embedded broker takes 4 s
STOP_JOINING_S = 5.0  # in the middle of a start or a rebalance: what Ctrl-C may take


@dataclass(frozen=True)
class Flights:
    name: str
    models: tuple[str, ...] = ("eager", "steady", "baseline")
    serving: tuple[str, ...] = ("eager",)
    fallback: str = "baseline"


class World:
    """The other agents, as far as the supervisor can tell."""

    def __init__(self, broker: Broker, pipeline: Flights, writer: Writer) -> None:
        self.broker, self.pipeline, self.writer = broker, pipeline, writer
        self.connection = Connection(broker.address)
        self._next = 0
        self._last_ms = 0

    async def write(self, suffix: str, key: str, value: bytes) -> None:
        await self.writer.write([Out(f"{self.pipeline.name}.{suffix}", 0, key.encode(), value)])

    async def score(self, *, line: int, version: int, bad: int = 0, asked: int = 100) -> None:
        span, at = self._span(asked)
        vitals = _vitals("score", line, version, span, at, asked=asked, out_of_bounds=bad)
        await self.write("vitals", vitals.model, vitals.encode())

    async def learn(self, *, line: int, version: int, error: float = 1.0, labelled: int = 100) -> None:
        span, at = self._span(labelled)
        vitals = _vitals(
            "learn",
            line,
            version,
            span,
            at,
            learned=labelled,
            labelled=labelled,
            error=error * labelled,
            baseline_error=float(labelled),
        )
        await self.write("vitals", vitals.model, vitals.encode())

    async def publish(self, *, line: int, version: int, parent: int = 0) -> None:
        manifest = _manifest(line, version, parent, {0: self._next})
        await self.write("models", f"{manifest.model}/{version}", manifest.encode())

    def _span(self, count: int) -> tuple[Span, int]:
        start, self._next = self._next, self._next + count
        # Windows of one agent follow each other; two in one millisecond would share a boundary.
        self._last_ms = max(self._last_ms + 1, time.time_ns() // 1_000_000)
        return Span(0, start, self._next), self._last_ms


def _vitals(agent: str, line: int, version: int, span: Span, at: int, **seen: float) -> Vitals:
    return Vitals.model_validate(
        {"agent": agent, "replica": "r", "model": "eager", "line": line, "version": version}
        | {"spans": [span], "from_ms": at, "to_ms": at + 1, **seen}
    )


def _manifest(line: int, version: int, parent: int, offsets: dict[int, int]) -> Manifest:
    return Manifest(
        model="eager",
        version=version,
        line=line,
        parent=parent,
        fingerprint="f",
        environment={},
        spans=(),
        offsets=offsets,
        learned=0,
        size=0,
        chunks=0,
        sha256="",
        published_ms=time.time_ns() // 1_000_000,
    )


async def _create(broker: Broker, name: str) -> None:
    counts = {f"{name}.{s}": n for s, n in {"verdicts": 1, "models": 2, "incidents": 1}.items()}
    specs = [TopicSpec(topic, n) for topic, n in {**counts, **topics_needed(name)}.items()]
    if broker.embedded is not None:
        create_embedded(broker.embedded, specs)
        return
    async with Catalog(Connection(broker.address), Replication(factor=1, min_insync=1)) as catalog:
        await catalog.create(specs)


@pytest.fixture
async def world(broker: Broker) -> AsyncIterator[World]:
    pipeline = Flights(f"flights-{uuid.uuid4().hex[:8]}")
    await _create(broker, pipeline.name)
    writer = Writer(Connection(broker.address))
    await writer.start()
    yield World(broker, pipeline, writer)
    await writer.stop()


@asynccontextmanager
async def running(world: World, keep_s: float = KEEP_S) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(world.pipeline, world.connection, LIMITS, keep_s=keep_s)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        began = time.monotonic()
        await supervisor.stop()
        assert time.monotonic() - began < 3.0
        assert supervisor.crash_reason is None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  the state is read back from the log
            await asyncio.sleep(0.02)


def state(supervisor: Supervisor, model: str = "eager") -> State:
    return supervisor.routing.routes[model].state


def only(supervisor: Supervisor) -> Incident:
    (incident,) = supervisor.incidents.values()
    return incident


async def test_a_rogue_is_taken_out_survives_a_restart_and_is_led_back(world: World) -> None:
    async with running(world) as first:
        await world.learn(line=0, version=0)
        await world.publish(line=0, version=1)
        await world.score(line=0, version=1, asked=300)
        await world.learn(line=0, version=1)
        await world.score(line=0, version=1, bad=90)
        await until(lambda: state(first) is State.QUARANTINED and bool(first.incidents))
        before = first.routing
        assert before.routes["eager"].restore == 0 or before.routes["eager"].restore == 1
    async with running(world) as second:
        assert second.routing == before
        assert [s.state for s in only(second).timeline] == ["detected", "quarantined"]
        await world.publish(line=1, version=2, parent=1)
        await until(lambda: state(second) is State.PROBATION)
        await world.score(line=1, version=2, asked=100)
        await world.learn(line=1, version=2)
        await until(lambda: state(second) is State.LIVE)
        await until(lambda: only(second).resolved)
        steps = [s.state for s in only(second).timeline]
        assert steps[:2] == ["detected", "quarantined"] and steps[3:] == ["probation", "re-admitted"]
        assert steps[2] in ("restored", "relearned")
        assert second.routing.ignored == 0


@pytest.mark.parametrize("keep_s", [0.0, 0.4, 3_600.0])
async def test_a_restart_counts_every_answer_once(world: World, keep_s: float) -> None:
    """Whether health is kept with each record, in between, or never: what it lacks is read again."""
    answered = 0
    for _ in range(3):
        async with running(world, keep_s=keep_s) as supervisor:
            await until(lambda s=supervisor: s.judging)  # type: ignore[misc]
            for _ in range(8):
                await world.score(line=0, version=1, asked=10)
                answered += 10
                await asyncio.sleep(0.1)  # vitals are no burst
            await until(lambda s=supervisor, n=answered: asked(s) >= n)  # type: ignore[misc]
            assert asked(supervisor) == answered


async def test_what_is_fetched_while_faust_seeks_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the seek is slow, and the agent too, so that much is in its queue at the end of the seek."""
    seek = Consumer.seek_to_committed

    async def slow(self: Consumer) -> Mapping[TP, int]:
        await asyncio.sleep(0.1)
        return await seek(self)

    async with running(world, keep_s=0.0) as first:
        await world.score(line=0, version=1, asked=1)
        await until(lambda: asked(first) == 1)
    monkeypatch.setattr(Consumer, "seek_to_committed", slow)
    for _ in range(500):
        await world.score(line=0, version=1, asked=1)
    async with running(world, keep_s=0.0) as second:
        await until(lambda: asked(second) >= 501)
        assert asked(second) == 501


def asked(supervisor: Supervisor) -> int:
    return sum(a.size for a in supervisor._healths.of("eager").answers)


@pytest.mark.parametrize(
    "stored",
    [
        b'{"model":"eager","line":0,"since_ms":5,"answers":[[1,2,1,15,9]],"learned":{"0":7},"covered":{}}',
        b'{"model":"eager","memory":{"bias":{"parts":[3]},"mine":{"since_ms":0}},"line":0}',
        b'{"model":["an earlier form"]}',
        b"no JSON",
    ],
)
async def test_what_another_release_left_in_the_table_is_no_end(world: World, stored: bytes) -> None:
    table = {"eager": stored, "/": stored}
    async with running(world, keep_s=0.0) as supervisor:
        await until(lambda: supervisor.judging)
        supervisor._healths = Healths(table)
        await world.score(line=0, version=1, bad=90)
        await until(lambda: state(supervisor) is State.QUARANTINED)
        await until(lambda: table["eager"] is not stored)
        assert Health.decode(table["eager"]).model == "eager"


async def test_an_operator_is_obeyed_and_not_undone(world: World) -> None:
    async with running(world) as supervisor:
        verdict = await issue(
            world.connection, world.pipeline, "eager", State.QUARANTINED, "I say so", by="kim"
        )
        await until(lambda: state(supervisor) is State.QUARANTINED)
        await until(lambda: bool(supervisor.incidents))
        assert only(supervisor).policy == "operator"
        await world.publish(line=0, version=7)
        await world.score(line=0, version=7)
        await until(lambda: supervisor._healths.of("eager").version == 7)
        await asyncio.sleep(4 * LIMITS.min_dwell_ms / 1000)  # a healing quarantine would have ended
        assert supervisor.routing.routes["eager"].offset == verdict.follows + 1
        await issue(world.connection, world.pipeline, "eager", State.LIVE, "well again", by="kim")
        await until(lambda: state(supervisor) is State.LIVE and only(supervisor).resolved)


class Jostled(Writer):
    """Whose first write finds that somebody else's came just before."""

    def __init__(self, connection: Connection, before: Out) -> None:
        super().__init__(connection)
        self._before = before

    async def write(self, outs: Iterable[Out]) -> None:
        await super().write([self._before])
        await super().write(outs)


async def test_an_operator_hears_who_decided_first(world: World) -> None:
    lee = Verdict(
        model="eager", state=State.SHADOW, follows=-1, policy="operator", reason="a look", by="lee", at_ms=0
    )
    topic = f"{world.pipeline.name}.verdicts"
    writer = Jostled(world.connection, Out(topic, 0, b"eager", lee.encode()))
    with pytest.raises(Overruled, match="lee decided shadow meanwhile: a look"):
        await issue(
            world.connection, world.pipeline, "eager", State.QUARANTINED, "x", by="kim", writer=writer
        )


# The embedded broker refuses, now and then, a member whose SyncGroup comes after the leader's.
@pytest.mark.parametrize("broker", ["kafka"], indirect=True)
async def test_two_replicas_issue_one_verdict(world: World) -> None:
    async with running(world) as one, running(world) as two:
        await until(lambda: one.ready and two.ready and one.judging != two.judging)
        await world.score(line=0, version=1, bad=90)
        await until(lambda: state(one) is State.QUARANTINED and state(two) is State.QUARANTINED)
        await asyncio.sleep(0.6)  # two more judgements
        assert one.routing.offset == two.routing.offset == 0


async def test_trouble_of_the_fallback_is_an_alarm_that_ends(world: World) -> None:
    async with running(world) as supervisor:
        for bad in (90, 0):
            for _ in range(12):
                span, at = world._span(100)
                vitals = _vitals("score", 0, 1, span, at, asked=100, out_of_bounds=bad)
                vitals = vitals.model_copy(update={"model": "baseline"})
                await world.write("vitals", "baseline", vitals.encode())
            if bad:
                await until(lambda: bool(supervisor.incidents))
                assert [s.state for s in only(supervisor).timeline] == ["alarm"]
        await until(lambda: only(supervisor).resolved)
        assert state(supervisor, "baseline") is State.SHADOW and supervisor.routing.offset == -1


async def test_foreign_bytes_silence_nothing(world: World) -> None:
    async with running(world) as supervisor:
        for suffix in ("vitals", "verdicts", "models", "incidents"):
            await world.write(suffix, "junk", b"\xff{")
        await world.score(line=0, version=1, bad=90)
        await until(lambda: state(supervisor) is State.QUARANTINED)


async def test_it_stops_at_any_moment_of_its_start(world: World) -> None:
    for delay_s in (0.0, 0.05, 0.5, 1.5):
        supervisor = Supervisor(world.pipeline, world.connection, LIMITS)
        starting = asyncio.create_task(supervisor.start())
        await asyncio.wait([starting], timeout=delay_s)
        await asyncio.sleep(delay_s)
        starting.cancel()
        began = time.monotonic()
        await asyncio.gather(starting, return_exceptions=True)
        await supervisor.stop()
        assert time.monotonic() - began < STOP_JOINING_S
        assert supervisor.crash_reason is None


async def test_versions_written_in_transactions_are_read_and_forgotten(world: World) -> None:
    topic, transactions = f"{world.pipeline.name}.models", world.broker.transactions
    learner = FencedWriter(world.connection, f"{topic}.0", transactions=transactions)
    await learner.start()
    chunk, manifest = b"eager/1/abc/0", _manifest(0, 1, 0, {0: 5})
    await learner.commit([Out(topic, 0, chunk, b"x" * 1_000), Out(topic, 0, b"eager/1", manifest.encode())])
    async with running(world) as supervisor:  # starts although the topic ends in a commit marker
        version = supervisor._known.versions["eager"][1]
        assert version.kept and version.offsets == {0: 5}
        await learner.commit([Out(topic, 0, chunk, None)])
        await until(lambda: not supervisor._known.versions["eager"][1].kept)
    await learner.stop()


async def test_a_stopped_partition_is_an_incident_until_it_goes_on(world: World) -> None:
    trouble = "ingest/3: f.events/3 at 100: the log no longer holds this offset"

    async def complain() -> None:
        while True:
            now = time.time_ns() // 1_000_000
            vitals = Vitals(agent="ingest", replica="r", model="", from_ms=now, to_ms=now, trouble=trouble)
            await world.write("vitals", "", vitals.encode())
            await asyncio.sleep(0.3)

    async with running(world) as supervisor:
        complaining = asyncio.create_task(complain())
        await until(lambda: any(not i.resolved for i in supervisor.incidents.values()))
        incident = only(supervisor)
        assert (incident.model, incident.policy) == ("", "ingest/3")
        assert "no longer holds" in incident.timeline[0].reason
        complaining.cancel()
        await until(lambda: only(supervisor).resolved)


async def test_held_it_raises_alarms_and_decides_nothing(world: World) -> None:
    """Not even a supervisor's verdict that is written behind the hold comes into force."""
    name = world.pipeline.name
    async with running(world) as supervisor:
        await hold(world.connection, name, "moving brokers", by="kim")
        await until(lambda: supervisor.routing.hold is not None)
        await world.score(line=0, version=1, bad=90)
        await until(lambda: {"hold", "bounds"} <= open_policies(supervisor))
        unaware = Verdict(
            model="eager", state=State.QUARANTINED, follows=-1, line=1, policy="bounds", reason="", at_ms=1
        )
        await world.write("verdicts", "eager", unaware.encode())
        await until(lambda: supervisor.routing.ignored == 1)
        assert state(supervisor) is State.LIVE
        with pytest.raises(PipelineError, match=f"{name} is held by kim already: moving brokers"):
            await hold(world.connection, name, "me, too", by="lee")

        await hold(world.connection, name, "moved", by="kim", held=False)
        await until(lambda: state(supervisor) is State.QUARANTINED)
        await until(lambda: not open_policies(supervisor) - {"bounds"})
        assert supervisor.routing.ignored == 1
        with pytest.raises(PipelineError, match="is not held"):
            await hold(world.connection, name, "again", by="kim", held=False)


def open_policies(supervisor: Supervisor) -> set[str]:
    return {i.policy for i in supervisor.incidents.values() if not i.resolved}
