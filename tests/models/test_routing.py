"""While an operator holds the supervisor, its verdicts count for nobody; an operator's do."""

from __future__ import annotations

from riverkeeper.models.routing import Hold, Routing
from riverkeeper.topics.messages import SUPERVISOR, State, Verdict


def verdict(state: State, *, model: str = "m", follows: int = -1, by: str = SUPERVISOR) -> Verdict:
    return Verdict(model=model, state=state, follows=follows, policy="p", reason="why", by=by, at_ms=7)


def after(*verdicts: Verdict) -> Routing:
    routing = Routing.declared(["m", "n"], ["m"])
    for offset, each in enumerate(verdicts):
        routing = routing.obey(offset, each)
    return routing


HOLD = verdict(State.QUARANTINED, model="", by="kim")
RELEASE = verdict(State.LIVE, model="", by="kim")
OUT = verdict(State.QUARANTINED)


def test_what_comes_behind_a_hold_is_ignored() -> None:
    held = after(HOLD, OUT)
    assert held.hold == Hold("why", "kim", 7)
    assert held.routes["m"].state is State.LIVE and held.ignored == 1 and held.offset == 1


def test_what_came_before_it_stays() -> None:
    assert after(OUT, HOLD).routes["m"].state is State.QUARANTINED


def test_an_operator_is_obeyed_meanwhile() -> None:
    by_hand = verdict(State.QUARANTINED, by="kim")
    assert after(HOLD, by_hand).routes["m"].state is State.QUARANTINED


def test_after_the_release_supervisors_count_again_and_what_was_ignored_does_not() -> None:
    assert after(HOLD, OUT, RELEASE).routes["m"].state is State.LIVE
    assert after(HOLD, OUT, RELEASE, OUT).routes["m"].state is State.QUARANTINED
    assert after(HOLD, RELEASE).hold is None


def test_no_supervisor_holds_or_releases() -> None:
    assert after(verdict(State.QUARANTINED, model="")).hold is None
    assert after(HOLD, verdict(State.LIVE, model="")).hold is not None
