"""The ledger's own reading of an event agrees with ingest's, of whatever bytes: which are valid, and what they say."""

from __future__ import annotations

import base64
import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from riverkeeper.agents.ingest import Parser, RecentIds
from riverkeeper.audit.events import Hasher, Invalid, Reader, Window
from riverkeeper.models.pipeline import Dedupe
from riverkeeper.topics.messages import BadRecord, Envelope
from tests.audit.tape import Rec
from tests.system.pipelines import Reading, gauges

PIPELINE = gauges("gauges")
DATA = {"sensor": "s1", "number": "n1", "level": 4.5, "kind": "a"}
PLAIN = {"id": "r/1", "type": "reading", "time": "2026-01-05T08:00:00+01:00", **DATA}
STRUCTURED = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
BINARY = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"r/1"),
    ("ce_source", b"/a"),
    ("ce_type", b"reading"),
    ("ce_time", b"2026-01-05T08:00:00Z"),
)
ENVELOPE = {"specversion": "1.0", "id": "r/1", "source": "/a", "type": "reading"}


def event(value: object, headers: tuple[tuple[str, bytes], ...] = (), key: bytes | None = b"s1") -> Rec:
    encoded = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Rec("gauges.events", 0, 0, 1_767_225_600_000, key, encoded, headers)


def without(name: str) -> dict[str, Any]:
    return {n: v for n, v in PLAIN.items() if n != name}


EVENTS = {
    "plain": event(PLAIN),
    "an-integer-id": event(PLAIN | {"id": 7}),
    "a-boolean-id": event(PLAIN | {"id": True}),
    "a-long-id": event(PLAIN | {"id": "x" * 513}),
    "an-empty-id": event(PLAIN | {"id": ""}),
    "epoch-ms": event(PLAIN | {"time": 1_767_225_600_000}),
    "no-offset": event(PLAIN | {"time": "2026-01-05T08:00:00"}),
    "before-1970": event(PLAIN | {"time": -1}),
    "beyond-2200": event(PLAIN | {"time": "2200-01-01T00:00:00Z"}),
    "an-outcome": event({"id": "t/1", "type": "truth", "time": 1, "number": "n1", "level": 2}),
    "an-integer-level": event(PLAIN | {"level": 4}),
    "a-text-level": event(PLAIN | {"level": "4"}),
    "unheard-type": event(PLAIN | {"type": "other"}),
    "a-number-as-type": event(PLAIN | {"type": 3}),
    **{f"no-{name}": event(without(name)) for name in PLAIN},
    **{f"null-{name}": event(PLAIN | {name: None}) for name in PLAIN},
    "unknown-field": event(PLAIN | {"more": [1, {"a": None}]}),
    "no-key": event(PLAIN, key=None),
    "a-list": event([PLAIN]),
    "not-json": event(b"{"),
    "nothing": event(b""),
    "not-a-number": event(b'{"id": "1", "type": "reading", "time": NaN}'),
    "not-utf8": event(b'{"id": "\xff"}'),
    "deep": event(PLAIN | {"more": msgspec.json.decode(b"[" * 100 + b"]" * 100)}),
    "too-deep": event(PLAIN | {"more": msgspec.json.decode(b"[" * 128 + b"]" * 128)}),
    "many-brackets": event(PLAIN | {"more": [[]] * 200}),
    "large": event(PLAIN | {"more": "x" * 900_001}),
    "too-large-as-a-fact": event(PLAIN | {"kind": "x" * 899_800}),
    "a-large-key": event(PLAIN | {"sensor": "s" * 1_025}),
    "structured": event({**ENVELOPE, "data": DATA}, STRUCTURED),
    "structured-base64": event(
        {**ENVELOPE, "data_base64": base64.b64encode(msgspec.json.encode(DATA)).decode()}, STRUCTURED
    ),
    "structured-bad-base64": event({**ENVELOPE, "data_base64": "?"}, STRUCTURED),
    "structured-without-data": event(ENVELOPE, STRUCTURED),
    "structured-of-0.3": event({**ENVELOPE, "specversion": "0.3", "data": DATA}, STRUCTURED),
    "structured-in-avro": event(b"..", (("content-type", b"application/cloudevents+avro"),)),
    "structured-list": event([], STRUCTURED),
    "binary": event(DATA, BINARY),
    "binary-without-time": event(DATA, BINARY[:-1]),
    "binary-without-id": event(DATA, (BINARY[0], *BINARY[2:])),
    "binary-not-utf8": event(DATA, (*BINARY, ("ce_subject", b"\xff"))),
    "binary-bad-time": event(DATA, (*BINARY[:-1], ("ce_time", b"noon"))),
}


@pytest.mark.parametrize("name", EVENTS)
def test_valid_or_not(name: str) -> None:
    agrees(EVENTS[name])


def agrees(record: Rec) -> None:
    hasher = Hasher(PIPELINE)
    try:
        made = Parser(PIPELINE).parse(record)
    except BadRecord:
        made = None
    # What is too large as a fact, ingest refuses in a later step.
    if made is not None and len(made.value) > 899_000:
        made = None
    try:
        due = Reader(PIPELINE, hasher).due(record)
    except Invalid:
        due = None
    assert (made is None) == (due is None)
    if made is None or due is None:
        return
    assert (due.topic.suffix, due.key, due.id) == (made.suffix, made.key, made.id)
    kind = PIPELINE.types["reading" if made.suffix == "facts" else "truth"]
    envelope = msgspec.json.decode(made.value, type=Envelope[kind])  # type: ignore[valid-type]
    assert due.content == hasher.envelope(envelope)


def test_of_bytes_that_were_shaken() -> None:
    """A thousand events with a few bytes changed: many are still JSON, some still events."""
    rng = random.Random(11)
    base = msgspec.json.encode(PLAIN)
    for _ in range(1_000):
        value = bytearray(base)
        for _ in range(rng.randrange(1, 4)):
            value[rng.randrange(len(value))] = rng.choice(b'0123456789"{}[]:,.-eTZ\\ \x00\xc3')
        agrees(event(bytes(value)))


def test_what_is_not_an_answer_stands_out() -> None:
    """One that reads an event as another would be found."""
    hasher = Hasher(PIPELINE)
    reader = Reader(PIPELINE, hasher)
    other = Envelope(
        id="r/1",
        type="reading",
        time=msgspec.convert("2026-01-05T08:00:00+01:00", type=__import__("datetime").datetime),
        key="s1",
        data=Reading(sensor="s1", number="n1", level=4.6, kind="a"),
    )
    assert reader.due(event(PLAIN)).content != hasher.envelope(other)


@pytest.mark.parametrize("seed", range(20))
def test_the_window_forgets_as_ingest_does(seed: int) -> None:
    rng = random.Random(seed)
    dedupe = Dedupe(window=timedelta(milliseconds=rng.choice([5, 50, 500])), ids=rng.choice([3, 10, 1_000]))
    window, recent = Window(dedupe), RecentIds(dedupe)
    at = 0
    for _ in range(2_000):
        at += rng.choice([0, 0, 1, 3, -2, 20])  # append times step back when another broker leads
        id = f"i{rng.randrange(30)}"
        assert window.repeats(id, at) is recent.seen(id, at)
