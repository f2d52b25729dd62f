"""A stream that doubles every week is no trouble."""

from __future__ import annotations

from tests.judgement.calm import run
from tests.judgement.story import STEP_MS, declared
from tests.judgement.town import DAY_MS, Town
from tests.judgement.world import World


def test_growth_raises_no_alarm() -> None:
    world = World(Town(12, rate=10, growth=1.0, step_ms=STEP_MS), declared())
    assert run(world, 5 * DAY_MS) == []
