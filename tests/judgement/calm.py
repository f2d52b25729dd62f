"""Streams in which nothing is wrong, however much they move."""

from __future__ import annotations

from tests.judgement.town import DAY_MS, MINUTE_MS, Town
from tests.judgement.world import Told, World

MONTH_STEP_MS = 30 * MINUTE_MS
MONTH_DAYS = 30
MONTH_RATE = 8.0  # orders in ten minutes: 35 000 in a month
WEEKLY_GROWTH = 0.05


def month(seed: int) -> World:
    """Days, nights, weekends and growth, from the first fact on."""
    world = World(Town(seed, rate=MONTH_RATE, growth=WEEKLY_GROWTH, step_ms=MONTH_STEP_MS))
    run(world, MONTH_DAYS * DAY_MS)
    return world


def run(world: World, duration_ms: int) -> list[Told]:
    end = world.clock.ms + duration_ms
    while world.clock.ms < end:
        world.window()
    world.close()
    return world.told
