"""What agents may rely on when they read and write the log; the same on both brokers, but where marked."""

import asyncio
import random
from functools import partial

import pytest
from aiokafka import TopicPartition

from riverkeeper.topics.connection import Connection
from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.log import (
    DeliveryError,
    Fenced,
    FencedWriter,
    Out,
    Reader,
    SourceGap,
    consumer,
    stop_consumer,
)
from riverkeeper.topics.messages import Origin
from riverkeeper.topics.store import ORIGIN, Inspector, LastRecord, record_hash
from riverkeeper.topics.tail import Tail
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.topics.logs import (
    DEADLINE,
    MESSAGE_TOO_LARGE,
    SMALL,
    connection,
    fill,
    forget_below,
    large,
    owning,
    reading,
    records,
    refuse_next,
    seated,
    take,
    topic,
    until,
    values,
    writing,
)


@pytest.fixture
def isolating(broker: Broker, request: pytest.FixtureRequest) -> Broker:
    """For promises that need transactions."""
    if not broker.transactions:
        reason = "the embedded broker's transactions neither hide nor roll back, so none are used there"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    return broker


@pytest.fixture
def real(kafka: KafkaCluster) -> Broker:
    """For groups of several members in one process, which the embedded broker loses."""
    return Broker(kafka.address, transactions=True)


def numbered(name: str, count: int, partition: int = 0) -> list[Out]:
    return [Out(name, partition, None, b"%d" % i) for i in range(count)]


class TestWriter:
    async def test_more_than_one_batch_stays_in_order(self, broker: Broker) -> None:
        name = await topic(broker, partitions=2)
        sent = {p: [b"%d-%d-%b" % (p, i, b"x" * 9_000) for i in range(300)] for p in (0, 1)}
        async with writing(broker) as writer:
            await writer.write([Out(name, p, None, sent[p][i]) for i in range(300) for p in (0, 1)])
        assert [await values(broker, name, p) for p in (0, 1)] == [sent[0], sent[1]]

    async def test_key_value_and_headers_arrive_as_they_were(self, broker: Broker) -> None:
        name = await topic(broker)
        header = ("origin", Origin(b"events/0", 7, 0).header())
        async with writing(broker) as writer:
            await writer.write([Out(name, 0, b"k", b"v", (header,)), Out(name, 0, b"k", None)])
        first, second = await records(broker, name)
        assert (first.key, first.value, list(first.headers)) == (b"k", b"v", [header])
        assert (second.key, second.value, list(second.headers)) == (b"k", None, [])


class TestFencedWriter:
    async def test_a_commit_reaches_every_topic(self, broker: Broker) -> None:
        one, two = await topic(broker), await topic(broker, partitions=2)
        async with owning(broker, f"id-{one}") as writer:
            for _ in range(3):
                await writer.commit([*numbered(one, 2), *numbered(two, 3, partition=1)])
        assert await values(broker, one) == [b"0", b"1"] * 3
        assert await values(broker, two, 1) == [b"0", b"1", b"2"] * 3

    async def test_it_is_spent_after_a_refusal(self, broker: Broker) -> None:
        name = await topic(broker, config=SMALL)
        async with owning(broker, f"id-{name}") as writer:
            refuse_next(broker, MESSAGE_TOO_LARGE)
            with pytest.raises(DeliveryError):
                await writer.commit([large(name, 700_000)])
            with pytest.raises(DeliveryError):
                await writer.commit(numbered(name, 1))
        assert await values(broker, name) == []

    async def test_a_second_owner_fences_the_first(self, isolating: Broker) -> None:
        name = await topic(isolating)
        async with owning(isolating, f"id-{name}") as first:
            await first.commit([Out(name, 0, None, b"before")])
            async with owning(isolating, f"id-{name}") as second:
                with pytest.raises(Fenced):
                    await first.commit([Out(name, 0, None, b"zombie")])
                with pytest.raises(Fenced):
                    await first.commit([Out(name, 0, None, b"zombie again")])
                await second.commit([Out(name, 0, None, b"after")])
        assert await values(isolating, name) == [b"before", b"after"]

    async def test_fenced_in_mid_commit_shows_all_or_nothing(self, real: Broker) -> None:
        name = await topic(real, partitions=2)
        rng, shown = random.Random(7), 0
        for _ in range(5):
            async with owning(real, f"id-{name}") as first:
                confirmed = 0

                async def commit_on(owner: FencedWriter) -> None:
                    nonlocal confirmed
                    while True:
                        await owner.commit([*numbered(name, 100, 0), *numbered(name, 100, 1)])
                        confirmed += 100

                committing = asyncio.create_task(commit_on(first))
                await asyncio.sleep(rng.uniform(0.0, 0.1))
                async with owning(real, f"id-{name}"):
                    # In the middle of a commit Kafka 4.2 may answer with an unknown error instead.
                    with pytest.raises((Fenced, DeliveryError)):
                        await asyncio.wait_for(committing, DEADLINE)
            one, two = [len(await values(real, name, p)) for p in (0, 1)]
            assert one == two
            assert one - shown in (confirmed, confirmed + 100)  # the last may stand, unconfirmed
            shown = one


