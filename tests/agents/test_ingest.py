"""Every event becomes exactly one fact, one outcome or one dead letter, or is a duplicate."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper import Fact
from riverkeeper.agents.ingest import MAX_ID_CHARS, Ingest, IngestWork, Parser, RecentIds
from riverkeeper.agents.work import dead_letter
from riverkeeper.models.pipeline import Dedupe, EventFields, Pipeline
from riverkeeper.topics.log import MAX_DEAD_BYTES, MAX_RECORD_BYTES, Out, record_bytes
from riverkeeper.topics.messages import BadRecord, Envelope, ErrorCode, Origin
from riverkeeper.topics.partition import partition
from riverkeeper.topics.store import ORIGIN, Head, Progress, origin_header
from tests.agents.tiny import Paid, Sale, Stored, paid, runtime, sale, tiny

EVENTS = TopicPartition("tiny.events", 0)
PIPELINE = tiny()
CLOUD = [("content-type", b"application/cloudevents+json")]


def work(pipeline: Pipeline = PIPELINE, recent: RecentIds | None = None, at: int = 0) -> IngestWork:
    if recent is None and pipeline.dedupe is not None:
        recent = RecentIds(pipeline.dedupe)
    return IngestWork(Ingest(runtime(pipeline)), Progress({EVENTS: at}), recent, fresh=True)


def without(event: bytes, *names: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(event).items() if k not in names}).encode()


def cloud(**changed: Any) -> bytes:
    data = {"basket": "b1", "shop": "north", "amount": 2.5}
    event = {"specversion": "1.0", "id": "c1", "source": "/till", "type": "sale", "data": data}
    return json.dumps({**event, **changed}).encode()


class TestParser:
    def parse(
        self, value: bytes, pipeline: Pipeline = PIPELINE, **record: Any
    ) -> tuple[str, bytes, str, Any]:
        parsed = Parser(pipeline).parse(Stored(0, value, **record))
        declared = pipeline.facts if parsed.suffix == "facts" else pipeline.outcomes
        envelope = msgspec.json.decode(parsed.value, type=Envelope[declared])  # type: ignore[valid-type]
        assert (envelope.id, envelope.key.encode()) == (parsed.id, parsed.key)
        return parsed.suffix, parsed.key, parsed.id, envelope

    def test_a_plain_fact(self) -> None:
        suffix, key, id, envelope = self.parse(sale())
        assert (suffix, key, id) == ("facts", b"north", "s1")
        assert envelope.data == Sale(basket="b1", shop="north", amount=2.5)
        assert envelope.time == datetime(2024, 1, 1, 9, tzinfo=UTC)

    def test_an_outcome_is_keyed_by_the_join_field(self) -> None:
        suffix, key, _, envelope = self.parse(paid())
        assert (suffix, key, envelope.data) == ("outcomes", b"b1", Paid(basket="b1", amount=3.5))

    def test_cloudevents_in_both_modes(self) -> None:
        data = b'{"basket": "b1", "shop": "north", "amount": 2.5}'
        attributes = {"specversion": "1.0", "id": "c1", "source": "/till", "type": "sale"}
        headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
        binary = self.parse(data, headers=headers)
        assert binary == self.parse(cloud(), headers=CLOUD)
        assert binary[:3] == ("facts", b"north", "c1")

    def test_a_cloudevent_without_a_time_happened_when_it_was_appended(self) -> None:
        *_, envelope = self.parse(cloud(), headers=CLOUD, timestamp=1_704_103_200_000)
        assert envelope.time == datetime(2024, 1, 1, 10, tzinfo=UTC)

    def test_epoch_milliseconds_and_integer_ids(self) -> None:
        *_, id, envelope = self.parse(sale(id=7, time=1_704_103_200_500))
        assert id == "7"
        assert envelope.time == datetime(2024, 1, 1, 10, 0, 0, 500_000, tzinfo=UTC)

    def test_declared_names_of_the_fields(self) -> None:
        pipeline = tiny(event=EventFields(id="uid", time="when", type="kind"))
        event = {"uid": "u", "when": 1, "kind": "sale", "basket": "b", "shop": "s", "amount": 1}
        assert self.parse(json.dumps(event).encode(), pipeline)[2] == "u"

    def test_unknown_fields_are_ignored(self) -> None:
        assert self.parse(sale(surprise={"x": 1}))[3] == self.parse(sale())[3]

    def test_keyless_events_are_welcome_where_nothing_is_deduplicated(self) -> None:
        assert self.parse(sale(), tiny(dedupe=None), key=None)[2] == "s1"


# What an operator sees of each bad event: value, code, and what is unusual about the record.
BAD: dict[str, tuple[bytes | None, ErrorCode, dict[str, Any]]] = {
    "10 MB of junk": (b"\x00\xff" * 5_000_000, ErrorCode.TOO_LARGE, {}),
    "10 MB of json": (sale(note="x" * 10_000_000), ErrorCode.TOO_LARGE, {}),
    "invalid utf-8": (sale().replace(b"north", b"n\xffrth"), ErrorCode.NOT_JSON, {}),
    "utf-8 of a surrogate": (sale().replace(b"north", b"\xed\xa0\x80"), ErrorCode.NOT_JSON, {}),
    "lone surrogate": (sale().replace(b"north", b"\\ud800"), ErrorCode.NOT_JSON, {}),
    "NaN": (sale().replace(b"2.5", b"NaN"), ErrorCode.NOT_JSON, {}),
    "infinity": (sale().replace(b"2.5", b"Infinity"), ErrorCode.NOT_JSON, {}),
    "1e999": (sale().replace(b"2.5", b"1e999"), ErrorCode.NOT_JSON, {}),
    "nested 100 000 deep": (b"[" * 100_000 + b"]" * 100_000, ErrorCode.TOO_DEEP, {}),
    "nested 800 deep": (sale().replace(b"2.5", b'2.5,"note":' + b"[" * 800 + b"]" * 800), ErrorCode.TOO_DEEP, {}),
    "empty": (b"", ErrorCode.NOT_JSON, {}),
    "null": (None, ErrorCode.NOT_JSON, {}),
    "truncated": (sale()[:-1], ErrorCode.NOT_JSON, {}),
    "a list": (b"[1]", ErrorCode.WRONG_TYPE, {}),
    "json null": (b"null", ErrorCode.WRONG_TYPE, {}),
    "field missing": (without(sale(), "amount"), ErrorCode.MISSING_FIELD, {}),
    "key missing": (without(sale(), "shop"), ErrorCode.MISSING_FIELD, {}),
    "id missing": (without(sale(), "id"), ErrorCode.MISSING_FIELD, {}),
    "time missing": (without(sale(), "time"), ErrorCode.MISSING_FIELD, {}),
    "type missing": (without(sale(), "type"), ErrorCode.MISSING_FIELD, {}),
    "time null": (sale(time=None), ErrorCode.MISSING_FIELD, {}),
    "text for a number": (sale(amount="2.5"), ErrorCode.WRONG_TYPE, {}),
    "number for a text": (sale(shop=5), ErrorCode.WRONG_TYPE, {}),
    "null for a number": (sale(amount=None), ErrorCode.WRONG_TYPE, {}),
    "unknown type": (sale(type="refund"), ErrorCode.UNKNOWN_TYPE, {}),
    "type no text": (sale(type=["sale"]), ErrorCode.UNKNOWN_TYPE, {}),
    "year 1": (sale(time="0001-01-01T00:00:00Z"), ErrorCode.BAD_TIME, {}),
    "year 1, east": (sale(time="0001-01-01T00:00:00+14:00"), ErrorCode.BAD_TIME, {}),
    "year 9999, west": (sale(time="9999-12-31T23:59:59-14:00"), ErrorCode.BAD_TIME, {}),
    "no offset": (sale(time="2024-01-01T10:00:00"), ErrorCode.BAD_TIME, {}),
    "time a word": (sale(time="noon"), ErrorCode.BAD_TIME, {}),
    "time true": (sale(time=True), ErrorCode.BAD_TIME, {}),
    "time a fraction": (sale(time=1.5), ErrorCode.BAD_TIME, {}),
    "time before 1970": (sale(time=-1), ErrorCode.BAD_TIME, {}),
    "time in seconds too far": (sale(time=10**17), ErrorCode.BAD_TIME, {}),
    "time of 64 bits": (sale(time=2**64 - 1), ErrorCode.BAD_TIME, {}),
    "time of 100 digits": (sale().replace(b'"2024-01-01T10:00:00+01:00"', b"9" * 100), ErrorCode.BAD_TIME, {}),
    "id empty": (sale(id=""), ErrorCode.WRONG_TYPE, {}),
    "id a list": (sale(id=[1]), ErrorCode.WRONG_TYPE, {}),
    "id true": (sale(id=True), ErrorCode.WRONG_TYPE, {}),
    "id giant": (sale(id="x" * (MAX_ID_CHARS + 1)), ErrorCode.WRONG_TYPE, {}),
    "id of 100 digits": (sale(id="").replace(b'""', b"9" * 100), ErrorCode.WRONG_TYPE, {}),
    "no key": (sale(), ErrorCode.NO_KEY, {"key": None}),
    "cloudevent without source": (b'{"specversion": "1.0"}', ErrorCode.BAD_CLOUDEVENT, {"headers": CLOUD}),
    "cloudevent without data": (without(cloud(), "data"), ErrorCode.BAD_CLOUDEVENT, {"headers": CLOUD}),
    "cloudevent with null data": (cloud(data=None), ErrorCode.WRONG_TYPE, {"headers": CLOUD}),
    "a header without a value": (b"{", ErrorCode.NOT_JSON, {"headers": [("content-type", None), ("ce_id", None)]}),
    "join field giant": (sale(basket="x" * 2_000), ErrorCode.TOO_LARGE, {}),
    "key giant": (
        sale(shop="x" * (MAX_RECORD_BYTES // 2)),
        ErrorCode.TOO_LARGE,
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_event_costs_one_dead_letter_with_its_bytes(name: str) -> None:
    value, code, unusual = BAD[name]
    record = Stored(41, value, **unusual)
    step = work()
    (dead,) = await step.process({EVENTS: [record]})
    assert (dead.topic, dead.partition) == ("tiny.dead", 0)
    assert (dead.key, dead.value) == (record.key, record.value)
    headers = list(dead.headers)
    assert headers[0] == (ORIGIN, Origin(b"tiny.events/0", 41, 0).header())
    assert headers[1] == ("code", code.value.encode())
    assert headers[2][0] == "reason" and headers[2][1]
    assert headers[3:] == list(record.headers)
    assert record_bytes(dead.key, dead.value, dead.headers) <= MAX_DEAD_BYTES
    assert step.positions == {EVENTS: 42}


class Anonymous(Fact):
    basket: str | None = None
    shop: str | None = None
    amount: float = 0.0


class Settled(Fact):
    basket: str | None = None
    amount: float = 0.0


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b'{"id":"1","type":"anonymous","time":1,"basket":"b"}', ErrorCode.MISSING_FIELD),
        (b'{"id":"1","type":"anonymous","time":1,"shop":"s"}', ErrorCode.MISSING_FIELD),
        (b'{"id":"1","type":"settled","time":1,"basket":null}', ErrorCode.MISSING_FIELD),
        (b'{"id":"1","type":"settled","time":1,"basket":"b"}', None),
    ],
)
def test_a_record_needs_the_fields_that_place_it(event: bytes, code: ErrorCode | None) -> None:
    """Else all records without a shop would share the key "None"."""
    parser = Parser(tiny(facts=Anonymous, outcomes=Settled))
    if code is None:
        parser.parse(Stored(0, event))
        return
    with pytest.raises(BadRecord) as caught:
        parser.parse(Stored(0, event))
    assert caught.value.code == code


def test_a_reason_is_bounded_and_encodable() -> None:
    out = dead_letter(PIPELINE, Stored(0, b""), BadRecord(ErrorCode.NOT_JSON, "\ud800" + "é" * 10**6))
    assert len(dict(out.headers)["reason"]) < 5_000


async def test_outputs_are_placed_and_caused() -> None:
    events = [Stored(5, sale("a", shop="south")), Stored(6, b"{"), Stored(9, paid("b", basket="b7"))]
    outs = await work(at=5).process({EVENTS: events})
    seen = {out.topic: out for out in outs}
    fact, outcome, dead = seen["tiny.facts"], seen["tiny.outcomes"], seen["tiny.dead"]
    assert len(outs) == 3
    assert (fact.key, fact.partition) == (b"south", partition(b"south", 3))
    assert (outcome.key, outcome.partition) == (b"b7", partition(b"b7", 3))
    causes = [Origin.parse(dict(out.headers)[ORIGIN]) for out in (fact, dead, outcome)]
    assert causes == [(b"tiny.events/0", offset, 0) for offset in (5, 6, 9)]


JUNK = [b"{", b"", without(sale(), "time")]
EVENT = st.one_of(
    st.builds(lambda id, shop: sale(id, shop=shop), st.integers(0, 9), st.sampled_from("abcd")),
    st.builds(lambda id, basket: paid(id, basket=basket), st.integers(5, 14), st.sampled_from("abcd")),
    st.sampled_from(JUNK),
)
LOG = st.lists(st.tuples(EVENT, st.integers(-30, 60)), max_size=40)


def appended(log: Sequence[tuple[bytes, int]], *, backwards: bool = True) -> list[Stored]:
    """Records with append times in steps; these may step back, for brokers' clocks differ."""
    records, at = [], 1_000_000
    for offset, (value, step) in enumerate(log):
        at += step if backwards else abs(step)
        records.append(Stored(offset, value, timestamp=at))
    return records


