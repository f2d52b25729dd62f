"""CloudEvents are read as their Kafka protocol binding 1.0.2 has them; what is none is left to others."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper.topics.cloudevents import Event, decode, loads
from riverkeeper.topics.messages import BadRecord, ErrorCode

ATTRIBUTES = {"specversion": "1.0", "id": "e1", "source": "/gates", "type": "departure"}
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
TIME = "2013-01-01T05:17:00Z"


def structured(**attributes: Any) -> bytes:
    return json.dumps({**ATTRIBUTES, **attributes}).encode()


def binary(attributes: Mapping[str, str], content_type: str = "application/json") -> list[tuple[str, bytes]]:
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    return [("content-type", content_type.encode()), *headers]


def refused(headers: list[tuple[str, bytes]], value: bytes) -> ErrorCode:
    with pytest.raises(BadRecord) as caught:
        decode(headers, value)
    return caught.value.code


def test_structured() -> None:
    event = decode(STRUCTURED, structured(time=TIME, data={"delay": 3}))
    assert event == Event("e1", "departure", TIME, {"delay": 3})


def test_structured_with_base64() -> None:
    data = base64.b64encode(b'{"delay": 3}').decode()
    assert decode(STRUCTURED, structured(data_base64=data)) == Event("e1", "departure", None, {"delay": 3})


def test_binary() -> None:
    event = decode(binary({**ATTRIBUTES, "time": TIME, "extension": "x"}), b'{"delay": 3}')
    assert event == Event("e1", "departure", TIME, {"delay": 3})


def test_binary_attributes_are_utf8_as_they_stand() -> None:
    """The Kafka binding, unlike that of HTTP, encodes nothing by percent signs."""
    event = decode(binary({**ATTRIBUTES, "id": "Zürich %41"}), b"{}")
    assert event is not None and event.id == "Zürich %41"


def test_header_names_differ_only_by_more_than_case() -> None:
    headers = [("Content-Type", b"Application/CloudEvents+JSON")]
    assert decode(headers, structured(data=1)) == Event("e1", "departure", None, 1)


@pytest.mark.parametrize("headers", [[], [("content-type", b"application/json")], [("trace", b"1")]])
def test_a_plain_record_is_no_cloudevent(headers: list[tuple[str, bytes]]) -> None:
    assert decode(headers, structured(data=1)) is None


@pytest.mark.parametrize("headers", [[("content-type", None)], [("trace", None)]])
def test_a_header_without_a_value_is_a_header(headers: list[tuple[str, Any]]) -> None:
    """Kafka allows null there, and hands it on."""
    assert decode(headers, b"{}") is None


def test_an_attribute_without_a_value_is_missing() -> None:
    headers: list[tuple[str, Any]] = [*binary(ATTRIBUTES)[:-1], ("ce_type", None)]
    assert refused(headers, b"{}") == ErrorCode.BAD_CLOUDEVENT


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_required_attribute_is_required(name: str) -> None:
    left = {k: v for k, v in ATTRIBUTES.items() if k != name}
    assert refused(STRUCTURED, json.dumps({**left, "data": 1}).encode()) == ErrorCode.BAD_CLOUDEVENT
    assert refused(STRUCTURED, structured(data=1, **{name: None})) == ErrorCode.BAD_CLOUDEVENT
    if name != "specversion":  # without it, it is no CloudEvent in binary mode
        assert refused(binary(left), b"{}") == ErrorCode.BAD_CLOUDEVENT


@pytest.mark.parametrize(
    "value",
    [
        b"[]",
        b'"text"',
        structured(specversion="0.3", data=1),
        structured(),
        structured(data_base64="no base64!"),
        structured(data_base64="ümlaut"),
        structured(data_base64=7),
    ],
)
def test_a_bad_structured_event(value: bytes) -> None:
    assert refused(STRUCTURED, value) == ErrorCode.BAD_CLOUDEVENT


def test_a_format_that_is_not_json_is_refused_and_not_guessed_at() -> None:
    for kind in (b"application/cloudevents+avro", b"application/cloudevents-batch+json"):
        assert refused([("content-type", kind)], structured(data=1)) == ErrorCode.BAD_CLOUDEVENT


def test_a_bad_binary_event() -> None:
    assert refused(binary({**ATTRIBUTES, "specversion": "0.3"}), b"{}") == ErrorCode.BAD_CLOUDEVENT
    headers = [*binary(ATTRIBUTES), ("ce_extension", b"\xff")]
    assert refused(headers, b"{}") == ErrorCode.BAD_CLOUDEVENT
    assert refused(binary(ATTRIBUTES, "application/avro"), b"\x00\x01") == ErrorCode.NOT_JSON


def test_data_that_is_not_json() -> None:
    assert refused(STRUCTURED, b"{") == ErrorCode.NOT_JSON
    junk = base64.b64encode(b"\xff\xfe").decode()
    assert refused(STRUCTURED, structured(data_base64=junk)) == ErrorCode.NOT_JSON


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_bad_record(junk: bytes) -> None:
    for headers in (STRUCTURED, binary(ATTRIBUTES)):
        try:
            decode(headers, junk)
        except BadRecord:
            pass


@pytest.mark.parametrize("depth", [200, 990, 1020, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded_well_below_what_python_can_recurse(
    depth: int, opening: bytes, closing: bytes
) -> None:
    with pytest.raises(BadRecord) as caught:
        loads(opening * depth + b"1" + closing * depth)
    assert caught.value.code == ErrorCode.TOO_DEEP


def test_many_brackets_are_not_depth() -> None:
    flat = b"[" + b",".join([b'{"a":["[[[["]}'] * 1_000) + b"]"
    assert len(loads(flat)) == 1_000