class TestReader:
    async def test_it_reads_from_the_positions_given_and_from_new_ones_instead(self, broker: Broker) -> None:
        name = await topic(broker, partitions=2)
        a, b = TopicPartition(name, 0), TopicPartition(name, 1)
        for p in (0, 1):
            await fill(broker, name, [b"%d" % i for i in range(10)], p)
        async with reading(broker) as reader:
            reader.read_from({a: 4, b: 9})
            got = await take(reader, 7, [a, b])
            assert [r.offset for r in got[a]] == [4, 5, 6, 7, 8, 9]
            assert [r.offset for r in got[b]] == [9]
            reader.read_from({a: 2})
            got = await take(reader, 8, [a, b])
            assert list(got) == [a] and [r.offset for r in got[a]] == list(range(2, 10))

    async def test_records_fetched_for_an_old_position_never_come(self, broker: Broker) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        await fill(broker, name, [b"%d" % i for i in range(100)])
        async with reading(broker) as reader:
            for start in (0, 90, 10, 50):
                reader.read_from({tp: start})
                got = await take(reader, 1, [tp], max_records=3)  # the rest stays fetched
                assert got[tp][0].offset == start

    async def test_a_poll_is_bounded_and_a_paused_partition_waits(self, broker: Broker) -> None:
        name = await topic(broker, partitions=2)
        a, b = TopicPartition(name, 0), TopicPartition(name, 1)
        for p in (0, 1):
            await fill(broker, name, [b"%d" % i for i in range(20)], p)
        async with reading(broker) as reader:
            reader.read_from({a: 0, b: 0})
            got = await take(reader, 20, [a], max_records=20)
            assert list(got) == [a]
            for start in range(0, 20, 7):
                polled = (await take(reader, 1, [b], max_records=7))[b]
                assert [r.offset for r in polled] == list(range(start, min(start + 7, 20)))

    async def test_in_no_hurry_it_gets_together_what_came_in_turns(self, real: Broker) -> None:
        name = await topic(real)
        tp = TopicPartition(name, 0)
        async with reading(real, linger_ms=1_000) as reader, writing(real) as writer:
            reader.read_from({tp: 0})
            assert not await reader.poll([tp], max_records=10, timeout_ms=100)  # the fetch is on its way
            for i in range(5):
                await writer.write([Out(name, 0, None, b"%d" % i)])
            got = await reader.poll([tp], max_records=10, timeout_ms=5_000)
            assert [r.offset for r in got[tp]] == [0, 1, 2, 3, 4]

    async def test_what_retention_took_is_a_gap(self, broker: Broker) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        for i in range(10):  # one batch each: the embedded broker forgets whole ones
            await fill(broker, name, [b"%d" % i])
        await forget_below(broker, tp, 5)
        async with reading(broker) as reader:
            reader.read_from({tp: 3})
            with pytest.raises(SourceGap, match=f"{name}/0 at 3") as caught:
                await take(reader, 1, [tp])
            assert caught.value.positions == {tp: 3}

    async def test_a_position_beyond_the_end_is_a_gap(self, broker: Broker) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        await fill(broker, name, [b"0"])
        async with reading(broker) as reader:
            reader.read_from({tp: 7})
            with pytest.raises(SourceGap):
                await take(reader, 1, [tp])

    async def test_lag_counts_what_is_known_and_not_polled(self, broker: Broker) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        await fill(broker, name, [b"%d" % i for i in range(10)])
        async with reading(broker) as reader:
            reader.read_from({tp: 0})
            await take(reader, 4, [tp], max_records=4)
            assert reader.lag() == {tp: 6}
            await take(reader, 6, [tp])
            assert reader.lag() == {tp: 0}

    async def test_a_transaction_marker_is_no_lag(self, broker: Broker) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        async with owning(broker, f"id-{name}") as writer:
            await writer.commit(numbered(name, 3))
        async with reading(broker) as reader:
            reader.read_from({tp: 0})
            await take(reader, 3, [tp])

            async def caught_up() -> bool:
                await reader.poll([tp], max_records=10, timeout_ms=100)
                return reader.lag() == {tp: 0}

            await until(caught_up, 5.0)

    async def test_it_stops_however_it_was_just_assigned(self, broker: Broker) -> None:
        """aiokafka's own stop would wait for ever for a fetcher that lost its cancellation."""
        tp = TopicPartition(await topic(broker), 0)
        for ticks in range(6):
            reader = Reader(connection(broker))
            await reader.start()
            reader.read_from({tp: 0})
            await reader.poll([tp], max_records=1, timeout_ms=20)
            reader.read_from({})
            for _ in range(ticks):
                await asyncio.sleep(0)
            done, _ = await asyncio.wait([asyncio.ensure_future(reader.stop())], timeout=DEADLINE)
            assert done, f"{ticks} ticks after the assignment"

    async def test_it_stops_while_a_fetch_waits_to_be_tried_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """aiokafka's own stop would raise the fetch's cancellation, and leave its connections open."""
        with EmbeddedBroker() as broker:
            broker.create_topic("gone", 1)
            reading = consumer(Connection(broker.address), retry_backoff_ms=60_000)
            await reading.start()
            reading.assign([TopicPartition("gone", 0)])
            reading.seek(TopicPartition("gone", 0), 0)
            await reading.getmany(timeout_ms=20)
        await until(lambda: "Failed fetch messages" in caplog.text)
        async with asyncio.timeout(DEADLINE):
            await stop_consumer(reading)
        assert not reading._client._conns


