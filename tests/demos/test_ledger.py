"""The demo's account adds up exactly when the topics do, and names what does not."""

import json
from dataclasses import dataclass, field

import pytest

from riverkeeper.demos.ledger import Ledger, Place, origin, summed

BOUNDS = (-120.0, 1500.0)


@dataclass
class Line:
    """A record as the watcher reads it."""

    topic: str
    offset: int
    value: bytes
    key: bytes = b"JFK"
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    partition: int = 0
    timestamp: int = 1_000


class Log:
    """Writes topics the way the agents do, one record at a time, and feeds them to a ledger."""

    def __init__(self) -> None:
        self.ledger = Ledger("flights", ("learned", "baseline"), {"learned": 1.0}, BOUNDS)
        self._ends: dict[str, int] = {}

    def write(self, suffix: str, value: object, cause: str = "", key: bytes = b"JFK") -> str:
        """Returns where the record stands."""
        topic = f"flights.{suffix}"
        offset = self._ends.get(topic, 0)
        self._ends[topic] = offset + 1
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = [("origin", f"{cause}/0".encode())] if cause else []
        self.ledger.feed(Line(topic, offset, data, key, headers))
        return f"{topic}/0/{offset}"

    def event(self, ident: str) -> str:
        return self.write("events", {"id": ident, "type": "departure"})

    def prediction(self, fact: str, value: float = 3.0, source: str = "model") -> None:
        said = {"id": "x", "value": value, "source": source, "model": "learned", "version": 1}
        self.write("predictions", said, fact)

    def departure(self, ident: str) -> str:
        """An event, its fact and its prediction."""
        event = self.event(ident)
        self.prediction(self.write("facts", {}, event))
        return event

    def wrong(self) -> list[str]:
        return list(self.ledger.imbalances())


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_whole_day_adds_up(log: Log) -> None:
    log.departure("a")
    log.write("outcomes", {}, log.event("a/arrival"))
    log.write("dead", b"\xff", log.write("events", b"\xff"))
    log.event("a")
    assert log.wrong() == []
    assert log.ledger.unsettled == 0
    summary = log.ledger.summary(1.0)
    assert (summary.events, summary.facts, summary.outcomes, summary.dead, summary.duplicates) == (
        4,
        1,
        1,
        1,
        1,
    )
    assert summary.predictions == {"total": 1, "model": 1, "fallback": 0, "out_of_bounds": 0}


def test_order_across_topics_does_not_matter(log: Log) -> None:
    log.prediction("flights.facts/0/0")
    log.write("facts", {}, "flights.events/0/0")
    assert log.wrong() == [
        "1 effects name an event that is not there, first flights.events/0/0",
        "1 facts, outcomes, dead letters and duplicates of 0 events",
    ]
    log.event("a")
    assert log.wrong() == []


def test_a_lost_event_is_named(log: Log) -> None:
    log.departure("a")
    lost = log.event("b")
    assert log.wrong() == [f"1 events became neither fact, outcome nor dead letter, first {lost}"]
    assert log.ledger.unsettled == 1


def test_a_fact_without_a_prediction_is_named(log: Log) -> None:
    fact = log.write("facts", {}, log.event("a"))
    assert log.wrong() == [f"1 facts have no prediction, first {fact}"]


def test_a_prediction_without_a_fact_is_named(log: Log) -> None:
    log.prediction("flights.facts/0/7")
    assert log.wrong() == ["1 predictions name a fact that is not there, first flights.facts/0/7"]


def test_a_duplicate_that_became_a_fact_is_named(log: Log) -> None:
    """The sum would hide it if a repeat were counted by its id alone."""
    log.departure("a")
    log.departure("a")
    assert log.ledger.duplicates == 0
    assert log.ledger.facts == 2


def test_copies_of_one_cause_count_once(log: Log) -> None:
    event = log.event("a")
    fact = log.write("facts", {}, event)
    log.write("facts", {}, event)
    log.prediction(fact)
    log.prediction(fact, value=9e9)
    assert (log.ledger.facts, log.ledger.predictions, log.ledger.out_of_bounds) == (1, 1, 0)
    assert log.wrong() == []


@pytest.mark.parametrize("value", [1500.1, -120.1])
def test_a_served_answer_out_of_bounds_is_named(log: Log, value: float) -> None:
    log.prediction(log.write("facts", {}, log.event("a")), value=value)
    assert log.wrong() == ["1 served predictions lie out of bounds"]


def test_an_unreadable_fact_is_no_dead_event(log: Log) -> None:
    fact = log.write("facts", b"?", log.event("a"))
    log.write("dead", b"?", fact)
    assert log.ledger.dead == 0
    assert "1 records of our own topics were unreadable and are in dead letters" in log.wrong()


