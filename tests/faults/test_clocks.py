"""A process whose clock is wrong by an hour, or jumps by one, loses nothing, doubles nothing, expires nothing, and
takes no fact for late: times that decide are the log's own."""

from __future__ import annotations

import pytest

from riverkeeper.process import NAMES
from riverkeeper.topics.messages import Reason
from tests.faults.readings import predictions
from tests.faults.trial import Trial

HOUR = 3_600
SIGN = {
    "ingest": "facts",
    "score": "predictions",
    "join": "examples",
    "learn": "models",
    "supervisor": "models",
}


@pytest.fixture
def kind() -> str:
    return "punctual"


@pytest.mark.parametrize("shift", [HOUR, -HOUR], ids=["ahead", "back"])
@pytest.mark.parametrize("agent", NAMES)
async def test_jump(trial: Trial, agent: str, shift: int) -> None:
    """While it works, at a seeded second after its start."""
    after = str(trial.rng.uniform(3.0, 7.0))
    trial.spawn(*(name for name in NAMES if name != agent))
    trial.spawn(agent, module="tests.faults.shifted", FAULT_SHIFT=str(shift), FAULT_AFTER=after)
    await trial.flowing()
    await trial.moment(400)
    trial.mark()
    await trial.recovered(SIGN[agent])
    await trial.quiet()
    _none_late(trial)


@pytest.mark.parametrize("shift", [HOUR, -HOUR], ids=["ahead", "back"])
async def test_wrong_from_the_start(trial: Trial, shift: int) -> None:
    """All agents in one process that has never known the time."""
    trial.spawn(module="tests.faults.shifted", FAULT_SHIFT=str(shift), FAULT_AFTER="0")
    await trial.flowing()
    await trial.moment()
    trial.mark()
    await trial.recovered(*set(SIGN.values()))
    await trial.quiet()
    _none_late(trial)


def _none_late(trial: Trial) -> None:
    """Apart from the first batch, which came before the log's clock was known."""
    late = [p for p in predictions(trial, range(trial.load.count)) if p.reason == Reason.LATE]
    assert len(late) <= 10, f"{len(late)} of {trial.load.count} facts were taken for late"
