"""A model's answer is held against the verdicts it knew, and those that it had the time to know."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from riverkeeper.audit.obedience import Verdicts
from riverkeeper.audit.report import Notebook
from riverkeeper.topics.messages import Prediction, Source, State, Verdict
from tests.audit.tape import Rec
from tests.models.test_serving import pipeline
from tests.system.pipelines import gauges

PIPELINE = gauges("gauges")
WITHIN = 2_000


def verdicts(*rulings: tuple[int, State, int, int]) -> Verdicts:
    """Each (append time in ms, state, line, the offset that it follows), at offsets 0, 1, …"""
    read = Verdicts(PIPELINE, WITHIN)
    for offset, (at, state, line, follows) in enumerate(rulings):
        verdict = Verdict(
            model="line", state=state, follows=follows, line=line, policy="operator", reason="", at_ms=at
        )
        read.read(Rec("gauges.verdicts", 0, offset, at, b"line", verdict.encode(), ()), Notebook("gauges"))
    return read


def said(verdict: int, source: Source = Source.MODEL) -> Prediction:
    return Prediction(
        id="r",
        key="n",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        value=1.0,
        source=source,
        reason="" if source is Source.MODEL else "warming",
        asked="line",
        model="line",
        version=3,
        fingerprint="",
        fact="",
        verdict=verdict,
        baseline=None,
        features={},
    )


OUT = (10_000, State.QUARANTINED, 1, -1)


@pytest.mark.parametrize(
    ("at", "known", "obeys"),
    [
        (9_999, -1, True),
        (12_000 - 1, -1, True),
        (12_000, -1, False),
        (60_000, -1, False),
        (10_001, 0, False),
    ],
)
def test_quarantine(at: int, known: int, obeys: bool) -> None:
    assert (verdicts(OUT).disobeyed(said(known), at, 0) == "") is obeys


def test_before_any_verdict_the_declaration_rules_which_may_have_changed() -> None:
    assert verdicts().disobeyed(said(-1), 10**9, 0) == ""


def test_a_verdict_that_follows_another_is_ignored() -> None:
    ignored = verdicts((1_000, State.QUARANTINED, 1, 5))
    assert ignored.disobeyed(said(0), 60_000, 0) == ""


def test_a_supervisors_verdict_behind_a_hold_is_ignored() -> None:
    read = Verdicts(PIPELINE, WITHIN)
    hold = Verdict(
        model="", state=State.QUARANTINED, follows=-1, policy="operator", reason="", by="kim", at_ms=1_000
    )
    out = hold.model_copy(update={"model": "line", "by": "supervisor"})
    for offset, each in enumerate((hold, out)):
        record = Rec("gauges.verdicts", 0, offset, 1_000, b"line", each.encode(), ())
        read.read(record, Notebook("gauges"))
    assert read.disobeyed(said(1), 60_000, 0) == ""


def test_readmitted() -> None:
    known = verdicts(OUT, (20_000, State.LIVE, 1, 0))
    assert known.disobeyed(said(1), 20_001, 1) == ""
    assert known.disobeyed(said(-1), 21_000, 1) == "", "between the two it may have been live again"
    assert known.disobeyed(said(-1), 19_999, 1) != ""


def test_only_versions_of_the_line_in_force() -> None:
    known = verdicts(OUT, (20_000, State.LIVE, 1, 0))
    assert "line" in known.disobeyed(said(1), 20_001, 0)
    assert "line" in known.disobeyed(said(-1), 23_000, 0)


@pytest.mark.parametrize(
    ("state", "asked"), [(State.PROBATION, True), (State.SHADOW, True), (State.DESTROYED, False)]
)
def test_what_may_stand_in(state: State, asked: bool) -> None:
    """A fallback is asked without traffic of its own, as long as it is asked at all."""
    known = verdicts((10_000, state, 0, -1))
    assert (known.disobeyed(said(0, Source.FALLBACK), 10_001, 0) == "") is asked
    assert known.disobeyed(said(0), 10_001, 0) != ""


def barring(read: Verdicts, offset: int, at: int, state: State, name: str = "zone=west") -> None:
    verdict = Verdict(
        model="main", state=state, slice=name, follows=offset - 1, policy="quality", reason="", at_ms=at
    )
    read.read(Rec("gauges.verdicts", 0, offset, at, b"line", verdict.encode(), ()), Notebook("gauges"))


@pytest.mark.parametrize(
    ("at", "known", "zone", "obeys"),
    [
        (11_999, -1, "west", True),
        (12_000, -1, "west", False),
        (60_000, -1, "east", True),
        (10_001, 0, "west", False),
        (10_001, 0, "east", True),
        (120_000, 1, "west", True),
        (120_000, 0, "west", False),
    ],
)
def test_a_model_is_barred_from_one_slice(at: int, known: int, zone: str, obeys: bool) -> None:
    read = Verdicts(pipeline(features=["x", "zone"], slices=["zone"]), WITHIN)
    barring(read, 0, 10_000, State.QUARANTINED)
    barring(read, 1, 100_000, State.LIVE)
    shown = replace(said(known), model="main", features={"zone": zone})
    assert (read.disobeyed(shown, at, 0) == "") is obeys
    assert read.disobeyed(replace(shown, source=Source.FALLBACK), at, 0) == ""