def by_topic(outs: Sequence[Out]) -> dict[tuple[str, int], list[Out]]:
    placed: dict[tuple[str, int], list[Out]] = {}
    for out in outs:
        placed.setdefault((out.topic, out.partition), []).append(out)
    return placed


SHORT = Dedupe(timedelta(milliseconds=100), ids=6)


@given(LOG, st.lists(st.integers(1, 9), min_size=40, max_size=40), st.data())
async def test_a_replay_from_a_checkpoint_writes_what_the_first_run_wrote(
    log: list[tuple[bytes, int]], sizes: list[int], data: st.DataObject
) -> None:
    """In whatever batches, and with the ids from the store: else the origin rule would skip or double."""
    pipeline, records = tiny(dedupe=SHORT), appended(log)
    first = work(pipeline)
    whole = await first.process({EVENTS: records}) if records else []

    second, table, outs, at = work(pipeline), dict[bytes, bytes](), list[Out](), 0
    for size in sizes:
        if at >= len(records):
            break
        outs += await second.process({EVENTS: records[at : at + size]})
        at += size
        if data.draw(st.booleans()):
            table = stored(table, second.snapshot(0.0))
            head = msgspec.json.decode(table[b"head"], type=Head)
            recent = RecentIds(SHORT)
            recent.restore(table)
            second = work(pipeline, recent, head.positions["tiny.events/0"])
    assert by_topic(outs) == by_topic(whole)


