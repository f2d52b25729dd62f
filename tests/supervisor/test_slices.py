"""A model is barred from the slice that it is worse on, from no other, and given it back once it is no longer worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from riverkeeper.models.routing import MAX_BARRED, Barred, Route
from riverkeeper.supervisor.lifecycle import HEALING
from riverkeeper.supervisor.policies import QUALITY, Finding, Health, Limits
from riverkeeper.supervisor.policies.quality import Difference, Memories
from riverkeeper.supervisor.slices import mend
from riverkeeper.topics.messages import SUPERVISOR, State

LIMITS = Limits(min_dwell_ms=1_000, probation_examples=200)
ROUTE = Route("line", State.LIVE, line=3, restore=2, offset=7)
WORSE = Finding(QUALITY, "worse where zone=a", 5, {"examples": 300.0}, slice="zone=a")
HELD = replace(ROUTE, barred={"zone=a": Barred(10_000, SUPERVISOR, "line-8")}, offset=8)


def health(calm: Mapping[str, float] | None = None) -> Health:
    slices = {name: Difference(calm=n) for name, n in (calm or {}).items()}
    return Health(model="line", memory={QUALITY: Memories(slices=slices)})


def test_it_is_barred_from_what_it_is_worse_on() -> None:
    verdict = mend(ROUTE, health(), [WORSE], LIMITS, 20)
    assert verdict is not None
    assert (verdict.state, verdict.slice, verdict.policy) == (State.QUARANTINED, "zone=a", QUALITY)
    assert (verdict.follows, verdict.line, verdict.restore, verdict.incident) == (7, 3, 2, "line-8")
    assert verdict.evidence == {"examples": 300.0, "onset_ms": 5.0}


def test_a_finding_on_no_slice_bars_nothing() -> None:
    assert mend(ROUTE, health(), [replace(WORSE, slice="")], LIMITS, 20) is None


def test_only_what_serves_is_barred() -> None:
    for state in (State.SHADOW, State.CANARY, State.QUARANTINED, State.PROBATION):
        assert mend(replace(ROUTE, state=state), health(), [WORSE], LIMITS, 20) is None


def test_there_are_no_more_than_readers_obey() -> None:
    full = {f"zone={n}": Barred(0, "kim", "") for n in range(MAX_BARRED)}
    assert mend(replace(ROUTE, barred=full), health(), [WORSE], LIMITS, 20) is None


def test_it_is_given_back_after_enough_examples_that_were_not_worse() -> None:
    verdict = mend(HELD, health({"zone=a": 200.0}), [], LIMITS, 11_000)
    assert verdict is not None
    assert (verdict.state, verdict.slice, verdict.policy) == (State.LIVE, "zone=a", HEALING)
    assert verdict.incident == "line-8"


def test_it_waits_for_them() -> None:
    assert mend(HELD, health({"zone=a": 199.0}), [], LIMITS, 11_000) is None
    assert mend(HELD, health({"zone=b": 900.0}), [], LIMITS, 11_000) is None
    assert mend(HELD, health({"zone=a": 900.0}), [WORSE], LIMITS, 11_000) is None
    assert mend(HELD, health({"zone=a": 900.0}), [], LIMITS, 10_999) is None


def test_what_an_operator_barred_waits_for_an_operator() -> None:
    by_hand = replace(HELD, barred={"zone=a": Barred(0, "kim", "line-8")})
    assert mend(by_hand, health({"zone=a": 900.0}), [], LIMITS, 99_000) is None
