"""A producer sends everything three times, each time with another id."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def thrice(delivery: Delivery) -> list[Sent]:
    order, arrived = sound(delivery)
    sent = [order, arrived]
    for n in range(2):
        for each in (order, arrived):
            assert isinstance(each.event, dict)
            again = {**each.event, "id": f"{each.event['id']}/{n}"}
            sent.append(Sent(each.at_ms + 1, again))
    return sent


def begin(world: World) -> None:
    world.town.change = thrice


def story() -> Row:
    return tell("duplicated training data", begin, ("", "labels"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
