"""More and more labels are false, a few more each hour."""

from __future__ import annotations

from random import Random

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import MINUTE_MS, Delivery, Sent, outcome
from tests.judgement.world import World


def begin(world: World) -> None:
    rng, onset_ms = Random(1), world.clock.ms

    def poisoned(delivery: Delivery) -> list[Sent]:
        share = min(0.8, (delivery.at_ms - onset_ms) / (24 * 60 * MINUTE_MS))
        minutes = 5.0 if rng.random() < share else delivery.minutes
        at_ms = delivery.at_ms + int(delivery.minutes * MINUTE_MS)
        return [Sent(delivery.at_ms, delivery.order), Sent(at_ms, outcome(delivery, at_ms, minutes))]

    world.town.change = poisoned


def story() -> Row:
    return tell("slow poisoning", begin, ("", "labels"), ("learned", "quality"), ("learned", "bias"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
