"""Four times the usual for an afternoon, with shorter ways and larger baskets, is no trouble."""

from __future__ import annotations

from tests.judgement.calm import run
from tests.judgement.story import warm
from tests.judgement.town import HOUR_MS, Delivery, Sent, sound


def test_a_sale_raises_no_alarm() -> None:
    world = warm().again()
    began = world.clock.ms

    def selling(delivery: Delivery) -> list[Sent]:
        on = began <= delivery.at_ms < began + 4 * HOUR_MS
        delivery.order["items"] += int(on and int(delivery.order["order"][1:]) % 4 == 0)
        return sound(delivery)

    world.town.change = selling
    world.town.crowd = lambda at_ms: 4.0 if began <= at_ms < began + 4 * HOUR_MS else 1.0
    assert run(world, 12 * HOUR_MS) == []
