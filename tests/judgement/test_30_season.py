"""Days and nights, and a weekend that comes for the first time, are no trouble."""

from __future__ import annotations

from tests.judgement.calm import run
from tests.judgement.story import STEP_MS, declared
from tests.judgement.town import DAY_MS, START_MS, Town
from tests.judgement.world import World


def test_the_first_weekend_raises_no_alarm() -> None:
    thursday = START_MS + 3 * DAY_MS
    world = World(Town(11, rate=15, now_ms=thursday, step_ms=STEP_MS), declared())
    assert run(world, 4 * DAY_MS) == []
