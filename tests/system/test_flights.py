"""A slice of the flights goes through every agent, and what comes out adds up, on both brokers."""

from __future__ import annotations

from collections.abc import Sequence

from riverkeeper.topics.messages import Source
from tests.brokers.broker import Broker
from tests.system import account
from tests.system.harness import Event, World, world
from tests.system.play import RETRIES, finished, stormy

EVENTS = 9_000  # of the stream, before faults: 4 500 flights, so that `learned` serves most of them


async def played(world: World, events: Sequence[Event], retries: int) -> account.Account:
    """Feeds all events to running agents and waits until every one has come to its end."""
    async with world.running():
        await world.feed(events, retries)
        await finished(world, len(events) - retries)
    await world.outside.read_up()
    return account.adds_up(world.pipeline, world.outside)


async def test_everything_adds_up(broker: Broker) -> None:
    events, retries = stormy(EVENTS)
    async with world(broker, "flights") as it:
        found = await played(it, events, retries)
        assert len(events) == len(it.outside["events"])
        assert found.duplicates == retries == RETRIES and found.dead > 50
        settled = len(found.facts) + len(found.outcomes) + found.dead + found.duplicates
        assert settled == len(events)
        assert len(found.predictions) == len(found.facts)
        assert found.copies == 0, "nothing went wrong, so nothing was written twice"

        versions = account.manifests(it.outside)
        assert versions.keys() == it.pipeline.models.keys()
        account.learned_once(it.outside, versions, to_the_end=True)
        assert len(versions["learned"]) >= 5

        shadows = account.shadows_complete(it.pipeline, it.outside, found)
        # The fallback's answers stand in each prediction. `eager` may be on probation at the end.
        assert {"steady"} <= shadows.keys() <= {"steady", "eager"}
        assert shadows["steady"] > 0.9 * len(found.facts)

        answered = {p.model for p in found.predictions.values()}
        assert {"learned", "eager", "baseline"} <= answered
        judged = [e for e in found.examples if e.model == "learned" and e.source is Source.MODEL]
        assert len(judged) > 1_000
        pairs = [(float(e.label), e.served, e.baseline) for e in judged]
        served = sum(abs(s - y) for y, s, _ in pairs if isinstance(s, float)) / len(pairs)
        baseline = sum(abs(b - y) for y, _, b in pairs if isinstance(b, float)) / len(pairs)
        assert served < baseline, f"served {served:.2f}, baseline {baseline:.2f}"
