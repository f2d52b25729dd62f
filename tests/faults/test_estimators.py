"""An estimator that raises, answers nothing, or takes too long, as it predicts or as it learns, costs its own
answers only; the fallback gives them and says why, and the load is learned by the others."""

from __future__ import annotations

import pytest

from riverkeeper.models.gate import Code
from riverkeeper.process import NAMES
from riverkeeper.topics.messages import Reason, Source
from tests.faults.readings import FIRST, predictions, reading, truth
from tests.faults.trial import Trial
from tests.system.harness import now_ms
from tests.system.pipelines import GLITCH, HANG

FEW = 12  # too few for the supervisor to take the model's traffic away
MANY = 60  # enough
HANGING = 2  # each holds up its process for up to two seconds


@pytest.fixture
def kind() -> str:
    return "moody"


@pytest.mark.parametrize(
    ("mood", "reason"), [("raise", Reason.RAISED), ("nan", Reason.OUT_OF_BOUNDS), ("sleep", Reason.TOO_SLOW)]
)
async def test_predicts(trial: Trial, mood: str, reason: Reason) -> None:
    """The gate has let it pass; then there are facts that it has no answer for."""
    trial.spawn()
    await trial.flowing()
    await trial.until(lambda: _served(trial), "the model serves")
    trial.mark()
    numbers = range(FIRST, FIRST + MANY)
    await trial.send(reading(trial, n, mood) for n in numbers)
    await trial.send(truth(trial, n) for n in numbers)
    await trial.recovered()
    await trial.quiet()
    reasons = [p.reason for p in predictions(trial, numbers)]
    assert len(reasons) == MANY
    # One that sleeps has answers for the first facts of a batch; one that is taken out of service has none.
    allowed = {reason, Reason.QUARANTINED} | ({""} if mood == "sleep" else set())
    assert reason in reasons and set(reasons) <= allowed


async def test_learns(trial: Trial) -> None:
    """What it raises as it learns costs that example; versions go on, and say that they have seen it."""
    trial.spawn()
    await trial.flowing()
    await trial.until(lambda: _served(trial), "the model serves")
    trial.mark()
    numbers = range(FIRST, FIRST + FEW)
    await trial.send(reading(trial, n, "unlearnable") for n in numbers)
    await trial.send(truth(trial, n) for n in numbers)
    await trial.recovered("predictions", "models")
    await trial.quiet()
    raised = sum(v.raised for v in trial.outside.vitals() if v.agent == "learn" and v.model == "moody")
    assert raised == FEW
    assert {p.source for p in predictions(trial, numbers)} == {Source.MODEL}


@pytest.mark.parametrize(
    ("mood", "agent", "reasons"),
    [("hang", "score", {Reason.RAISED, Reason.QUARANTINED}), ("engrossing", "learn", {""})],
)
async def test_hangs(trial: Trial, mood: str, agent: str, reasons: set[str]) -> None:
    """A call that does not return is ended within two seconds."""
    trial.spawn(*(name for name in NAMES if name != agent))
    trial.spawn(agent, **{HANG: "1"})
    await trial.flowing()
    await trial.until(lambda: _served(trial), "the model serves")
    trial.mark()
    numbers = range(FIRST, FIRST + HANGING)
    await trial.send(reading(trial, n, mood) for n in numbers)
    await trial.send(truth(trial, n) for n in numbers)
    await trial.recovered("predictions", "models")
    await trial.quiet()
    said = predictions(trial, numbers)
    assert len(said) == HANGING and {p.reason for p in said} <= reasons
    raised = sum(v.raised for v in trial.outside.vitals() if v.agent == agent and v.model == "moody")
    assert raised >= 1


async def test_turns_slow(trial: Trial) -> None:
    """A version twice as slow as the gate allows is not served; the one before goes on, or the fallback."""
    trial.spawn()
    await trial.flowing()
    await trial.until(lambda: _served(trial), "the model serves")
    trial.load.truth = GLITCH
    await trial.until(
        lambda: any(v.gate == Code.TOO_SLOW for v in trial.outside.vitals()),
        "the gate refuses the slow version",
    )
    trial.load.truth = None
    trial.mark()
    await trial.recovered()
    await trial.quiet()
    refused = {v.version for v in trial.outside.vitals() if v.gate == Code.TOO_SLOW}
    served = {p.version for p in predictions(trial, range(FIRST)) if p.source is Source.MODEL}
    assert refused and not refused & served


def _served(trial: Trial) -> bool:
    recent = [r for r in trial.outside["predictions"][-20:] if r.timestamp > now_ms() - 5_000]
    return bool(recent) and all(b'"source":"model"' in (r.value or b"") for r in recent)
