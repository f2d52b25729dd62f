"""Couriers take what the forecast allows them, and a quarter more."""

from __future__ import annotations

from functools import partial

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import MINUTE_MS, Delivery, Event, Sent, outcome
from tests.judgement.world import World


def begin(world: World) -> None:
    def as_told(delivery: Delivery, at_ms: int) -> Event:
        said = world.answers.get(delivery.order["order"], delivery.minutes)
        return outcome(delivery, at_ms, min(110.0, 1.25 * said))

    def looped(delivery: Delivery) -> list[Sent]:
        at_ms = delivery.at_ms + int(delivery.minutes * MINUTE_MS)
        return [Sent(delivery.at_ms, delivery.order), Sent(at_ms, partial(as_told, delivery, at_ms))]

    world.town.change = looped


def story() -> Row:
    return tell(
        "feedback loop", begin, ("", "labels"), ("learned", "bias"), ("learned", "quality"), ("", "shift")
    )


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
