"""Facts scored per second by one process, over real Kafka, validated and with lineage.

    python bench/score.py [--facts 100000] [--rounds 3] [--profile]

A topic of facts is filled beforehand, versions are published, then one process runs score alone until
every fact has its prediction. Prints facts/s of every round and their median, side by side for the
flights pipeline (four models, two of them with traffic), and for the same facts with one model.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from riverkeeper import Pipeline
from riverkeeper.agents.agent import Limits, Runtime
from riverkeeper.agents.score import Score
from riverkeeper.demos import flights as demo
from riverkeeper.demos.flights_data import rows, stream
from riverkeeper.models.features import FoldState
from riverkeeper.models.quality import learn
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import begin, dump, environment, seal
from riverkeeper.process import topics_of
from riverkeeper.topics.catalog import Catalog, Replication
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import Envelope
from riverkeeper.topics.partition import partition, partitions
from riverkeeper.topics.store import ORIGIN
from riverkeeper.topics.telemetry import Telemetry, configure_logging
from tests.brokers.kafka import KafkaCluster

KEY = b"k" * 32
TRAINED = 3_000  # facts each model has learned before it serves
CHUNK = 5_000  # facts written at once while the topic is filled


def single() -> Pipeline:
    """The flights pipeline with one learning model and the fallback."""
    f = demo.flights
    return Pipeline(
        name="single",
        facts=f.facts,
        outcomes=f.outcomes,
        key=f.key,
        join=f.join,
        features=f.features,
        label=f.label,
        models={name: f.models[name] for name in ("steady", "baseline")},
        serve="steady",
        bounds=f.bounds,
        fallback="baseline",
        constant=f.constant,
        partitions=f.partitions,
    )


def envelopes(count: int) -> list[Envelope[demo.Departure]]:
    made = []
    for event in stream(rows()):
        fields = msgspec.json.decode(event.value)
        if fields["type"] == "departure":
            data = msgspec.convert(fields, demo.Departure)
            made.append(
                Envelope(id=fields["id"], type="departure", time=data.time, key=data.origin, data=data)
            )
    return list(islice(cycle(made), count))


def versions(pipeline: Pipeline) -> list[Out]:
    facts = envelopes(TRAINED)
    learned = pipeline.graph.extract(FoldState(), facts)
    outs = []
    for name, model in pipeline.models.items():
        estimator = begin(None, model.factory, AllowList(pipeline.trusted))
        for fact, row in zip(facts, learned, strict=True):
            assert isinstance(row, dict)
            own = {feature: row[feature] for feature in pipeline.model_features[name]}
            learn(pipeline.task, estimator, own, fact.data.delay)
        sealed = seal(
            model=name,
            version=1,
            line=0,
            parent=0,
            fingerprint=pipeline.fingerprint,
            environment=environment(),
            spans=(),
            offsets={},
            learned=TRAINED,
            data=dump(estimator),
            published_ms=int(time.time() * 1000),
            key=KEY,
        )
        where = partition(name.encode(), pipeline.model_partitions)
        outs += [Out(pipeline.topic("models"), where, key, value) for key, value in sealed.records()]
    return outs


async def fill(connection: Connection, pipeline: Pipeline, count: int) -> None:
    async with Catalog(connection, Replication(1, 1)) as catalog:
        await catalog.create(topics_of(pipeline))
    writer = Writer(connection)
    await writer.start()
    facts = envelopes(count)
    where = partitions([fact.data.flight.encode() for fact in facts], pipeline.partitions)
    for start in range(0, count, CHUNK):
        await writer.write(
            Out(
                pipeline.topic("facts"),
                where[i],
                facts[i].key.encode(),
                msgspec.json.encode(facts[i]),
                ((ORIGIN, b"events/0/%d/0" % i),),
            )
            for i in range(start, min(start + CHUNK, count))
        )
    await writer.write(versions(pipeline))
    await writer.stop()


async def score(connection: Connection, pipeline: Pipeline, count: int) -> float:
    """Facts per second from the first fact read to the last prediction acknowledged."""
    telemetry = Telemetry()
    runtime = Runtime(
        connection, pipeline, telemetry, replica="bench", transactions=True, limits=Limits(), signing_key=KEY
    )
    agent, stop = Score(runtime), asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    while written(telemetry) == 0:  # noqa: ASYNC110  seen from outside: the agent has no event for it
        await asyncio.sleep(0.005)
    first, began = written(telemetry), time.perf_counter()
    while written(telemetry) < count:
        await asyncio.sleep(0.005)
        if running.done():
            running.result()
    seconds = time.perf_counter() - began
    stop.set()
    await running
    return (count - first) / seconds


def written(telemetry: Telemetry) -> int:
    totals = (
        sample.value
        for metric in telemetry.registry.collect()
        for sample in metric.samples
        if sample.name == "riverkeeper_predictions_total"
    )
    return int(sum(totals))


def rounds(count: int, times: int) -> None:
    found: dict[str, list[float]] = {"four models": [], "one model": []}
    for _ in range(times):
        for label, pipeline in (("four models", demo.flights), ("one model", single())):
            with KafkaCluster() as kafka:
                connection = Connection(kafka.address)
                asyncio.run(fill(connection, pipeline, count))
                found[label].append(asyncio.run(score(connection, pipeline, count)))
    for label, figures in found.items():
        shown = ", ".join(f"{figure:,.0f}" for figure in figures)
        sys.stdout.write(f"{label}: median {statistics.median(figures):,.0f} facts/s of {shown}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--facts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print where the time went")
    options = parser.parse_args()
    configure_logging("ERROR", json=False)
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    rounds(options.facts, options.rounds)
    if options.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
