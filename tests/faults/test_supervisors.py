"""A model that leaves its bounds never shows it, and is quarantined once: whatever befalls the supervisors."""

from __future__ import annotations

import signal
from itertools import pairwise

import msgspec
import pytest

from riverkeeper.models.routing import Routing
from riverkeeper.topics.messages import Example, Manifest, Prediction, Reason, State, Verdict
from tests.faults.trial import Trial, stopped
from tests.system.harness import Record
from tests.system.pipelines import GLITCH

REST = ("ingest", "score", "join", "learn")
MODEL = "runaway"
# Answers without a supervisor, 100 a second: ten times as long as one that is there takes to judge.
UNSUPERVISED = 800


@pytest.fixture
def kind() -> str:
    return "levels"


def predictions(trial: Trial, start: int = 0) -> list[Prediction]:
    records = trial.outside["predictions"][start:]
    return [msgspec.json.decode(r.value or b"", type=Prediction) for r in records]


def refused(trial: Trial, start: int) -> int:
    """Answers of the model that were out of bounds, and served by the fallback instead."""
    return sum(p.reason == Reason.OUT_OF_BOUNDS.value for p in predictions(trial, start))


def verdicts(trial: Trial) -> tuple[list[Verdict], list[Verdict]]:
    """Those in force, each by its time, and those that readers ignored for what they follow."""
    routing = Routing.declared(trial.world.pipeline.models, trial.world.pipeline.serving)
    obeyed: list[Verdict] = []
    ignored: list[Verdict] = []
    for record in trial.outside["verdicts"]:
        verdict = Verdict.model_validate_json(record.value or b"")
        before, routing = routing, routing.obey(record.offset, verdict)
        changed = routing.routes[verdict.model] != before.routes[verdict.model]
        (obeyed if changed else ignored).append(verdict)
    return obeyed, ignored


def quarantines(trial: Trial) -> list[Verdict]:
    return [v for v in verdicts(trial)[0] if v.state is State.QUARANTINED]


def quarantined_once(trial: Trial) -> None:
    """No fall is judged twice: another one, for versions that carried the fault unseen, follows a probation."""
    states = [v.state for v in verdicts(trial)[0]]
    assert states[0] is State.QUARANTINED
    assert (State.QUARANTINED, State.QUARANTINED) not in pairwise(states), states
    assert State.DESTROYED not in states, states


async def goes_astray(trial: Trial) -> None:
    """The model learns a glitch, is served so, and from now on is far out of bounds for every reading."""
    trial.load.truth = GLITCH
    await trial.until(lambda: glitches(trial), "an example with a glitch")
    trial.load.truth = None
    await trial.until(lambda: served_since_glitch(trial), "a version that learned it serves")
    trial.load.kind = "b"
    trial.note("the model is out of its bounds")


def glitches(trial: Trial) -> list[Record]:
    found = trial.outside["examples"]
    return [r for r in found if msgspec.json.decode(r.value or b"", type=Example).label == GLITCH]


def served_since_glitch(trial: Trial) -> bool:
    at = glitches(trial)[0]
    served = max((p.version for p in predictions(trial)[-20:] if p.model == MODEL), default=0)
    for record in trial.outside["models"]:
        if record.value is not None and record.key == f"{MODEL}/{served}".encode():
            return Manifest.model_validate_json(record.value).offsets.get(at.partition, 0) > at.offset
    return False


def recovered_by_verdict(trial: Trial) -> None:
    trial.took(max(r.timestamp for r in trial.outside["verdicts"]))


async def test_a_supervisor_down_while_a_model_leaves_its_bounds(trial: Trial) -> None:
    trial.spawn(*REST)
    before = trial.spawn("supervisor")
    await trial.flowing()
    before.kill()
    await goes_astray(trial)
    start = len(trial.outside["predictions"])
    await trial.until(lambda: refused(trial, start) >= UNSUPERVISED, "score holds the bounds alone")
    assert not trial.outside["verdicts"], "nobody judges"
    trial.mark()
    trial.spawn("supervisor")
    await trial.until(lambda: quarantines(trial), "the next supervisor quarantines the model")
    recovered_by_verdict(trial)
    await trial.quiet()
    quarantined_once(trial)


@pytest.mark.parametrize("point", ["verdict-ready", "verdict-written"])
async def test_a_supervisor_killed_with_a_verdict_in_hand(trial: Trial, point: str) -> None:
    trial.spawn(*REST)
    victim = trial.armed("supervisor", point=point, nth=1)
    await trial.flowing()
    await goes_astray(trial)
    await trial.until(lambda: victim.process.poll() == -signal.SIGKILL, "it dies of its verdict")
    trial.mark()
    trial.spawn("supervisor")
    await trial.until(lambda: quarantines(trial), "the model is quarantined")
    recovered_by_verdict(trial)
    await trial.until(lambda: trial.outside["incidents"], "the incident is told")
    await trial.quiet()
    quarantined_once(trial)


async def test_two_supervisors_with_the_same_verdict_in_hand(trial: Trial) -> None:
    """The first is stopped as it writes; the second takes over and decides; then the first goes on."""
    trial.spawn(*REST)
    two = [trial.armed("supervisor", point="verdict-ready", nth=1, do="stop") for _ in range(2)]
    await trial.flowing()
    await goes_astray(trial)
    await trial.until(lambda: any(map(stopped, two)), "one is about to write its verdict")
    stale, other = sorted(two, key=stopped, reverse=True)
    trial.mark()
    await trial.until(lambda: stopped(other), "the other takes over, and is about to write its own")
    other.resume()
    await trial.until(lambda: quarantines(trial), "it is in force")
    recovered_by_verdict(trial)
    written = len(trial.outside["verdicts"])
    stale.resume()
    await trial.until(lambda: len(trial.outside["verdicts"]) > written, "the stale one is written, too")
    await trial.moment()
    await trial.quiet()
    obeyed, ignored = verdicts(trial)
    assert ignored, "the stale verdict undoes nothing"
    quarantined_once(trial)
