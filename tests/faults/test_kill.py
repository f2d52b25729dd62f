"""kill -9 of any agent's process loses nothing and counts nothing twice; another process goes on."""

from __future__ import annotations

import pytest

from riverkeeper.process import NAMES
from tests.faults.trial import Trial

# Where an agent's work shows first.
SIGN = {"ingest": "facts", "score": "predictions", "join": "examples", "learn": "models"}


@pytest.mark.parametrize("agent", ["ingest", "score", "join", "learn"])
async def test_kill_one(trial: Trial, agent: str) -> None:
    trial.spawn(*(name for name in NAMES if name != agent))
    victim = trial.spawn(agent)
    await trial.flowing()
    await trial.moment()
    victim.kill()
    trial.mark()
    trial.spawn(agent)
    await trial.recovered(SIGN[agent])
    await trial.quiet()


async def test_kill_all_in_one(trial: Trial) -> None:
    victim = trial.spawn()
    await trial.flowing()
    await trial.moment()
    victim.kill()
    trial.mark()
    trial.spawn()
    await trial.recovered()
    await trial.quiet()
