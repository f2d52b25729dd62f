"""A supervisor that is replaced after every window says the same as one that is not."""

from __future__ import annotations

from tests.judgement.story import warm
from tests.judgement.test_03_feature_stuck import begin
from tests.judgement.world import Told, World


def _told(*, restarts: bool) -> list[Told]:
    world: World = warm().again()
    begin(world)
    for _ in range(20):
        world.window()
        if restarts:
            world.restart_supervisor()
    world.close()
    return world.told


def test_nothing_is_forgotten() -> None:
    told = _told(restarts=False)
    assert told and _told(restarts=True) == told