class TestMembership:
    async def test_a_lone_member_gets_everything(self, broker: Broker) -> None:
        name = await topic(broker, partitions=3)
        async with seated(broker, f"g-{name}", [name], []) as member:
            await until(lambda: member.numbers(name) == {0, 1, 2})

    async def test_two_members_share_and_the_last_inherits(self, real: Broker) -> None:
        name = await topic(real, partitions=4)
        async with seated(real, f"g-{name}", [name], []) as first:
            async with seated(real, f"g-{name}", [name], []) as second:
                await until(lambda: len(first.owned) == len(second.owned) == 2)
                assert first.numbers(name) | second.numbers(name) == {0, 1, 2, 3}
            await until(lambda: first.numbers(name) == {0, 1, 2, 3})

    async def test_nobody_gets_what_another_has_not_let_go(self, real: Broker) -> None:
        name, log = await topic(real, partitions=4), list[str]()
        async with seated(real, f"g-{name}", [name], log, "a") as first:
            await until(lambda: len(first.owned) == 4)
            first.hold = 1.0
            log.clear()
            async with seated(real, f"g-{name}", [name], log, "b") as second:
                await until(lambda: len(second.owned) == 2)
                # A member is also told to let go of nothing when it joins.
                assert log.index("a let go") < log.index("b assigned")

    async def test_it_does_not_spin_while_there_is_nothing_to_do(self, broker: Broker) -> None:
        name = await topic(broker, partitions=2)
        async with seated(broker, f"g-{name}", [name], []) as member:
            await until(lambda: len(member.owned) == 2)
            polls, ask = 0, member.membership._consumer.getmany

            async def counted(*args: object, **kwargs: object) -> object:
                nonlocal polls
                polls += 1
                return await ask(*args, **kwargs)

            member.membership._consumer.getmany = counted
            await asyncio.sleep(1.5)
            assert polls < 20


class TestTail:
    async def test_a_sync_has_seen_all_that_was_written_before(self, broker: Broker) -> None:
        """Past the markers of transactions, too, which no consumer is handed."""
        name, seen = await topic(broker, partitions=2), list[bytes | None]()
        tail = Tail(connection(broker), name, lambda record: seen.append(record.value))
        await tail.start()
        following = asyncio.create_task(tail.run())

        async def synced_and_seen(value: bytes) -> bool:
            await asyncio.wait_for(tail.sync(), DEADLINE)
            return value in seen

        try:
            async with owning(broker, f"id-{name}") as owner, writing(broker) as writer:
                for i in range(10):
                    await owner.commit([Out(name, 0, None, b"state %d" % i)])
                    await writer.write([Out(name, 1, None, b"%d" % i)])
                    assert await synced_and_seen(b"%d" % i)
                    # Kafka shows a transaction a moment after it has confirmed the commit.
                    await until(partial(synced_and_seen, b"state %d" % i))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await tail.stop()

    async def test_it_begins_at_the_beginning_and_raises_what_apply_raises(self, broker: Broker) -> None:
        name = await topic(broker)
        await fill(broker, name, [b"0", b"1", b"bad"])
        seen = []

        def apply(record: object) -> None:
            seen.append(record)
            if len(seen) == 3:
                raise ValueError("bad")

        tail = Tail(connection(broker), name, apply)
        await tail.start()
        try:
            with pytest.raises(ValueError, match="bad"):
                await asyncio.wait_for(tail.run(), DEADLINE)
        finally:
            await tail.stop()

    async def test_an_aborted_transaction_does_not_hold_a_sync_up(self, isolating: Broker) -> None:
        name, seen = await topic(isolating, config=SMALL), list[bytes | None]()
        tail = Tail(connection(isolating), name, lambda record: seen.append(record.value))
        await tail.start()
        following = asyncio.create_task(tail.run())
        try:
            async with owning(isolating, f"id-{name}") as owner:
                refuse_next(isolating, 0, MESSAGE_TOO_LARGE)
                with pytest.raises(DeliveryError):
                    await owner.commit([large(name, 500_000), large(name, 700_000)])
            await asyncio.wait_for(tail.sync(), DEADLINE)
            assert seen == []
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await tail.stop()


