"""No model answers without a lease: a replica that was stopped, or cut off, serves no quarantined model.

Score is stopped after predicting, the verdict comes, it is continued 10 s later and sends. Or `verdicts`
has no leader while `predictions` has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest
from river import base

from riverkeeper import Model
from riverkeeper.agents.score import Score
from riverkeeper.supervisor.operator import issue
from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.messages import Reason, Source, State
from tests.agents.loop import made
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand, fact, predictions
from tests.counterexamples.published import outs, sealed
from tests.counterexamples.without import Remedy
from tests.topics.logs import connection, until, writing

REMEDIES = [
    Remedy(
        "agents/score.py",
        "            if not view.lease or await self._agent.still(view):\n",
        "            if view.routing is not None:\n",
        what="the lease is checked just before the write",
    ),
    Remedy(
        "agents/follow.py",
        "        return self._runtime.monotonic() - self._known_at < self._runtime.limits.lease_seconds\n",
        "        return self._known_at > 0\n",
        what="a lease ends",
    ),
]
LEASE_S = BY_HAND.lease_seconds


class Stopped(base.Regressor):
    """Answers 7; and once, if told so, its whole process stands still before it goes on."""

    meanwhile: Callable[[], None] | None = None

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        meanwhile, Stopped.meanwhile = Stopped.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return 7.0

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        pass


class Steady(base.Regressor):
    """The fallback: 1, always."""

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        return 1.0

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        pass


MODELS = {"line": Model(Stopped, warmup=0), "steady": Model(Steady, warmup=0)}


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """Nobody else's: its leaders are moved."""
    with EmbeddedBroker() as broker:
        yield broker


def elsewhere(work: Callable[[], Any]) -> None:
    """Does it in another thread and loop, while this thread, and so its loop, stands still."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001  raised again in the test's thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


async def test_a_replica_stopped_after_predicting_sends_nothing_of_it(real: Broker) -> None:
    async with made(real, partitions=1, models=MODELS, fallback="steady") as pipeline:

        async def verdict() -> None:
            await issue(connection(real), pipeline, "line", State.QUARANTINED, "a rogue", by="kim")
            await asyncio.sleep(2 * LEASE_S)

        async with writing(real) as writer:
            for name, estimator in (("line", Stopped()), ("steady", Steady())):
                await writer.write(outs(pipeline, sealed(pipeline, name, 1, estimator)))
            async with ByHand(Score(runtime(pipeline, real, "a", BY_HAND))) as score:
                await score.take_over(0)
                await writer.write([fact(pipeline, i) for i in range(5)])
                await score.read_to(pipeline.topic("facts"), 5)
                Stopped.meanwhile = lambda: elsewhere(verdict)
                await writer.write([fact(pipeline, i) for i in range(5, 10)])
                await score.read_to(pipeline.topic("facts"), 10)
        said = await predictions(real, pipeline)
        assert [(p.model, p.value) for p in said] == [("line", 7.0)] * 5 + [("steady", 1.0)] * 5
        assert {p.reason for p in said[5:]} == {Reason.QUARANTINED.value}
        assert [p.verdict for p in said] == [-1] * 5 + [0] * 5, "each shows the last verdict it knew"


async def test_without_the_verdicts_the_constant_answers(own_broker: EmbeddedBroker) -> None:
    """A model that was quarantined meanwhile must not serve; the fallback model is a model, too."""
    broker = Broker(own_broker.address, transactions=False, embedded=own_broker)
    async with made(broker, partitions=1, models=MODELS, fallback="steady", constant=3.0) as pipeline:
        async with writing(broker) as writer:
            for name, estimator in (("line", Stopped()), ("steady", Steady())):
                await writer.write(outs(pipeline, sealed(pipeline, name, 1, estimator)))
            score = Score(runtime(pipeline, broker, "a", BY_HAND))
            async with ByHand(score) as by_hand:
                await by_hand.take_over(0)
                await writer.write([fact(pipeline, i) for i in range(5)])
                await by_hand.read_to(pipeline.topic("facts"), 5)
                own_broker.set_leader(pipeline.topic("verdicts"), 0, -1)
                await asyncio.sleep(3 * LEASE_S)  # what was asked before the cut is over
                await writer.write([fact(pipeline, i) for i in range(5, 10)])
                await by_hand.read_to(pipeline.topic("facts"), 10)
                own_broker.set_leader(pipeline.topic("verdicts"), 0, 1)
                await until(score.verdicts.fresh)
                await writer.write([fact(pipeline, i) for i in range(10, 15)])
                await by_hand.read_to(pipeline.topic("facts"), 15)
        said = await predictions(broker, pipeline)
    assert [p.value for p in said] == [7.0] * 5 + [3.0] * 5 + [7.0] * 5
    assert {(p.model, p.source, p.reason) for p in said[5:10]} == {
        ("constant", Source.FALLBACK, Reason.NO_LEASE.value)
    }
