"""Two supervisors cannot undo each other: a verdict that follows an outdated one changes nothing.

The new leader quarantines, the stale one writes `live`, and compaction would keep `live`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack

import pytest

from riverkeeper import Pipeline
from riverkeeper.agents.follow import Verdicts
from riverkeeper.models.routing import Routing
from riverkeeper.supervisor.lifecycle import operator_verdict
from riverkeeper.supervisor.operator import Overruled, issue
from riverkeeper.topics.catalog import family
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Out, Record, Writer
from riverkeeper.topics.messages import State, Verdict
from riverkeeper.topics.store import latest
from tests.agents.loop import made
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.without import Remedy
from tests.topics.logs import connection, records

REMEDIES = [
    Remedy(
        "models/routing.py",
        "        if route is None or verdict.follows != route.offset:\n",
        "        if route is None:\n",
        what="a verdict names the one it follows",
    ),
    Remedy(
        "topics/catalog.py",
        '        "verdicts": _delete(FOREVER),\n',
        '        "verdicts": _compact(),\n',
        what="verdicts are never compacted",
    ),
]


class Delayed(Writer):
    """A supervisor's hand that writes only when another one has decided."""

    def __init__(self, where: Connection, pipeline: Pipeline) -> None:
        super().__init__(where)
        self._where, self._pipeline = where, pipeline

    async def write(self, outs: Iterable[Out]) -> None:
        await quarantine(self._where, self._pipeline)
        await super().write(outs)


async def quarantine(where: Connection, pipeline: Pipeline) -> Verdict:
    return await issue(where, pipeline, "line", State.QUARANTINED, "out of bounds", by="the new leader")


def kept(pipeline: Pipeline, log: list[Record]) -> list[Record]:
    """What is left of the topic when the broker has cleaned it up, long after."""
    (spec,) = (
        s for s in family(pipeline.name, partitions=1, model_partitions=1) if s.name.endswith("verdicts")
    )
    if "compact" not in spec.config["cleanup.policy"]:
        assert spec.config["retention.ms"] == "-1"
        return log
    values = set(latest(log).values())
    return [record for record in log if record.value in values]


def folded(pipeline: Pipeline, log: Iterable[Record]) -> Routing:
    routing = Routing.declared(pipeline.models, pipeline.serving)
    for record in log:
        routing = routing.obey(record.offset, Verdict.model_validate_json(record.value or b""))
    return routing


async def known_to_agents(broker: Broker, pipeline: Pipeline) -> State:
    """What a replica that starts now reads."""
    async with AsyncExitStack() as stack:
        verdicts = Verdicts(runtime(pipeline, broker))
        for each in await verdicts.follow(stack):
            task = asyncio.ensure_future(each)
            stack.callback(task.cancel)
        return verdicts.routing.routes["line"].state


async def test_a_stale_verdict_is_on_the_log_and_not_in_force(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        where = connection(real)
        stale = Delayed(where, pipeline)
        try:
            await issue(where, pipeline, "line", State.LIVE, "well again", by="the old one", writer=stale)
        except Overruled as overruled:
            told = overruled.first.by
        else:
            told = "nobody"
        log = await records(real, pipeline.topic("verdicts"))
        states = [Verdict.model_validate_json(record.value or b"").state for record in log]
        assert states == [State.QUARANTINED, State.LIVE], "both were written"
        assert await known_to_agents(real, pipeline) is State.QUARANTINED
        assert folded(pipeline, kept(pipeline, log)).routes["line"].state is State.QUARANTINED
        assert told == "the new leader"


@pytest.mark.parametrize("late", [State.LIVE, State.SHADOW, State.DESTROYED])
async def test_one_that_was_paused_through_two_decisions_changes_nothing(real: Broker, late: State) -> None:
    async with made(real, partitions=1) as pipeline:
        where = connection(real)
        paused = operator_verdict(
            Routing.declared(pipeline.models, pipeline.serving), "line", late, "stale", 0, "the old one"
        )
        await quarantine(where, pipeline)
        await issue(where, pipeline, "line", State.PROBATION, "healed", by="the new leader")
        writer = Writer(where)
        await writer.start()
        await writer.write([Out(pipeline.topic("verdicts"), 0, b"line", paused.encode())])
        await writer.stop()
        assert await known_to_agents(real, pipeline) is State.PROBATION
        log = await records(real, pipeline.topic("verdicts"))
        assert folded(pipeline, kept(pipeline, log)).routes["line"].state is State.PROBATION
