"""A canary goes a step further on enough evidence that it is better, and back for anything against it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from riverkeeper.models.canary import Canary
from riverkeeper.models.routing import Route
from riverkeeper.supervisor.canary import ALPHA, interval, steer
from riverkeeper.supervisor.lifecycle import Course
from riverkeeper.supervisor.policies import BIAS, BOUNDS, QUALITY, Finding, Health, Limits
from riverkeeper.supervisor.policies.quality import Memories
from riverkeeper.supervisor.policies.sequential import Block
from riverkeeper.topics.messages import State, Verdict

CANARY = Canary("m", steps=(0.1, 0.5), examples=200)
NOW = 9_000


def health(mean: float, size: int = 400, sd: float = 1.0) -> Health:
    """Paired differences of that mean beside errors of 10."""
    squares = size * (sd * sd + mean * mean)
    pairs = Block(1, 2, float(size), mean * size, squares)
    return Health(model="m").remember(QUALITY, Memories(served=pairs, served_error=10.0 * size))


def trial(state: State = State.SHADOW, share: float = 0.0) -> Route:
    return Route("m", state, share=share)


def steered(
    route: Route, known: Health, *found: Finding, canary: Canary = CANARY, **course: bool
) -> Verdict | None:
    return steer(route, Course(State.SHADOW, **course), known, found, canary, NOW)  # type: ignore[arg-type]


BETTER, WORSE, UNSURE = health(-0.5), health(0.5), health(-0.01)


def test_step_by_step_into_all_of_the_traffic() -> None:
    steps: list[tuple[State, float]] = []
    route = trial()
    while len(steps) < 3:
        verdict = steered(route, BETTER)
        assert verdict is not None and verdict.policy == "canary" and not verdict.incident
        steps.append((verdict.state, verdict.share))
        route = replace(route, state=verdict.state, share=verdict.share)
    assert steps == [(State.CANARY, 0.1), (State.CANARY, 0.5), (State.LIVE, 1.0)]
    assert steered(route, BETTER) is None, "promoted, it is judged as every model"


def test_what_the_verdict_rests_on_stands_in_it() -> None:
    verdict = steered(trial(), BETTER)
    assert verdict is not None
    found = verdict.evidence
    assert (found["examples"], found["difference"], found["served"]) == (400.0, -0.5, 10.0)
    assert found["low"] < -0.5 < found["high"] < 0


@pytest.mark.parametrize("known", [UNSURE, WORSE, health(-5.0, size=199), Health(model="m")])
def test_without_enough_evidence_it_stays_in_shadow(known: Health) -> None:
    assert steered(trial(), known) is None


def test_what_is_nearly_as_good_may_be_good_enough() -> None:
    nearly = health(0.1)
    assert steered(trial(), nearly) is None
    assert steered(trial(), nearly, canary=replace(CANARY, tolerance=0.05)) is not None


def test_worse_than_what_was_served_rolls_it_back() -> None:
    verdict = steered(trial(State.CANARY, 0.1), WORSE)
    assert verdict is not None and (verdict.state, verdict.share) == (State.SHADOW, 0.0)
    assert "rolled back: worse" in verdict.reason
    assert steered(trial(State.CANARY, 0.1), UNSURE) is None


def test_any_finding_rolls_it_back_however_good_it_is() -> None:
    finding = Finding(BIAS, "labels lie off", 1, {"bias": 3.0})
    verdict = steered(trial(State.CANARY, 0.5), BETTER, finding)
    assert verdict is not None and verdict.state is State.SHADOW and verdict.evidence == {"bias": 3.0}


def test_after_a_rollback_an_operator_has_to_open_the_trial_again() -> None:
    limits, course = Limits(), Course(State.SHADOW)
    begun = verdict(State.CANARY, share=0.1)
    course = course.after(begun, limits)
    assert course.on_trial and course.resting is State.SHADOW
    back = course.after(verdict(State.SHADOW), limits)
    assert back.tried and steered(trial(), BETTER, tried=back.tried) is None
    out = course.after(verdict(State.QUARANTINED), limits)
    assert out.tried and out.after(verdict(State.SHADOW), limits).tried
    assert not back.after(verdict(State.QUARANTINED, by="kim"), limits).tried


def verdict(state: State, *, share: float = 0.0, by: str = "supervisor") -> Verdict:
    return Verdict(
        model="m", state=state, follows=-1, share=share, policy=BOUNDS, reason="", by=by, at_ms=NOW
    )


def test_other_models_are_never_steered() -> None:
    assert steer(replace(trial(), model="n"), Course(State.SHADOW), BETTER, (), CANARY, NOW) is None
    assert steered(trial(State.QUARANTINED), BETTER) is None


def test_looking_all_the_time_is_wrong_as_rarely_as_promised() -> None:
    """Of 400 canaries that are exactly as good, looked at after every 20 of 4 000 pairs."""
    rng, wrong = random.Random(3), 0
    for _ in range(400):
        block = Block()
        for _ in range(200):
            values = [rng.gauss(0.0, 1.0) for _ in range(20)]
            block = block.plus(Block(1, 2, 20.0, sum(values), sum(v * v for v in values)))
            low, high = interval(block, CANARY.examples)
            if block.size >= CANARY.examples and not low <= 0 <= high:
                wrong += 1
                break
    assert wrong <= ALPHA * 400


def test_the_interval_narrows() -> None:
    widths = [high - low for low, high in (interval(health_block(n), 200) for n in (200, 800, 3_200))]
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2] > 0


def health_block(size: int) -> Block:
    return Block(1, 2, float(size), 0.0, float(size))


@pytest.mark.parametrize(
    ("canary", "fault"),
    [
        (Canary("m", steps=()), "steps are ()"),
        (Canary("m", steps=(0.5, 0.1)), "each larger"),
        (Canary("m", steps=(0.5, 1.0)), "between 0 and 1"),
        (Canary("m", examples=10), "50 or more"),
        (Canary("m", tolerance=-0.1), "negative"),
    ],
)
def test_what_cannot_be_meant_is_told(canary: Canary, fault: str) -> None:
    assert fault in next(canary.faults())
