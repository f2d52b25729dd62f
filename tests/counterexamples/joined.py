"""What join reads and writes, made and counted by hand."""

from __future__ import annotations

from functools import partial

import msgspec
from aiokafka import TopicPartition

from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.log import Out, consumer, stop_consumer
from riverkeeper.topics.messages import Envelope, Example, Origin, Prediction, Source
from riverkeeper.topics.store import ORIGIN
from tests.agents.loop import everything
from tests.agents.test_join import TIME
from tests.agents.tiny import Paid
from tests.brokers.broker import Broker
from tests.topics.logs import connection, until


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
    await until(partial(_none_open, broker, pipeline))
    return [
        msgspec.json.decode(record.value or b"", type=Example)
        for record in await everything(broker, pipeline, "examples")
    ]


async def _none_open(broker: Broker, pipeline: Pipeline) -> bool:
    """Whether all that is there is committed. A broker answers a commit before readers may see it."""
    tps = [TopicPartition(pipeline.topic("examples"), p) for p in range(pipeline.partitions)]
    ends = []
    for isolation in ("read_committed", "read_uncommitted"):
        reading = consumer(connection(broker), isolation_level=isolation)
        await reading.start()
        ends.append(await reading.end_offsets(tps))
        await stop_consumer(reading)
    return bool(ends[0] == ends[1])