class TestInspector:
    async def test_read_all_of_nothing(self, broker: Broker) -> None:
        assert await values(broker, await topic(broker)) == []

    async def test_read_all_starts_where_the_log_does(self, broker: Broker) -> None:
        name = await topic(broker)
        for i in range(6):
            await fill(broker, name, [b"%d" % i])
        await forget_below(broker, TopicPartition(name, 0), 4)
        assert await values(broker, name) == [b"4", b"5"]

    async def test_read_all_goes_past_markers_at_the_end(self, broker: Broker) -> None:
        name = await topic(broker)
        async with owning(broker, f"id-{name}") as writer:
            for _ in range(3):
                await writer.commit(numbered(name, 2))
        async with asyncio.timeout(DEADLINE):
            assert await values(broker, name) == [b"0", b"1"] * 3

    async def test_check_passes_what_is_still_the_same_log(self, broker: Broker) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        for i in range(6):
            await fill(broker, name, [b"%d" % i])
        last = (await records(broker, name))[3]
        known = {tp: LastRecord(3, record_hash(last))}
        async with Inspector(connection(broker)) as inspector:
            await inspector.check({tp: 4}, known)
            await inspector.check({tp: 6}, {})
            await inspector.check({tp: 0}, {})
        await forget_below(broker, tp, 4)  # nothing unread is lost by that
        async with Inspector(connection(broker)) as inspector:
            await inspector.check({tp: 4}, known)

    @pytest.mark.parametrize("position", [2, 7])
    async def test_check_finds_what_is_no_longer_or_not_yet_there(
        self, broker: Broker, position: int
    ) -> None:
        name = await topic(broker)
        tp = TopicPartition(name, 0)
        for i in range(6):
            await fill(broker, name, [b"%d" % i])
        await forget_below(broker, tp, 4)
        async with Inspector(connection(broker)) as inspector:
            with pytest.raises(SourceGap, match=f"{name}/0 at {position}"):
                await inspector.check({tp: position}, {})

    async def test_check_finds_another_record_at_the_last_offset(self, broker: Broker) -> None:
        """Counterexample 19: in a topic made anew old offsets come again, and all would be skipped."""
        old, new = await topic(broker), await topic(broker)
        await fill(broker, old, [b"old %d" % i for i in range(4)])
        await fill(broker, new, [b"new %d" % i for i in range(6)])
        last = (await records(broker, old))[3]
        tp = TopicPartition(new, 0)
        async with Inspector(connection(broker)) as inspector:
            with pytest.raises(SourceGap):
                await inspector.check({tp: 4}, {tp: LastRecord(3, record_hash(last))})

    async def test_it_knows_an_effect_by_its_cause(self, broker: Broker) -> None:
        """That a partition holds records tells nothing: those of every source may lead there."""
        name = await topic(broker)
        tp, ours, other = TopicPartition(name, 0), TopicPartition("a/b", 1), TopicPartition("a/b", 11)
        async with writing(broker) as writer, Inspector(connection(broker)) as inspector:
            for origin in (Origin(b"a/b/11", 1, 1), Origin(b"b/1", 1, 0), None):
                headers = [(ORIGIN, origin.header())] if origin else []
                await writer.write([Out(name, 0, None, b"", headers)])
            assert await inspector.has_effect(tp, [other])
            assert not await inspector.has_effect(tp, [ours])
            await writer.write([Out(name, 0, None, b"", [(ORIGIN, Origin(b"a/b/1", 0, 0).header())])])
            assert await inspector.has_effect(tp, [ours])
            assert await inspector.read_all(tp, 1), "it may be asked for other things afterwards"

    async def test_what_was_aborted_is_no_effect(self, isolating: Broker) -> None:
        name, small = await topic(isolating), await topic(isolating, config=SMALL)
        tp = TopicPartition(name, 0)
        effect = Out(name, 0, None, b"", [(ORIGIN, Origin(b"events/0", 0, 0).header())])
        async with owning(isolating, f"id-{name}") as writer:
            with pytest.raises(DeliveryError):
                await writer.commit([effect, large(small, 800_000)])
        async with Inspector(connection(isolating)) as inspector:
            assert (await inspector.range(tp))[1] > 0
            assert not await inspector.has_effect(tp, [TopicPartition("events", 0)])
