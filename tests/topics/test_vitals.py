"""Vitals come out of their records as they went in, in few records that none is too large."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from riverkeeper.topics.messages import Sketch, Vitals
from riverkeeper.topics.vitals import MODELS, MOST_BYTES, pack, unpack


def vitals(model: str, bins: int = 0) -> Vitals:
    sketch = Sketch(count=bins, bins={f"={n:040}": n for n in range(bins)})
    return Vitals(agent="score", replica="r", model=model, from_ms=1, to_ms=2, sketch=sketch)


def test_those_of_models_share_a_record_and_the_pipelines_have_their_own() -> None:
    told = [vitals("a"), vitals(""), vitals("b"), vitals("")]
    records = pack(told)
    assert [key for key, _ in records] == [b"", b"", MODELS]
    assert [each for _, value in records for each in unpack(value)] == [told[1], told[3], told[0], told[2]]


def test_no_record_is_too_large() -> None:
    told = [vitals(f"m{n}", bins=100) for n in range(200)]
    records = pack(told)
    assert 1 < len(records) < 20
    assert all(len(value) < MOST_BYTES + 10_000 for _, value in records)
    assert [each for _, value in records for each in unpack(value)] == told


def test_nothing_to_tell_is_no_record() -> None:
    assert pack([]) == []


@pytest.mark.parametrize("value", [b"", b"[", b"[1]", b"{}", b"\xff", b'[{"agent":"score"}]'])
def test_what_is_no_vitals_is_refused(value: bytes) -> None:
    with pytest.raises(ValidationError):
        unpack(value)
