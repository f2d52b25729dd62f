"""docs/judgement.md shows what its tool measures today, and a stream without drift has no model taken out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.judgement import drifts
from tests.judgement.detectors import judged, measured
from tests.judgement.streams import ONSET, STREAMS, TWINS

DOCS = Path(__file__).parents[2] / "docs"
BY_NAME = {each.name: each for each in (*STREAMS, *TWINS)}


def test_the_page_shows_the_record() -> None:
    runs = drifts.read()
    planned = drifts.plan(max(run.seed for run in runs if run.onset is not None))
    assert [(run.stream, run.seed) for run in runs] == [(stream.name, seed) for stream, seed in planned]
    assert drifts.table(runs) in (DOCS / "judgement.md").read_text()
    for name, drawing in drifts.drawings(runs).items():
        assert (DOCS / name).read_text() == str(drawing)


def test_a_run_is_the_recorded_one() -> None:
    recorded = next(run for run in drifts.read() if (run.stream, run.seed) == drifts.SHOWN)
    assert recorded.ours and recorded.alarms["ADWIN"]
    assert measured(BY_NAME[recorded.stream], recorded.seed) == recorded


@pytest.mark.parametrize("name", ["Bananas", "Friedman"])
def test_a_clean_stream_is_left_alone(name: str) -> None:
    stream = BY_NAME[name]
    assert [each for each in judged(stream, stream.rows(21, ONSET)) if each.grave] == []


@pytest.mark.parametrize("change", ["features moved", "classes renamed"])
def test_rows_are_the_twins_until_the_drift(change: str) -> None:
    drifting, clean = BY_NAME[f"Bananas, {change}"].rows(5), BY_NAME["Bananas"].rows(5)
    assert drifting[:ONSET] == clean[:ONSET]
    changed = [d != c for d, c in zip(drifting[ONSET:], clean[ONSET:], strict=True)]
    assert sum(changed) > 0.99 * len(changed)  # of some bananas both features are alike
