"""A finer model earns its traffic by a growing share of the keys, and what it replaced stands by."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from riverkeeper.models.canary import point
from riverkeeper.supervisor.operator import issue
from riverkeeper.topics.messages import Prediction, State
from tests.brokers.broker import Broker
from tests.system import account
from tests.system.harness import World, first, world
from tests.system.play import finished
from tests.system.test_supervision import Sensors, answered_by, predictions, told, verdicts


def steps(it: World) -> list[tuple[State, float]]:
    return [(v.state, v.share) for v in verdicts(it) if v.model == "fine"]


PROMOTED = [(State.CANARY, 0.3), (State.CANARY, 0.6), (State.LIVE, 1.0)]


async def test_from_the_shadow_to_all_of_the_traffic(broker: Broker) -> None:
    async with world(broker, "trial") as it, it.running():
        sensors = Sensors(it)
        await sensors.until(lambda: steps(it) == PROMOTED, "a", "it is promoted step by step")
        await sensors.until(answered_by(it, "fine"), "a", "it has all of the traffic")
        before = len(it.outside["predictions"])
        await issue(it.connection, it.pipeline, "fine", State.QUARANTINED, "to see who is there", by="kim")
        await sensors.until(answered_by(it, "rough"), "a", "what it replaced answers again")
        assert {p.model for p in predictions(it)[before:]} <= {"fine", "rough"}, "no fallback in between"
        await finished(it, it.sent)
        await it.outside.read_up()
        account.adds_up(it.pipeline, it.outside)
        assert [v.policy for v in verdicts(it)] == ["canary"] * 3 + ["operator"], told(it)
        by_share(it)


def by_share(it: World) -> None:
    """Under each verdict a key has one model, and the canary has the keys below its share."""
    given = {r.offset: v.share for r, v in zip(it.outside["verdicts"], verdicts(it), strict=True)}
    who: dict[tuple[int, str], set[str]] = defaultdict(set)
    for record in first(it.outside["predictions"]):
        said = msgspec.json.decode(record.value or b"", type=Prediction)
        who[said.verdict, said.key].add(said.asked)
    assert {offset for offset, _ in who} >= {0, 1, 2}
    facts = keys(it)
    for (offset, number), asked in who.items():
        expected = "fine" if point(facts[number]) < given.get(offset, 0.0) else "rough"
        assert asked == {expected}, (offset, number)


def keys(it: World) -> dict[str, str]:
    """By number, the sensor whose reading it is: the fact's key."""
    found = {}
    for record in it.outside["facts"]:
        fact = msgspec.json.decode(record.value or b"")
        found[fact["data"]["number"]] = fact["key"]
    return found
