"""What join reads and writes, made and counted by hand."""

from __future__ import annotations

import msgspec

from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import Envelope, Example, Origin, Prediction, Source
from riverkeeper.topics.store import ORIGIN
from tests.agents.loop import everything
from tests.agents.test_join import TIME
from tests.agents.tiny import Paid
from tests.brokers.broker import Broker


def prediction(pipeline: Pipeline, n: int, *, source: str = "facts/0") -> Out:
    """What score writes of the fact at offset n of a source."""
    said = Prediction(
        id=f"s{n}",
        key=f"b{n}",
        time=TIME,
        value=2.0,
        source=Source.MODEL,
        reason="",
        asked="line",
        model="line",
        version=1,
        fingerprint=pipeline.fingerprint,
        fact=f"{source}/{n}",
        verdict=-1,
        baseline=None,
        features={"amount": 1.0},
    )
    origin = Origin(source.encode(), n, 0).header()
    name = pipeline.topic("predictions")
    return Out(name, 0, said.key.encode(), msgspec.json.encode(said), ((ORIGIN, origin),))


def outcome(pipeline: Pipeline, n: int) -> Out:
    """What ingest writes of the event at offset n, which says what became of fact n."""
    said = Envelope(
        id=f"p{n}", type="paid", time=TIME, key=f"b{n}", data=Paid(basket=f"b{n}", amount=float(n))
    )
    origin = Origin(b"events/0", n, 0).header()
    name = pipeline.topic("outcomes")
    return Out(name, 0, said.key.encode(), msgspec.json.encode(said), ((ORIGIN, origin),))


async def examples(broker: Broker, pipeline: Pipeline) -> list[Example]:
    """Every record of the topic: it holds no copies, so no rule is needed to read it."""
    return [
        msgspec.json.decode(record.value or b"", type=Example)
        for record in await everything(broker, pipeline, "examples")
    ]
