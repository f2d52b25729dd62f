"""kill -9 of the process that runs every agent, at any moment, loses nothing and counts nothing twice."""

from __future__ import annotations

import random

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.system import account
from tests.system.harness import Replica, World, processes, world
from tests.system.play import finished, stormy

EVENTS = 4_000
KILLS = 3
SEED = 20_130_101
CHECKPOINT_SECONDS = "3"  # rare, so that each kill leaves work that has to be repeated


def moments(rng: random.Random) -> list[int]:
    """Numbers of predictions at which to kill, one in each stretch of the run."""
    stretch = EVENTS // 2 // (KILLS + 1)
    return [i * stretch + rng.randrange(stretch) for i in range(1, KILLS + 1)]


class Killed:
    """One process after the other, each but the last killed at its moment."""

    def __init__(self, world: World, replicas: list[Replica], moments: list[int]) -> None:
        self._world, self._replicas, self._moments = world, replicas, moments
        self._start()

    def _start(self) -> None:
        self._replicas.append(self._world.spawn(RIVERKEEPER_CHECKPOINT_SECONDS=CHECKPOINT_SECONDS))

    def look(self) -> None:
        self._replicas[-1].check()
        if self._moments and len(self._world.outside["predictions"]) >= self._moments[0]:
            self._moments.pop(0)
            self._replicas[-1].kill()
            self._start()


async def test_killed_in_mid_stream(kafka: KafkaCluster) -> None:
    rng = random.Random(SEED)
    events, retries = stormy(EVENTS)
    at = moments(rng)
    async with world(Broker(kafka.address, transactions=True), "flights") as it:
        with processes() as replicas:
            killed = Killed(it, replicas, list(at))
            await it.feed(events, retries, killed.look)
            await finished(it, len(events) - retries, killed.look)
            await replicas[-1].stop()
        await it.outside.read_up()
        found = account.adds_up(it.pipeline, it.outside)
        told = f"killed at {at} predictions, {found.copies} copies"
        assert found.duplicates == retries, told
        assert len(found.facts) + len(found.outcomes) + found.dead + retries == len(events), told
        assert found.copies > 0, f"{told}: the kills interrupted nothing, so this proved nothing"

        versions = account.manifests(it.outside)
        account.learned_once(it.outside, versions, to_the_end=True)
        assert len(replicas) == KILLS + 1
