"""A rogue behaviour as a story: all is well, something goes wrong, it is noticed, it is mended, all is well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.messages import State
from tests.judgement.town import DAY_MS, MINUTE_MS, Change, Town, sound
from tests.judgement.world import FACTS_PER_WINDOW, OBJECTIVES, Told, World, pipeline

STEP_MS = 20 * MINUTE_MS  # between vitals
WARM = 118  # steps before anything goes wrong: a season of a day, and 15 hours of the next
PATIENCE = 90  # steps until it must have been noticed
AFTER = 6  # steps that the trouble lasts on, to see what is done about it
RECOVERY = 150  # steps in which all must be well again
TWIN = 120  # steps of the clean twin, beyond the warm ones
NOTICED = frozenset({"alarm", State.QUARANTINED.value})

Hook = Callable[[World], None]
Cause = tuple[str, str]  # model ("" for the pipeline), policy


@dataclass(frozen=True)
class Row:
    """What became of it."""

    name: str
    delay: float  # windows of FACTS_PER_WINDOW facts from the onset
    minutes: float  # the same in event time
    cause: Cause
    reason: str
    action: str  # the gravest before it was mended
    meanwhile: Mapping[str, int]  # by model, answers served from onset to notice
    error: float  # mean absolute error served from onset to the mending
    usual_error: float  # before
    recovered: float | None  # hours of event time after the cause was gone
    out_of_bounds: int


@cache
def declared() -> Pipeline:
    """A stream whose longest season is a day."""
    return pipeline(objectives=replace(OBJECTIVES, season=timedelta(days=1)))


@cache
def warm(make: Callable[[], Pipeline] = declared, usual: Change = sound, seed: int = 7) -> World:
    """A pipeline that has been at work for a day and 15 hours, without a word from the supervisor."""
    world = World(Town(seed, rate=20, step_ms=STEP_MS, change=usual), make())
    for _ in range(WARM):
        world.window()
    assert world.told == [], world.told
    world.close()
    return world


@cache
def twin_of(
    make: Callable[[], Pipeline] = declared, usual: Change = sound, seed: int = 7
) -> tuple[Told, ...]:
    """What is said of the same stream when nothing goes wrong."""
    world = warm(make, usual, seed).again()
    for _ in range(TWIN):
        world.window()
    world.close()
    return tuple(world.told)


def well(world: World) -> None:
    """Producers send what they should."""
    world.town.change = sound
    world.town.truth = None


def tell(
    name: str,
    begin: Hook,
    *causes: Cause,
    mend: Hook = well,
    make: Callable[[], Pipeline] = declared,
    usual: Change = sound,
    recovers: bool = True,
    seed: int = 7,
) -> Row:
    """Tells the story; fails if none of the causes is noticed, or if it is not over in the end."""
    world = warm(make, usual, seed).again()
    try:
        return _tell(world, name, begin, mend, causes, recovers)
    finally:
        world.close()


def _tell(world: World, name: str, begin: Hook, mend: Hook, causes: tuple[Cause, ...], recovers: bool) -> Row:
    usual = warm_error(world)
    begin(world)
    onset_ms, onset_facts = world.clock.ms, world.facts
    found: Told | None = None
    for _ in range(PATIENCE):
        world.window()
        found = next((t for t in world.told if t.action in NOTICED and (t.who, t.policy) in causes), None)
        if found is not None:
            break
    assert found is not None, f"{name}: not noticed by {causes}; told: {world.told}"
    meanwhile = dict(world.served.by)
    for _ in range(AFTER):
        world.window()
    action = "quarantined" if any(t.action == State.QUARANTINED for t in world.told) else "alarm"
    error = world.served.error / max(1, world.served.labelled)
    mend(world)
    mended_ms = world.clock.ms
    recovered = _recovered(world)
    assert recovered is not None or not recovers, f"{name}: not well after {RECOVERY} steps: {world.told}"
    assert world.served.out_of_bounds == 0
    return Row(
        name,
        (found.facts - onset_facts) / FACTS_PER_WINDOW,
        (found.at_ms - onset_ms) / MINUTE_MS,
        (found.who, found.policy),
        found.reason,
        action,
        meanwhile,
        error,
        usual,
        None if recovered is None else (recovered - mended_ms) / (DAY_MS / 24),
        world.served.out_of_bounds,
    )


def warm_error(world: World) -> float:
    """Mean absolute error of what was served, the last steps before."""
    examples = [e for e in (world._example(r.value or b"") for r in list(world._examples)[-500:])]
    return sum(abs(_number(e.served) - _number(e.label)) for e in examples) / len(examples)


def _number(value: Any) -> float:
    return float(value)


def _recovered(world: World) -> float | None:
    """When (ms) the model is in traffic and no alarm is open, for good."""
    since: float | None = None
    for _ in range(RECOVERY):
        barred = any(route.barred for route in world.supervisor.routing.routes.values())
        ill = (
            world.state() is not State.LIVE
            or barred
            or any(not i.resolved for i in world.supervisor.incidents.values())
        )
        since = None if ill else (since if since is not None else world.clock.ms)
        if since is not None and world.clock.ms - since >= 6 * STEP_MS:
            return since
        world.window()
    return None
