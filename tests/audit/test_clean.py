"""A pipeline at rest has nothing to be found, and its sums are those of what was sent."""

from __future__ import annotations

from riverkeeper.audit import audit
from tests.brokers.broker import Broker
from tests.system.harness import SIGNING_KEY, world
from tests.system.play import RETRIES, finished, stormy

EVENTS = 3_000


async def test_a_storm_leaves_nothing_to_find(broker: Broker) -> None:
    events, retries = stormy(EVENTS)
    async with world(broker, "flights") as it:
        async with it.running():
            await it.feed(events, retries)
            await finished(it, len(events) - retries)
        await it.outside.read_up()
        report = await audit(it.pipeline, it.connection, signing_key=SIGNING_KEY.encode())
        assert not report.findings
        assert report.counts["events"] == len(events)
        assert report.counts["duplicates"] == retries == RETRIES
        assert report.pending == {}
        counts = report.counts
        assert counts["facts"] + counts["outcomes"] + counts["dead"] + retries == len(events)
        assert counts["predictions"] == counts["facts"]
        assert counts["examples"] + counts.get("unlabelled", 0) == counts["predictions"]
        assert counts["recomputed"] > 0
