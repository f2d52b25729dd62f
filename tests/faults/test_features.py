"""A feature that raises, or gives what no record can carry, costs its fact one fallback prediction that says so;
other facts are served by the model."""

from __future__ import annotations

import pytest

from riverkeeper.topics.messages import Reason, Source
from tests.faults.readings import FIRST, predictions, reading, truth
from tests.faults.trial import Trial
from tests.system.pipelines import HANG

FLAWED = 40
HANGING = 3  # each holds up its process for up to two seconds


@pytest.fixture
def kind() -> str:
    return "flawed"


@pytest.mark.parametrize("flaw", ["raise", "panic", "nan", "inf", "wrong", "huge"])
async def test_feature(trial: Trial, flaw: str) -> None:
    await _fails(trial, flaw, FLAWED)


async def test_feature_hangs(trial: Trial) -> None:
    """A call that does not return is ended within two seconds; one batch after the other goes on."""
    await _fails(trial, "hang", HANGING)


async def _fails(trial: Trial, flaw: str, count: int) -> None:
    trial.spawn(**{HANG: "1"})
    await trial.flowing()
    await trial.moment()
    trial.mark()
    numbers = range(FIRST, FIRST + count)
    await trial.send(reading(trial, n, flaw) for n in numbers)
    await trial.send(truth(trial, n) for n in numbers)
    await trial.recovered()
    await trial.quiet()
    said = predictions(trial, numbers)
    assert len(said) == count
    assert {(p.source, p.reason) for p in said} == {(Source.FALLBACK, Reason.FEATURE_FAILED)}
    assert not any(p.features for p in said)
    others = predictions(trial, range(FIRST))
    assert not any(p.reason == Reason.FEATURE_FAILED for p in others)
    assert others[-1].source is Source.MODEL
