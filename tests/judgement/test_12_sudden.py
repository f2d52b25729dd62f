"""From one minute to the next deliveries take half an hour longer."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Event, minutes_of
from tests.judgement.world import World


def snowed(order: Event, at_ms: int) -> float:
    return minutes_of(order, at_ms) + 30


def begin(world: World) -> None:
    world.town.truth = snowed


def story() -> Row:
    return tell("sudden concept shift", begin, ("learned", "quality"), ("learned", "bias"), ("", "labels"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
