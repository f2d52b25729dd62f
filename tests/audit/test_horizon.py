"""What was not read is not judged: neither retention nor a start in the middle makes a finding."""

from __future__ import annotations

import pytest

from riverkeeper.audit.report import Topic
from tests.audit.tape import Tape, shown

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


def test_a_topic_ends_where_it_was_when_the_audit_began(tape: Tape) -> None:
    """Causes that came later are of no concern, and neither are their effects."""
    for topic in (Topic.EVENTS, Topic.FACTS, Topic.OUTCOMES, Topic.PREDICTIONS):
        cut = tape.copy()
        for p, records in enumerate(cut.topics[topic]):
            cut.topics[topic][p] = records[: len(records) // 2]
        notes = cut.audited(final=tape)
        assert not notes.findings, shown(notes.findings)
