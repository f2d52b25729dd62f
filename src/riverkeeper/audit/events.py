"""What an event should have become, read from its own bytes.

Written after the contract in docs/design.md and not after ingest's code, which it checks.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
import orjson

from ..models.pipeline import Dedupe, Pipeline
from ..topics.log import MAX_RECORD_BYTES, Record, record_bytes
from ..topics.messages import Envelope
from ..topics.store import ORIGIN_ROOM
from .report import Topic

DEPTH = 128  # levels of brackets that an event may have
KEY_BYTES = 1_024  # of a field that places a record
ID_CHARS = 512
FIRST = datetime(1970, 1, 1, tzinfo=UTC)
PAST_LAST = datetime(2200, 1, 1, tzinfo=UTC)


class Invalid(Exception):
    """A dead letter is due."""


class Due(NamedTuple):
    """The fact or the outcome that an event must become."""

    topic: Topic
    key: bytes
    id: str
    content: int  # of the whole
    extra: int  # a fact's: of id, join field and time; an outcome's: of its key


class Hasher:
    """The hashes by which records are compared. 64 bits; -1 and -2, whose hashes are equal, never stand alone."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._join = pipeline.join

    def envelope(self, envelope: Envelope[Any]) -> int:
        return hash(self._encode(envelope))

    def lineage(self, id: str, join: str, time: datetime) -> int:
        return hash((id, join, time))

    def fact(self, envelope: Envelope[Any]) -> int:
        """What a prediction must repeat of it."""
        return self.lineage(envelope.id, str(getattr(envelope.data, self._join)), envelope.time)

    def json(self, value: object) -> int:
        return hash(self._encode(value))


def letter(key: bytes | None, value: bytes | None, whole: bytes | None = None) -> int:
    """Of the bytes that a dead letter keeps; `whole` is the hex SHA-256 of a value that was cut."""
    return hash((key, whole.decode(errors="replace") if whole else sha256(value or b"").hexdigest()))


def with_headers(content: int, headers: Sequence[tuple[str, bytes]]) -> int:
    return hash((content, tuple((name, value) for name, value in headers)))


class Reader:
    """From a record of `events` to what is due. Pure."""

    def __init__(self, pipeline: Pipeline, hasher: Hasher) -> None:
        self._pipeline = pipeline
        self._hash = hasher
        self._encode = msgspec.json.Encoder().encode

    def due(self, record: Record) -> Due:
        """Raises Invalid."""
        if record.key is None and self._pipeline.dedupe is not None:
            raise Invalid
        value = record.value or b""
        if len(value) > MAX_RECORD_BYTES:
            raise Invalid
        id, type_, time, data = self._attributes(record.headers, value)
        declared = self._pipeline.types.get(type_) if isinstance(type_, str) else None
        if declared is None:
            raise Invalid
        try:
            payload = msgspec.convert(data, declared)
        except msgspec.ValidationError as error:
            raise Invalid from error
        is_fact = declared is self._pipeline.facts
        join = _placing(payload, self._pipeline.join)
        key = _placing(payload, self._pipeline.key) if is_fact else join
        envelope = Envelope(
            id=_id(id),
            type=type_,
            time=_time(record.timestamp if time is None else time),
            key=key,
            data=payload,
        )
        encoded = self._encode(envelope)
        if record_bytes(key.encode(), encoded, ORIGIN_ROOM) > MAX_RECORD_BYTES:
            raise Invalid
        extra = self._hash.lineage(envelope.id, join, envelope.time) if is_fact else hash(key)
        topic = Topic.FACTS if is_fact else Topic.OUTCOMES
        return Due(topic, key.encode(), envelope.id, hash(encoded), extra)

    def _attributes(self, headers: Sequence[tuple[str, bytes]], value: bytes) -> tuple[Any, Any, Any, Any]:
        """Id, type, time and payload. A time of None: none was given, and none was needed."""
        named = {name.lower(): content or b"" for name, content in headers} if headers else {}
        kind = named.get("content-type", b"").lower()
        if kind.startswith(b"application/cloudevents"):
            return _structured(kind, value)
        if "ce_specversion" in named:
            return _binary(named, value)
        data = _loads(value)
        fields = self._pipeline.event
        if not isinstance(data, dict) or any(
            data.get(name) is None for name in (fields.id, fields.type, fields.time)
        ):
            raise Invalid
        return data[fields.id], data[fields.type], data[fields.time], data


def _loads(value: bytes) -> Any:
    try:
        loaded = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Invalid from error
    if value.count(b"[") + value.count(b"{") > DEPTH and _depth(loaded) > DEPTH:
        raise Invalid
    return loaded


def _depth(loaded: Any) -> int:
    depth, level = 0, [loaded]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth


def _structured(kind: bytes, value: bytes) -> tuple[Any, Any, Any, Any]:
    event = _loads(value)
    if not kind.startswith(b"application/cloudevents+json") or not isinstance(event, dict):
        raise Invalid
    _complete(event)
    if "data" in event:
        data = event["data"]
    else:
        try:
            data = _loads(base64.b64decode(event["data_base64"], validate=True))
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid from error
    return event["id"], event["type"], event.get("time"), data


def _binary(headers: dict[str, bytes], value: bytes) -> tuple[Any, Any, Any, Any]:
    try:
        event = {name[3:]: content.decode() for name, content in headers.items() if name.startswith("ce_")}
    except UnicodeDecodeError as error:
        raise Invalid from error
    _complete(event)
    return event["id"], event["type"], event.get("time"), _loads(value)


def _complete(event: dict[str, Any]) -> None:
    if event.get("specversion") != "1.0" or not all(event.get(n) for n in ("id", "source", "type")):
        raise Invalid


def _placing(payload: Any, name: str) -> str:
    value = getattr(payload, name)
    if value is None:
        raise Invalid
    text = str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Invalid from error
    if size > KEY_BYTES:
        raise Invalid
    return text


def _id(id: Any) -> str:
    text = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
    if not isinstance(text, str) or not 0 < len(text) <= ID_CHARS:
        raise Invalid
    return text


def _time(time: Any) -> datetime:
    try:
        if isinstance(time, int) and not isinstance(time, bool):
            parsed = FIRST + timedelta(milliseconds=time)
        else:
            parsed = msgspec.convert(time, datetime)
    except (msgspec.ValidationError, OverflowError) as error:
        raise Invalid from error
    if parsed.tzinfo is None or not FIRST <= parsed < PAST_LAST:
        raise Invalid
    return parsed


class Window:
    """Which ids came before, as declared: by append time and by number. Holds hashes of one partition's ids."""

    def __init__(self, dedupe: Dedupe) -> None:
        self.ms = int(dedupe.window / timedelta(milliseconds=1))
        self._limit = dedupe.ids
        self._ids: OrderedDict[int, int] = OrderedDict()  # by the time they were last new
        self._clock = 0  # append time of the newest id, ms

    def repeats(self, id: str, at: int) -> bool:
        """Whether the id is known; else it is from now on."""
        name, ids = hash(id), self._ids
        at = max(at, self._clock)
        known = ids.get(name)
        if known is not None and known >= at - self.ms:
            return True
        while ids and next(iter(ids.values())) < at - self.ms:
            ids.popitem(last=False)
        ids[name] = self._clock = at
        if len(ids) > self._limit:
            ids.popitem(last=False)
        return False
