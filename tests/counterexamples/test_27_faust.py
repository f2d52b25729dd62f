"""A supervisor that died is replaced within seconds, hears every replica, and counts what it hears once.

Faust's session lasts 60 s: for so long nobody would judge after a kill -9. Ours lasts 6, and one that comes
back to where it was killed takes its seat at once, whatever the session. A Faust leader
sees only the partitions it owns: so vitals have one, and who owns it judges. What was read and not
committed when a supervisor died is read again: vitals name the facts they cover, and count for those that
were not counted. Timers cannot write tables: by construction only the agent that reads vitals does.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid

import pytest
from aiokafka.consumer.group_coordinator import GroupCoordinator

from riverkeeper.supervisor import faust_app
from riverkeeper.supervisor.app import Supervisor
from riverkeeper.topics.catalog import family
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import Span, State, Verdict, Vitals
from riverkeeper.topics.seat import Seat
from tests.brokers.broker import Broker
from tests.counterexamples.without import Remedy
from tests.supervisor.test_app import LIMITS, Flights, World, _create, running, state, until
from tests.system.harness import processes, world
from tests.topics.logs import connection, records

REMEDIES = [
    Remedy(
        "supervisor/faust_app.py",
        "        broker_session_timeout=SESSION_S,\n        broker_rebalance_timeout=SESSION_S,\n",
        "",
        what="a session of 6 s",
    ),
    Remedy(
        "supervisor/faust_app.py",
        "        consumer_group_instance_id=seat,\n",
        "",
        what="a seat in the group",
    ),
    Remedy("topics/catalog.py", '"vitals": 1, ', ""),
    Remedy(
        "supervisor/policies/fold.py",
        "share = uncovered_share(vitals.spans, covered)",
        "share = 1.0",
        what="spans that were counted do not count again",
    ),
]

LONG_S = 240.0  # a session that the test does not wait for
REPLACED_S = 30.0  # a session of 6 s, Faust's start, and room on a busy machine; with Faust's own it is 60


async def test_a_killed_supervisor_is_replaced_within_seconds(real: Broker) -> None:
    async with world(real, "levels") as it:
        with processes() as replicas:
            replicas.append(it.spawn(["supervisor"]))
            # The seat is taken when the group has committed what it read.
            model = next(iter(it.pipeline.models))
            said = vitals(model, Span(0, 0, 100), asked=100, out_of_bounds=100)
            writer = Writer(it.connection)
            await writer.start()
            try:
                await writer.write([Out(it.pipeline.topic("vitals"), 0, b"", said.encode())])
            finally:
                await writer.stop()
            await it.outside.until(
                lambda: it.outside["verdicts"] or it.outside["incidents"],
                "the supervisor judges",
                watch=replicas[0].check,
            )
            replicas[0].kill()
        successor = Supervisor(it.pipeline, it.connection, LIMITS)
        began = time.monotonic()
        await successor.start()
        try:
            while not successor.judging:
                waited = time.monotonic() - began
                assert waited < REPLACED_S, f"nobody has judged for {waited:.0f} s"
                await asyncio.sleep(0.1)
        finally:
            await successor.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="names are held by the Linux kernel")
async def test_one_that_comes_back_does_not_wait_for_its_session(
    real: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faust_app, "SESSION_S", LONG_S)
    monkeypatch.setattr(faust_app, "REQUEST_S", LONG_S)  # Faust takes no lesser one
    pipeline = Flights(f"flights-{uuid.uuid4().hex[:8]}")
    await _create(real, pipeline.name)

    async def nothing(self: GroupCoordinator) -> None:
        """Who is killed says no goodbye."""

    monkeypatch.setattr(GroupCoordinator, "_maybe_leave_group", nothing)
    await judged_once(pipeline, real)
    await judged_once(pipeline, real)


async def judged_once(pipeline: Flights, real: Broker) -> None:
    supervisor = Supervisor(pipeline, connection(real), LIMITS, seat=Seat)
    await supervisor.start()
    try:
        await until(lambda: supervisor.judging)
    finally:
        await supervisor.stop()


def vitals(model: str, span: Span, **seen: int) -> Vitals:
    now = time.time_ns() // 1_000_000
    return Vitals.model_validate(
        {"agent": "score", "replica": "r", "model": model, "version": 1, "spans": [span]}
        | {"from_ms": now, "to_ms": now + 1, **seen}
    )


async def test_vitals_that_are_read_twice_count_once(real: Broker) -> None:
    pipeline = Flights(f"flights-{uuid.uuid4().hex[:8]}")
    await _create(real, pipeline.name)
    writer = Writer(connection(real))
    await writer.start()
    try:
        it = World(real, pipeline, writer)
        few = vitals("eager", Span(0, 0, 15), asked=15, out_of_bounds=15)
        enough = vitals("eager", Span(0, 15, 20), asked=5, out_of_bounds=5)
        async with running(it) as supervisor:
            for said in (few, few, enough):
                await it.write("vitals", "eager", said.encode())
            await until(lambda: state(supervisor) is State.QUARANTINED)
    finally:
        await writer.stop()
    (first, *_) = await records(real, f"{pipeline.name}.verdicts")
    evidence = Verdict.model_validate_json(first.value or b"").evidence
    assert (evidence["answers"], evidence["bad"]) == (20, 20)


def test_vitals_have_one_partition_whatever_the_facts_have() -> None:
    counts = {spec.name: spec.partitions for spec in family("p", partitions=8, model_partitions=4)}
    assert counts["p.vitals"] == counts["p.supervisor.store"] == 1