def test_errors_are_over_the_same_examples(log: Log) -> None:
    log.write("examples", {"label": 10.0, "served": 7.0, "baseline": 12.0})
    log.write("examples", {"label": 10.0, "served": 9.0, "baseline": 16.0})
    log.write("examples", {"label": 10.0, "served": 90.0, "baseline": None})
    assert (log.ledger.error, log.ledger.baseline) == (2.0, 4.0)
    assert log.ledger.summary(1.0).examples == 3


def test_versions_are_manifests_and_not_chunks(log: Log) -> None:
    manifest = {"model": "learned", "version": 1, "line": 0, "learned": 250}
    log.write("models", b"\x80", key=b"learned/1/abcd1234/0")
    log.write("models", manifest, key=b"learned/1")
    log.write("models", manifest, key=b"learned/1")
    assert log.ledger.summary(1.0).versions == 1
    assert log.ledger.models["learned"].learned == 250


def verdict(state: str, follows: int) -> dict[str, object]:
    return {
        "model": "learned",
        "state": state,
        "follows": follows,
        "policy": "bounds",
        "reason": "",
        "at_ms": 5,
    }


def test_a_verdict_that_follows_an_outdated_one_changes_nothing(log: Log) -> None:
    log.write("verdicts", verdict("quarantined", -1))
    log.write("verdicts", verdict("live", -1))
    assert log.ledger.models["learned"].state == "quarantined"
    assert [ruling.state for ruling in log.ledger.rulings] == ["quarantined"]
    log.write("verdicts", verdict("probation", 0))
    assert log.ledger.models["learned"].state == "probation"


def test_a_verdict_on_a_slice_leaves_the_model_where_it_is(log: Log) -> None:
    log.write("verdicts", {**verdict("quarantined", -1), "slice": "zone=a"})
    assert log.ledger.models["learned"].state == "live"
    log.write("verdicts", verdict("quarantined", 0))
    assert log.ledger.models["learned"].state == "quarantined"
    assert [ruling.state for ruling in log.ledger.rulings] == ["quarantined where zone=a", "quarantined"]


def test_the_newest_record_of_an_incident_counts(log: Log) -> None:
    steps = [{"state": "detected", "at_ms": 1_000}, {"state": "re-admitted", "at_ms": 2_500}]
    told = {"id": "learned-0", "model": "learned", "policy": "bounds"}
    log.write("incidents", {**told, "timeline": steps[:1], "resolved": False})
    assert [incident.id for incident in log.ledger.open_incidents()] == ["learned-0"]
    log.write("incidents", {**told, "timeline": steps, "resolved": True})
    assert log.ledger.open_incidents() == []
    assert log.ledger.summary(1.0).incidents == [
        {
            "model": "learned",
            "policy": "bounds",
            "timeline": [
                {"state": "detected", "at": "1970-01-01T00:00:01.000Z"},
                {"state": "re-admitted", "at": "1970-01-01T00:00:02.500Z"},
            ],
        }
    ]


def test_the_live_error_is_over_the_latest_examples(log: Log) -> None:
    def vitals(labelled: int, error: float) -> None:
        seen = {"labelled": labelled, "error": error * labelled, "baseline_error": 2.0 * labelled}
        log.write("vitals", {"agent": "learn", "model": "learned", **seen})

    vitals(600, 50.0)
    assert log.ledger.models["learned"].error == 50.0
    vitals(600, 1.0)
    vitals(600, 3.0)
    assert log.ledger.models["learned"].error == 2.0
    assert log.ledger.models["learned"].baseline == 2.0


def test_a_cause_may_stand_on_a_topic_with_slashes_nowhere_else() -> None:
    line = Line("flights.facts", 0, b"", headers=[("code", b"x"), ("origin", b"flights.events/3/12/1")])
    assert origin(line) == (Place("flights.events", 3, 12), 1)
    with pytest.raises(ValueError, match="flights.facts/0/0 names no origin"):
        origin(Line("flights.facts", 0, b""))


def test_verdicts_of_a_held_supervisor_do_not_count(log: Log) -> None:
    ann = {"by": "operator ann"}
    log.write("verdicts", {**verdict("quarantined", -1), **ann, "model": ""})
    log.write("verdicts", verdict("quarantined", -1))
    assert (log.ledger.held, log.ledger.models["learned"].state) == (True, "live")
    log.write("verdicts", {**verdict("probation", -1), **ann})
    assert log.ledger.models["learned"].state == "probation"
    log.write("verdicts", {**verdict("live", -1), **ann, "model": ""})
    log.write("verdicts", verdict("live", 2))
    assert (log.ledger.held, log.ledger.models["learned"].state) == (False, "live")


def test_accounts_of_several_pipelines_are_summed(log: Log) -> None:
    log.departure("a")
    other = Log()
    other.departure("b")
    other.departure("c")
    both = summed([log.ledger, other.ledger], 2.0)
    assert (both.events, both.facts, both.predictions["total"], both.seconds) == (3, 3, 3, 2.0)
    assert both.error == {"metric": "MAE", "served": None, "baseline": None}
