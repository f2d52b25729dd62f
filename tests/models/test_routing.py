"""While an operator holds the supervisor, its verdicts count for nobody; an operator's do. A verdict on a slice bars
that slice, and leaves all else as it is.
"""

from __future__ import annotations

from riverkeeper.models.routing import MAX_BARRED, Barred, Hold, Routing
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


def of_slice(name: str, follows: int, state: State = State.QUARANTINED, by: str = SUPERVISOR) -> Verdict:
    said = verdict(state, follows=follows, by=by)
    return said.model_copy(update={"slice": name, "line": 9, "restore": 8, "incident": "m-1"})


def test_a_verdict_on_a_slice_leaves_state_and_line_as_they_are() -> None:
    before, route = after().routes["m"], after(of_slice("zone=a", -1)).routes["m"]
    assert route.barred == {"zone=a": Barred(7, SUPERVISOR, "m-1")}
    assert (route.state, route.line, route.restore, route.offset) == (
        State.LIVE,
        before.line,
        before.restore,
        0,
    )


def test_slices_are_given_back_one_by_one() -> None:
    both = [of_slice("zone=a", -1), of_slice("zone=b", 0)]
    assert after(*both).routes["m"].barred.keys() == {"zone=a", "zone=b"}
    assert after(*both, of_slice("zone=a", 1, State.LIVE)).routes["m"].barred.keys() == {"zone=b"}


def test_they_stay_barred_while_the_model_is_out_and_back() -> None:
    out, back = verdict(State.QUARANTINED, follows=0), verdict(State.LIVE, follows=1)
    assert after(of_slice("zone=a", -1), out, back).routes["m"].barred.keys() == {"zone=a"}


def test_one_that_follows_another_verdict_is_ignored() -> None:
    assert not after(of_slice("zone=a", 5)).routes["m"].barred


def test_there_is_room_for_some() -> None:
    full = after(*(of_slice(f"zone={n}", n - 1) for n in range(MAX_BARRED + 1)))
    assert len(full.routes["m"].barred) == MAX_BARRED and full.ignored == 1
    assert full.routes["m"].offset == MAX_BARRED - 1
