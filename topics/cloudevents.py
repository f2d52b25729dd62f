"""CloudEvents 1.0 as Kafka records, structured and binary mode.

Source: CloudEvents Kafka Protocol Binding 1.0.2, sections 3.2 (binary) and 3.3 (structured).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from .messages import BadRecord, ErrorCode

STRUCTURED = b"application/cloudevents+json"
STRUCTURED_ANY = b"application/cloudevents"
REQUIRED = ("id", "source", "specversion", "type")
MAX_DEPTH = 128  # levels; orjson reads 1 024, and to write those again exceeds Python's recursion limit


class Event(NamedTuple):
    """An event's attributes and payload, before any of it is checked against declared types."""

    id: Any
    type: Any
    time: Any
    data: Any


def loads(value: bytes) -> Any:
    """Strict JSON: valid UTF-8, no NaN, no infinity, bounded depth. Raises BadRecord."""
    try:
        loaded = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        code = ErrorCode.TOO_DEEP if "depth limit" in str(error) else ErrorCode.NOT_JSON
        raise BadRecord(code, str(error)) from error
    # Most events are one object and nothing in it; nearly all have fewer brackets than that in all.
    if b"[" not in value and value.find(b"{", value.find(b"{") + 1) < 0:
        return loaded
    if value.count(b"[") + value.count(b"{") > MAX_DEPTH and _too_deep(loaded):
        raise BadRecord(ErrorCode.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")
    return loaded


def _too_deep(loaded: Any) -> bool:
    level = [loaded]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
    return any(isinstance(node, dict | list) for node in level)


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list):
        yield from node


def decode(headers: Sequence[tuple[str, bytes]], value: bytes) -> Event | None:
    """The CloudEvent in a record, or None if the record is not one. Raises BadRecord."""
    if not headers:
        return None
    # A header's value may be null, whatever aiokafka's types say.
    named = {name.lower(): content or b"" for name, content in headers}
    content_type = named.get("content-type", b"").lower()
    if content_type.startswith(STRUCTURED_ANY):
        return _structured(content_type, value)
    if "ce_specversion" in named:
        return _binary(named, value)
    return None


def _structured(content_type: bytes, value: bytes) -> Event:
    if not content_type.startswith(STRUCTURED):
        raise BadRecord(
            ErrorCode.BAD_CLOUDEVENT, f"content-type {content_type!r}: only the JSON format is read"
        )
    attributes = loads(value)
    if not isinstance(attributes, dict):
        raise BadRecord(ErrorCode.BAD_CLOUDEVENT, "a structured event is a JSON object")
    _require(attributes)
    return Event(attributes["id"], attributes["type"], attributes.get("time"), _data(attributes))


def _data(attributes: dict[str, Any]) -> Any:
    if "data" in attributes:
        return attributes["data"]
    try:
        return loads(base64.b64decode(attributes["data_base64"], validate=True))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise BadRecord(ErrorCode.BAD_CLOUDEVENT, "neither data nor readable data_base64") from error


def _binary(headers: dict[str, bytes], value: bytes) -> Event:
    try:
        attributes = {
            name.removeprefix("ce_"): content.decode()
            for name, content in headers.items()
            if name.startswith("ce_")
        }
    except UnicodeDecodeError as error:
        raise BadRecord(ErrorCode.BAD_CLOUDEVENT, "an attribute is not UTF-8") from error
    _require(attributes)
    return Event(attributes["id"], attributes["type"], attributes.get("time"), loads(value))


def _require(attributes: dict[str, Any]) -> None:
    missing = [name for name in REQUIRED if not attributes.get(name)]
    if missing:
        raise BadRecord(ErrorCode.BAD_CLOUDEVENT, f"attribute {missing[0]!r} is missing")
    if attributes["specversion"] != "1.0":
        raise BadRecord(ErrorCode.BAD_CLOUDEVENT, f"specversion {attributes['specversion']!r} is not 1.0")
