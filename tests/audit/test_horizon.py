"""What was not read is not judged: neither retention nor a start in the middle makes a finding."""

from __future__ import annotations

import pytest

from riverkeeper.audit.reading import ENDS
from riverkeeper.audit.report import Topic
from tests.audit.tape import Rec, Tape, shown

DATA = (Topic.EVENTS, Topic.FACTS, Topic.OUTCOMES, Topic.PREDICTIONS, Topic.EXAMPLES, Topic.DEAD)


@pytest.mark.parametrize("topic", DATA, ids=lambda topic: topic.suffix)
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_retention_took_the_beginning_of_a_topic(tape: Tape, topic: Topic, share: float) -> None:
    begins = {
        (topic, p): records[int(share * (len(records) - 1))].offset + (share == 1.0)
        for p, records in enumerate(tape.topics[topic])
        if records
    }
    notes = tape.audited(begins=begins)
    assert not notes.findings, shown(notes.findings)
    assert not notes.pending


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_started_in_the_middle(tape: Tape, at: float) -> None:
    times = sorted(r.timestamp for r in tape.all(Topic.EVENTS))
    moment = times[int(at * len(times))]
    begins = {
        (topic, p): next((r.offset for r in records if r.timestamp >= moment), tape.end(topic, p))
        for topic in DATA
        for p, records in enumerate(tape.topics[topic])
    }
    notes = tape.audited(begins={place: begin for place, begin in begins.items() if begin})
    assert not notes.findings, shown(notes.findings)


@pytest.mark.parametrize("topics", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_system_at_work(tape: Tape, topics: int, share: float) -> None:
    """Ends are taken from causes to effects. What came after one's end has effects that are read, and are of
    no concern; what came before and has none yet is pending."""
    cut = tape.copy()
    times = sorted(r.timestamp for r in tape.all(Topic.EVENTS))
    moment = times[int(share * len(times))]
    for topic in ENDS[:topics]:
        cut.topics[topic] = [[r for r in part if r.timestamp < moment] for part in tape.topics[topic]]
    cut.positions = {}
    early = {
        (Topic.EXAMPLES, p): end_before(records, moment)
        for p, records in enumerate(tape.topics[Topic.EXAMPLES])
    }
    notes = cut.audited(final=tape, early=early)
    assert not notes.findings, shown(notes.findings)


def end_before(records: list[Rec], moment: int) -> int:
    return max((r.offset + 1 for r in records if r.timestamp < moment), default=0)
