"""A healthy system at work shows no finding: what is on its way is pending, and is accounted for at the end."""

from __future__ import annotations

import asyncio

from riverkeeper.audit import audit
from tests.audit.tape import KEY, Sensors, shown
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.system.harness import world
from tests.system.play import finished

AUDITS = 2
FACTS = 400  # sent at a time while an audit runs


async def test_audited_while_it_works(kafka: KafkaCluster) -> None:
    broker, sensors, sent = Broker(kafka.address, transactions=True), Sensors(), 0
    async with world(broker, "gauges") as it:
        async with it.running():
            for _ in range(AUDITS):
                auditing = asyncio.create_task(audit(it.pipeline, it.connection, signing_key=KEY))
                while not auditing.done():
                    events = sensors.events(FACTS)
                    sent += len(events)
                    await it.feed(events)
                report = auditing.result()
                assert not report.findings, shown(report.findings)
            await finished(it, sent)
        report = await audit(it.pipeline, it.connection, signing_key=KEY)
        assert not report.findings, shown(report.findings)
        assert report.pending == {} and report.counts["events"] == sent
        assert report.counts["predictions"] == report.counts["facts"]