def stored(table: Mapping[bytes, bytes], entries: Sequence[tuple[bytes, bytes | None]]) -> dict[bytes, bytes]:
    """The compacted store after another transaction, read from its beginning."""
    kept: dict[bytes, bytes | None] = {k: v for k, v in table.items() if k not in dict(entries)}
    return {k: v for k, v in (kept | dict(entries)).items() if v is not None}


@given(LOG)
async def test_each_event_has_exactly_one_fate(log: list[tuple[bytes, int]]) -> None:
    records = appended(log, backwards=False)
    outs = await work(tiny(dedupe=SHORT)).process({EVENTS: records}) if records else []
    fates: dict[int, int] = {}
    for out in outs:
        offset = Origin.parse(dict(out.headers)[ORIGIN]).offset
        fates[offset] = fates.get(offset, 0) + 1
    accepted: list[tuple[str, int]] = []  # the reference: ids within 100 ms, the last six of them
    for record in records:
        if record.value in JUNK:
            assert fates.pop(record.offset) == 1
            continue
        id, at = str(json.loads(record.value or b"")["id"]), record.timestamp
        if id in {known for known, then in accepted[-6:] if then >= at - 100}:
            assert record.offset not in fates
        else:
            accepted.append((id, at))
            assert fates.pop(record.offset) == 1
    assert not fates


