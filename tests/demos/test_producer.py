"""The demo's producer goes on where it was cut off, and writes nothing over another stream."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from riverkeeper.demos.flights_data import Timed
from riverkeeper.demos.producer import OtherStream, Producer
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.partition import partition

PARTITIONS = 3
KEYS = ("EWR", "JFK", "LGA")


def stream(count: int, tag: str = "") -> list[Timed]:
    return [Timed(float(i), KEYS[i % len(KEYS)], f"{tag}{i}".encode()) for i in range(count)]


class Played:
    """One run of a producer that may send `room` events in all."""

    def __init__(self, address: str, topic: str) -> None:
        self._address, self._topic = address, topic

    async def run(self, events: Iterable[Timed], room: int = 10_000, speed: float | None = None) -> Producer:
        stop = asyncio.Event()

        def left() -> int:
            free = room - producer.sent
            if free <= 0:
                stop.set()
            return free

        producer = Producer(Connection(self._address), self._topic, PARTITIONS, room=left, speed=speed)
        await producer.play(events, stop)
        return producer

    async def standing(self) -> dict[int, list[bytes]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._address, auto_offset_reset="earliest")
        await consumer.start()
        try:
            tps = [TopicPartition(self._topic, p) for p in range(PARTITIONS)]
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            found: dict[int, list[bytes]] = {p: [] for p in range(PARTITIONS)}
            while sum(map(len, found.values())) < sum(ends.values()):
                for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                    found[tp.partition] += [record.value for record in records]
            return found
        finally:
            await consumer.stop()


def expected(events: Iterable[Timed]) -> dict[int, list[bytes]]:
    by_partition: dict[int, list[bytes]] = {p: [] for p in range(PARTITIONS)}
    for event in events:
        by_partition[partition(event.key.encode(), PARTITIONS)].append(event.value)
    return by_partition


@pytest.fixture
async def played(embedded: EmbeddedBroker, request: pytest.FixtureRequest) -> AsyncIterator[Played]:
    topic = f"producer.{abs(hash(request.node.nodeid))}"
    embedded.create_topic(topic, PARTITIONS)
    yield Played(embedded.address, topic)


async def test_a_stream_goes_where_any_client_s_keys_go(played: Played) -> None:
    producer = await played.run(stream(1_200))
    assert producer.done
    assert producer.placed == 1_200
    assert await played.standing() == expected(stream(1_200))


async def test_what_was_cut_off_is_gone_on_with(played: Played) -> None:
    first = await played.run(stream(1_200), room=700)
    assert not first.done
    second = await played.run(stream(1_200))
    assert (second.skipped, second.placed, second.done) == (first.sent, 1_200, True)
    assert await played.standing() == expected(stream(1_200))


async def test_a_partition_that_fell_behind_is_made_up_for(played: Played) -> None:
    """A producer that is killed may have been acknowledged by one partition and not by another."""
    ahead = partition(b"JFK", PARTITIONS)
    await played.run([event for event in stream(90) if partition(event.key.encode(), PARTITIONS) == ahead])
    producer = await played.run(stream(1_200))
    assert producer.placed == 1_200
    assert await played.standing() == expected(stream(1_200))


async def test_another_stream_is_left_alone(played: Played) -> None:
    await played.run(stream(300))
    with pytest.raises(OtherStream, match="holds other events"):
        await played.run(stream(1_200, tag="other"))
    with pytest.raises(OtherStream, match="holds other events"):
        await played.run(stream(90))
    assert await played.standing() == expected(stream(300))


async def test_speed_is_a_multiple_of_event_time(played: Played) -> None:
    began = asyncio.get_running_loop().time()
    await played.run(stream(101), speed=100.0)
    assert asyncio.get_running_loop().time() - began >= 1.0
