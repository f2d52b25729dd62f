"""kcat, a client in another language, writes events and reads predictions and dead letters."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice

import msgspec
import pytest

from riverkeeper.demos.flights_data import rows, stream
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.system import account
from tests.system.harness import World, world
from tests.system.play import finished

KCAT_S = 20.0  # for one command on a busy machine


@pytest.fixture
def kcat() -> str:
    found = shutil.which("kcat")
    assert found is not None, "this test needs kcat, which is not installed: apt-get install kcat"
    return found


async def run(kcat: str, world: World, *arguments: str, text: str = "") -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        [kcat, "-b", world.broker.address, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=KCAT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def produce(kcat: str, world: World, lines: list[tuple[str, str]], *headers: str) -> None:
    """One record per (key, value), all with these headers."""
    topic = world.pipeline.topic("events")
    flags = [flag for header in headers for flag in ("-H", header)]
    text = "".join(f"{key}\t{value}\n" for key, value in lines)
    await run(kcat, world, "-P", "-t", topic, "-K", "\t", *flags, text=text)


async def consume(kcat: str, world: World, suffix: str) -> list[tuple[str, dict[str, str], str]]:
    """(key, headers, value) of every record on the topic now."""
    topic = world.pipeline.topic(suffix)
    text = await run(kcat, world, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-J")
    records = [json.loads(line) for line in text.splitlines()]
    return [(r["key"], dict(paired(r["headers"])), r["payload"]) for r in records]


def paired(headers: list[str]) -> Iterator[tuple[str, str]]:
    """kcat gives names and values in turn."""
    return zip(headers[::2], headers[1::2], strict=True)


async def test_kcat_writes_and_reads(kafka: KafkaCluster, kcat: str) -> None:
    flights = [msgspec.json.decode(e.value) for e in islice(stream(rows()), 40)]
    plain, rest = flights[:30], flights[30:]
    async with world(Broker(kafka.address, transactions=True), "flights") as it:
        async with it.running():
            lines = [(e.get("origin", "LGA"), json.dumps(e)) for e in plain]
            await produce(kcat, it, [*lines, ("JFK", "this is no JSON"), lines[0]])
            for event in rest:
                attributes = {"id": event["id"], "type": event["type"], "time": event["time"]}
                data = {name: value for name, value in event.items() if name not in attributes}
                # `time` is a field of a departure as well as of the event.
                payload = json.dumps({**data, "time": event["time"]})
                headers = [f"ce_{name}={value}" for name, value in attributes.items()]
                headers += ["ce_specversion=1.0", "ce_source=/gates", "content-type=application/json"]
                await produce(kcat, it, [(event.get("origin", "LGA"), payload)], *headers)
            await produce(kcat, it, [("EWR", "{}")], "ce_specversion=1.0", "ce_source=/gates", "ce_id=x")
            await it.outside.until(lambda: len(it.outside["events"]) == 43, "kcat's events are there")
            await finished(it, 42)
        await it.outside.read_up()
        found = account.adds_up(it.pipeline, it.outside)
        assert (found.dead, found.duplicates) == (2, 1)
        assert {f.id for f in [*found.facts.values(), *found.outcomes.values()]} == {e["id"] for e in flights}

        said = await consume(kcat, it, "predictions")
        assert len(said) == len(found.facts)
        departed = {e["flight"]: e for e in flights if e["type"] == "departure"}
        assert {key for key, _, _ in said} == departed.keys()
        for key, named, value in said:
            prediction = json.loads(value)
            assert prediction["id"] == departed[key]["id"]
            assert named["origin"] == f"{prediction['fact']}/0"
            assert -120.0 <= prediction["value"] <= 1_500.0
            assert (prediction["source"], prediction["model"]) == ("fallback", "baseline")
            assert prediction["value"] == departed[key]["delay"], "as late as it left"

        dead = {named["code"]: value for _, named, value in await consume(kcat, it, "dead")}
        assert dead == {"not_json": "this is no JSON", "bad_cloudevent": "{}"}
