"""Members that come and go, in order or not, at any rate, lose nothing and count nothing twice."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from riverkeeper.topics.log import Membership
from tests.faults.trial import Trial, owned
from tests.system.harness import Replica

AGENTS = ("ingest", "score", "join", "learn")
MOST, LEAST = 8, 2  # replicas
STORM = 10  # members that come for a second and go, one after the other
STORMY_S = 1.0


def at_work(replicas: list[Replica], agent: str) -> list[set[int]]:
    """What those that live own, each by what it said last."""
    return [owned(r, agent) or set() for r in replicas if not r.expected]


def shared_out(trial: Trial, replicas: list[Replica], agent: str) -> bool:
    """Whether the living have all partitions, and none has two that another could have."""
    shares = at_work(replicas, agent)
    partitions = trial.world.pipeline.partitions
    fair = -(-partitions // len(shares))
    return sum(map(len, shares)) == partitions and max(map(len, shares)) <= fair


def takes_part(replica: Replica) -> bool:
    return all(owned(replica, agent) is not None for agent in AGENTS)


@pytest.mark.parametrize("agent", ["score"])
async def test_two_to_eight_and_back(trial: Trial, agent: str) -> None:
    """Six more join, some at the same moment; then six leave, each in order or by kill -9 as the seed has it."""
    trial.spawn(*(name for name in AGENTS if name != agent))
    replicas = [trial.spawn(agent) for _ in range(LEAST)]
    await trial.flowing()
    while len(replicas) < MOST:
        together = min(trial.rng.randrange(1, 4), MOST - len(replicas))
        replicas += [trial.spawn(agent) for _ in range(together)]
        await trial.moment()
    await trial.until(lambda: shared_out(trial, replicas, agent), "all partitions are shared out")
    trial.mark()
    for replica in trial.rng.sample(replicas, MOST - LEAST):
        if trial.rng.random() < 0.5:
            replica.kill()
        else:
            await replica.stop()
    await trial.recovered()
    await trial.until(lambda: shared_out(trial, replicas, agent), "two have all of it")
    await trial.quiet()


async def test_a_storm_of_rebalances(trial: Trial) -> None:
    """Members without agents behind them join every group, hold their share for a second, and leave."""
    trial.spawn()
    await trial.flowing()
    for _ in range(STORM):
        trial.mark()
        await asyncio.gather(*(passing(trial, agent) for agent in AGENTS))
    await trial.recovered("predictions", "examples", "models")
    await trial.quiet()


async def passing(trial: Trial, agent: str) -> None:
    """A member that takes a share of the partitions and does nothing with it."""
    pipeline = trial.world.pipeline
    topics = {
        "ingest": ["events"],
        "score": ["facts"],
        "join": ["predictions", "outcomes"],
        "learn": ["models"],
    }

    async def nothing(*_: object) -> None:
        pass

    member = Membership(
        trial.world.connection,
        pipeline.agent_group(agent),
        [pipeline.topic(suffix) for suffix in topics[agent]],
        assigned=nothing,
        revoked=nothing,
        session_timeout_ms=6_000,
    )
    await member.start()
    try:
        await asyncio.sleep(trial.rng.uniform(0.5, 1.5) * STORMY_S)
    finally:
        await member.stop()


async def test_a_rolling_restart(trial: Trial) -> None:
    """Each process is stopped in order and replaced, one after the other, as a deployment does it."""
    replicas = [trial.spawn(), trial.spawn()]
    await trial.flowing()
    for replica in replicas:
        await trial.moment()
        trial.mark()
        await replica.stop()
        after = trial.spawn()
        await trial.recovered("predictions", "models")
        await trial.until(partial(takes_part, after), "it takes part")
    await trial.quiet()
