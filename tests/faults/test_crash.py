"""A process that dies between any two steps of the write order loses nothing and counts nothing twice."""

from __future__ import annotations

import signal

import pytest

from tests.faults.trial import Trial
from tests.system.harness import Replica

AGENTS = ("ingest", "score", "join", "learn")
BY_ORIGIN = ("ingest", "score")  # whose outputs go without a transaction

# Each kills every agent that passes there, at a seeded passing: (point, agents).
IN_A_TAKEOVER = {"fencing": AGENTS, "fenced": AGENTS, "store-read": AGENTS}
AT_WORK = {
    "fetched": AGENTS,
    "outputs-ready": BY_ORIGIN,
    "outputs-written": BY_ORIGIN,
    "outputs-acknowledged": BY_ORIGIN,
    "version-made": ("learn",),
    "transaction-begun": AGENTS,
    "first-batch": AGENTS,
    "state-delivered": AGENTS,
    "commit-written": AGENTS,
    "committed": AGENTS,
}
IN_A_HANDOVER = {"handing-over": AGENTS, "handed-over": AGENTS}

PARTITIONS = {"learn": 1}  # of the agents' stores; of others four
PASSINGS = {
    "learn": 4
}  # among which the seed chooses: a version is made now and then, others work all the time
MANY = 12


async def died(trial: Trial, victims: dict[str, Replica]) -> None:
    """Waits until each has killed itself; another takes its place at once, for the next may wait for its work."""
    left = dict(victims)

    def replaced() -> bool:
        for agent in [agent for agent, victim in left.items() if victim.process.poll() is not None]:
            victim = left.pop(agent)
            assert victim.process.returncode == -signal.SIGKILL, f"{agent}: {victim.tail()}"
            trial.mark()
            trial.spawn(agent)
        return not left

    await trial.until(replaced, "each victim passes its point, and is replaced")
    await trial.recovered("predictions", "models")


def seeded(
    trial: Trial, point: str, agents: tuple[str, ...], most: dict[str, int], else_: int
) -> dict[str, Replica]:
    nth = {agent: 1 + trial.rng.randrange(most.get(agent, else_)) for agent in agents}
    return {agent: trial.armed(agent, point=point, nth=nth[agent]) for agent in agents}


@pytest.mark.parametrize("point", AT_WORK)
async def test_crash_at_work(trial: Trial, point: str) -> None:
    agents = AT_WORK[point]
    if others := [name for name in AGENTS if name not in agents]:
        trial.spawn(*others)
    victims = seeded(trial, point, agents, PASSINGS, MANY)
    trial.feed()
    await died(trial, victims)
    await trial.quiet()


@pytest.mark.parametrize("point", IN_A_TAKEOVER)
async def test_crash_in_a_takeover(trial: Trial, point: str) -> None:
    before = trial.spawn(*AGENTS)
    await trial.flowing()
    await trial.moment()
    before.kill()
    await died(trial, seeded(trial, point, IN_A_TAKEOVER[point], PARTITIONS, 4))
    await trial.quiet()


@pytest.mark.parametrize("point", IN_A_HANDOVER)
async def test_crash_in_a_handover(trial: Trial, point: str) -> None:
    victims = seeded(trial, point, IN_A_HANDOVER[point], PARTITIONS, 4)
    await trial.flowing()
    await trial.moment()
    for victim in victims.values():
        victim.process.terminate()
    await died(trial, victims)
    await trial.quiet()
