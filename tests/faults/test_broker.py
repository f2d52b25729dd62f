"""A broker that dies, stops or is cut off costs time, never a record: agents wait, and go on by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.brokers.proxy import Proxy, proxy
from tests.faults.trial import Trial
from tests.system.harness import SESSION_S

AWAY_S = (1.0, 8.0)  # a broker stays away for a time between these: below and above a session
OVER_SESSION_S = SESSION_S + 4.0
LAG_S = 0.3  # each way, on a slow line
SLOW_S = 8.0  # that it stays slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster() as it:
        yield it


@pytest.fixture
async def line(cluster: KafkaCluster) -> AsyncIterator[Proxy]:
    """What lies between the agents and the broker; the load and the outside reader go past it."""
    async with proxy(cluster.routes) as it:
        yield it


@pytest.fixture
def broker(cluster: KafkaCluster, line: Proxy) -> Broker:
    return Broker(cluster.address, transactions=True, behind=cluster.behind)


async def dark(trial: Trial, seconds: float) -> None:
    """A time in which no prediction comes: else the fault was none."""
    await asyncio.sleep(1.0)  # what was on its way has come
    said = len(trial.outside["predictions"])
    await asyncio.sleep(seconds)
    assert len(trial.outside["predictions"]) == said, "the agents went on"


async def test_broker_killed(trial: Trial, cluster: KafkaCluster) -> None:
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    cluster.kill(1)
    await asyncio.sleep(trial.rng.uniform(*AWAY_S))
    await asyncio.to_thread(cluster.start, 1)
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_broker_stopped(trial: Trial, cluster: KafkaCluster) -> None:
    """SIGSTOP for longer than a session: connections stand, and nothing answers."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    cluster.pause(1)
    await asyncio.sleep(OVER_SESSION_S)
    cluster.resume(1)
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_connections_reset(trial: Trial, line: Proxy) -> None:
    """All at once, again and again; each client may connect anew at once."""
    trial.spawn()
    await trial.flowing()
    for _ in range(trial.rng.randint(3, 6)):
        await trial.moment()
        line.sever()
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_line_cut(trial: Trial, line: Proxy) -> None:
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    line.cut()
    await dark(trial, trial.rng.uniform(*AWAY_S))
    line.mend()
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_line_half_open(trial: Trial, line: Proxy) -> None:
    """Nothing passes and nothing is refused, for longer than a session; then all that was held up does."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    line.hang()
    await dark(trial, OVER_SESSION_S)
    line.mend()
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_line_half_open_for_good(trial: Trial, line: Proxy) -> None:
    """What was on its way never arrives: a connection that hangs ends without a word of the broker's."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    line.hang()
    await dark(trial, OVER_SESSION_S)
    line.sever()
    line.mend()
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_line_stranded(trial: Trial, line: Proxy) -> None:
    """Connections that stand and are dead, while new ones would do: each client has to give its own up.

    That takes the seats in the groups up to a minute; who is told to end meanwhile is cut short, with a word.
    """
    replica = trial.spawn()
    await trial.flowing()
    await trial.moment()
    line.strand()
    trial.mark()
    await trial.recovered("predictions", "examples", "models")
    await trial.quiet(stop=False)
    replica.kill()


async def test_line_slow(trial: Trial, line: Proxy) -> None:
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    line.slow(LAG_S)
    await asyncio.sleep(SLOW_S)
    trial.mark()
    await trial.recovered()
    line.slow(0.0)
    await trial.quiet()
