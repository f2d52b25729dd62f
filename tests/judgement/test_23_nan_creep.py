"""A feature is missing more and more often."""

from __future__ import annotations

from random import Random

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import HOUR_MS, Delivery, Sent, sound
from tests.judgement.world import World


def begin(world: World) -> None:
    rng, onset_ms = Random(2), world.clock.ms

    def creeping(delivery: Delivery) -> list[Sent]:
        if rng.random() < (delivery.at_ms - onset_ms) / (24 * HOUR_MS):
            delivery.order["distance"] = None
        return sound(delivery)

    world.town.change = creeping


def story() -> Row:
    return tell("NaN creep", begin, ("", "shift"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
