"""A process stopped past its session that goes on writing where it was: fenced, and nothing counts twice."""

from __future__ import annotations

import pytest

from tests.faults.test_kill import SIGN
from tests.faults.trial import Trial, stopped, told
from tests.system.harness import Replica

AGENTS = ("ingest", "score", "join", "learn")
PASSINGS = {"learn": 4}  # among which the seed chooses
MANY = 12


def dropped_since(victim: Replica, lines: int) -> bool:
    """Whether its log tells, after so many lines, that it dropped what it knew, and is back in its group.

    It is fenced; or, had it been stopped for longer than a delivery may take, out of time.
    """
    names = [e.get("event") for e in list(told(victim))[lines:]]
    return "restart" in names and "partitions" in names[names.index("restart") :]


async def zombie(trial: Trial, agent: str, point: str) -> None:
    trial.spawn(*(name for name in AGENTS if name != agent))
    nth = 1 + trial.rng.randrange(PASSINGS.get(agent, MANY))
    victim = trial.armed(agent, point=point, nth=nth, do="stop")
    trial.feed()
    await trial.until(lambda: stopped(victim), f"it stops itself at {point}, passing {nth}")
    trial.mark()
    trial.spawn(agent)
    await trial.recovered(SIGN[agent])
    await trial.moment()
    lines = len(list(told(victim)))
    victim.resume()
    trial.note("the zombie goes on")
    await trial.until(lambda: dropped_since(victim, lines), "it drops what it knew, and is back in its group")
    await trial.moment()
    await trial.quiet()


@pytest.mark.parametrize(
    ("agent", "point"),
    [
        ("ingest", "outputs-ready"),
        ("ingest", "state-delivered"),
        ("score", "outputs-ready"),
        ("score", "state-delivered"),
        ("join", "transaction-begun"),
        ("join", "state-delivered"),
        ("learn", "version-made"),
    ],
)
async def test_zombie(trial: Trial, agent: str, point: str) -> None:
    await zombie(trial, agent, point)


@pytest.mark.parametrize("kind", ["ballast"])
async def test_a_learner_deposed_in_mid_publish(trial: Trial) -> None:
    """Its version takes several batches: it stops after the first, another publishes, it sends the rest."""
    await zombie(trial, "learn", "first-batch")
