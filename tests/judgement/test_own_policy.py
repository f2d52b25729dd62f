"""A policy of one's own, in ten lines, judges beside the built-in ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from riverkeeper.supervisor.policies import Finding, Health, Memory
from riverkeeper.topics.messages import Vitals
from tests.judgement.story import STEP_MS
from tests.judgement.town import Town
from tests.judgement.world import OBJECTIVES, World, pipeline


# own: begin
class Promised(Memory, frozen=True):
    most: float = 0.0


def no_wild_promise(health: Health, vitals: Vitals | None, now: int) -> tuple[Health, list[Finding]]:
    known = health.recall("promise", Promised)
    if vitals is not None and vitals.agent == "score" and vitals.answers.high is not None:
        known = Promised(since_ms=known.since_ms, most=vitals.answers.high)
        health = health.remember("promise", known)
    found = Finding("promise", f"promised {known.most:.0f} minutes", now, {"minutes": known.most})
    return health, [found] if known.most > 85 else []


# own: end


def test_it_raises_its_alarm() -> None:
    objectives = replace(OBJECTIVES, season=timedelta(days=1))
    declared = pipeline(policies=[no_wild_promise], objectives=objectives)
    world = World(Town(3, rate=20, step_ms=STEP_MS), declared)
    for _ in range(40):
        world.window()
    assert world.told == []
    world.town.truth = lambda order, at_ms: 95.0
    for _ in range(40):
        world.window()
    world.close()
    assert ("learned", "promise", "alarm") in [(t.who, t.policy, t.action) for t in world.told]
