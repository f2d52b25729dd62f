"""An incident is listed, acknowledged for good, and told as a post-mortem whose figures are the log's."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import pytest

from riverkeeper.incident import acknowledge, read, rows, show
from riverkeeper.models.features import PipelineError
from riverkeeper.supervisor.incidents import ACKNOWLEDGED, Stage, stage
from riverkeeper.supervisor.operator import issue
from riverkeeper.supervisor.postmortem import began_ms, stretch
from riverkeeper.topics.messages import Incident, Prediction, Source, State
from tests.brokers.broker import Broker
from tests.system.harness import World, first, world
from tests.system.pipelines import GLITCH
from tests.system.play import finished
from tests.system.test_supervision import JUDGEMENT, Sensors, answered_by, glitches, incident, version_with

STAYS = replace(JUDGEMENT, min_dwell_ms=3_600_000)  # in quarantine, while it is looked at


def served(it: World, of: Incident) -> int:
    """By the model itself since the onset, as an outside reader counts."""
    during = stretch(of, 2**62)
    found = [r for r in first(it.outside["predictions"]) if began_ms(of) <= r.timestamp <= during.until_ms]
    said = [msgspec.json.decode(r.value or b"", type=Prediction) for r in found]
    return sum((p.asked, p.model, p.source) == ("runaway", "runaway", Source.MODEL) for p in said)


async def test_from_the_alarm_to_the_post_mortem(broker: Broker) -> None:
    async with world(broker, "levels") as it, it.running(judgement=STAYS):
        name, sensors = it.pipeline.name, Sensors(it)
        await sensors.until(answered_by(it, "runaway", 3), "a", "good versions serve")
        assert await read(it.connection, name) == {}
        await sensors.send(3, "a", truth=GLITCH)
        await sensors.until(lambda: version_with(it, glitches(it)), "a", "the glitches are learned")
        bad = version_with(it, glitches(it))
        await sensors.until(answered_by(it, "runaway", bad), "a", "a bad version serves")
        await sensors.until(lambda: incident(it), "b", "the model is out")
        await sensors.until(answered_by(it, "identity"), "b", "the fallback serves")

        (found,) = (await read(it.connection, name)).values()
        assert stage(found) is Stage.MITIGATED
        (row,) = rows({found.id: found}, resolved=False)
        assert row[:4] == [found.id, "mitigated", "bounds", "runaway"]
        with pytest.raises(PipelineError, match="there is no incident 'runaway-'"):
            await acknowledge(it.connection, name, "runaway-", "", by="kim")
        await acknowledge(it.connection, name, found.id, "asking upstream", by="kim")
        # The supervisor tells the incident on, and does not forget.
        await issue(it.connection, it.pipeline, "runaway", State.LIVE, "once more", by="kim")

        def over() -> bool:
            newest = incident(it)
            return newest is not None and newest.id == found.id and newest.resolved

        await sensors.until(over, "a", "the incident is over")
        newest = incident(it)
        assert newest is not None
        assert ACKNOWLEDGED in [step.state for step in newest.timeline]
        with pytest.raises(PipelineError, match="is resolved"):
            await acknowledge(it.connection, name, found.id, "", by="kim")

        await finished(it, it.sent)
        await it.outside.read_up()
        text = await show(it.connection, name, found.id)
        told = re.search(r"It had served ([\d,]+) predictions", text)
        assert told is not None, text
        # None, if it was wrong about every sensor from the onset on.
        assert int(told[1].replace(",", "")) == served(it, newest)
        assert "| identity | out of bounds |" in text and "asking upstream" in text
        assert f"`{name}.predictions/" in text
