"""A canary that is better gets all of the traffic; one that is better on average and not everywhere goes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from riverkeeper import Canary, Model
from riverkeeper.topics.messages import State
from tests.judgement.estimators import shift_region
from tests.judgement.town import Town
from tests.judgement.world import ASKED, OBJECTIVES, World, learned, pipeline, usual

STEPS = (0.3, 0.9)  # of four regions: two, and three
PATIENCE = 400  # windows of ten minutes


def town() -> World:
    """The mean of all serves, and a model that knows the distance is on trial."""
    declared = pipeline(
        models={"learned": Model(learned, ASKED, warmup=500), "usual": Model(usual, ASKED, warmup=0)},
        serve="usual",
        canary=Canary("learned", steps=STEPS, examples=300),
        objectives=replace(OBJECTIVES, season=timedelta(days=1)),
    )
    return World(Town(11), declared)


def until(world: World, *wanted: State) -> None:
    for _ in range(PATIENCE):
        if world.state() in wanted:
            return
        world.window()
    raise AssertionError(f"{world.state()} after {PATIENCE} windows: {world.told}")


def share(world: World) -> float:
    return world.supervisor.routing.routes["learned"].share


def test_better_everywhere_it_is_promoted() -> None:
    world = town()
    until(world, State.CANARY)
    assert share(world) == STEPS[0]
    until(world, State.LIVE)
    assert share(world) == 1.0
    world.served.by.clear()
    for _ in range(20):
        world.window()
    world.close()
    assert set(world.served.by) == {"learned"} and world.served.out_of_bounds == 0
    assert [t.action for t in world.told if t.who == "learned"] == ["canary", "canary", "live"]


def test_worse_in_one_region_it_goes_back_and_stays_there() -> None:
    world = town()
    until(world, State.CANARY)
    shift_region(world, "learned", "west", 25.0)
    until(world, State.SHADOW)
    back = [t for t in world.told if t.who == "learned" and t.action == "shadow"]
    assert len(back) == 1 and "rolled back" in back[0].reason
    world.served.by.clear()
    for _ in range(60):
        world.window()
    world.close()
    assert set(world.served.by) == {"usual"}, "until an operator opens the trial again"