class TestRecentIds:
    def recent(self, window_ms: int = 100, ids: int = 1_000) -> RecentIds:
        return RecentIds(Dedupe(timedelta(milliseconds=window_ms), ids))

    def test_an_id_is_known_to_the_end_of_its_window(self) -> None:
        recent = self.recent(100)
        assert [recent.seen("a", at) for at in (1000, 1100, 1101, 1200)] == [False, True, False, True]

    def test_the_oldest_id_leaves_when_there_are_too_many(self) -> None:
        recent = self.recent(ids=3)
        assert not any(recent.seen(id, 1000) for id in "abcd")
        assert [recent.seen(id, 1000) for id in "dcba"] == [True, True, True, False]

    def test_append_times_may_step_back(self) -> None:
        """Another broker leads, and its clock is behind: the entry still holds what is remembered."""
        first, second = self.recent(100), self.recent(100)
        first.seen("a", 1000)
        first.seen("b", 970)
        second.restore(stored({}, first.changes()))
        assert [second.seen(id, 1010) for id in "ab"] == [True, True]

    def test_an_id_that_came_back_is_restored_in_its_new_place(self) -> None:
        first, table = self.recent(100), dict[bytes, bytes]()
        for id, at in [("a", 0), ("b", 50), ("a", 101)]:
            first.seen(id, at)
        table = stored(table, first.changes())
        second = self.recent(100)
        second.restore(table)
        for recent in (first, second):  # neither may the old "a" hold up that "b" is forgotten
            assert [recent.seen(id, 151) for id in "ab"] == [True, False]

    def test_the_store_holds_no_more_than_the_window(self) -> None:
        recent, table = self.recent(100), dict[bytes, bytes]()
        for at in range(2_000):
            recent.seen(str(at), at)
            if at % 10 == 9:
                table = stored(table, recent.changes())
                assert sum(len(json.loads(entry)) for entry in table.values()) <= 100 + 1 + 10
        assert recent.changes() == []

    @pytest.mark.parametrize("longest", ["\x01" * MAX_ID_CHARS, "𝄞" * MAX_ID_CHARS])
    def test_entries_fit_a_record_however_long_the_ids(self, longest: str) -> None:
        recent = self.recent(ids=10_000)
        for i in range(2_000):
            recent.seen(f"{i}{longest}"[:MAX_ID_CHARS], 1_700_000_000_000)
        entries = recent.changes()
        assert all(record_bytes(key, value, ()) <= MAX_RECORD_BYTES for key, value in entries)
        again = self.recent(ids=10_000)
        again.restore({key: value for key, value in entries if value is not None})
        assert again.seen(f"1999{longest}"[:MAX_ID_CHARS], 1_700_000_000_000)


async def test_the_head_names_revision_position_and_last_record() -> None:
    step = work()
    assert not step.due(1e9)
    await step.process({EVENTS: [Stored(0, sale()), Stored(1, sale())]})
    assert step.due(1e9)
    entries = dict(step.snapshot(5.0, drained=True))
    head = msgspec.json.decode(entries[b"head"] or b"", type=Head)
    assert (head.revision, head.positions, head.drained) == (PIPELINE.revision, {"tiny.events/0": 2}, True)
    assert head.last["tiny.events/0"].offset == 1
    assert not step.due(1e9)
    assert origin_header(Stored(0, b"")) is None
