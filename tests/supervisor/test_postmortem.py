"""The draft of a post-mortem says what the log knows: how long, how many, which ones, what changed."""

from __future__ import annotations

from riverkeeper.supervisor.blast import Blast
from riverkeeper.supervisor.postmortem import OBEYED_MS, duration, listed, markdown, stretch
from riverkeeper.topics.messages import Incident, IncidentStep
from tests.supervisor.test_blast import said

ONSET = 1_767_225_600_000  # 2026-01-01
TOPIC = "town.predictions"


def incident(*steps: tuple[str, int, str], resolved: bool = False, model: str = "eager") -> Incident:
    return Incident(
        id="eager-7",
        model=model,
        policy="bounds",
        evidence={"share": 0.5, "onset_ms": float(ONSET)},
        timeline=tuple(IncidentStep(state=s, at_ms=ONSET + at, reason=why) for s, at, why in steps),
        resolved=resolved,
    )


FOUND = ("detected", 4_000, "30 of the last 60 answers | out of bounds")
OUT = ("quarantined", 4_000, "30 of the last 60 answers | out of bounds")
BACK = ("re-admitted", 90_000, "500 clean answers")


def test_the_model_is_to_blame_until_its_verdict_was_obeyed() -> None:
    until = stretch(incident(FOUND, OUT, BACK, resolved=True), ONSET + 10**9).until_ms
    assert until == ONSET + 4_000 + OBEYED_MS
    alarm = incident(("alarm", 4_000, "worse"))
    assert stretch(alarm, ONSET + 60_000).until_ms == ONSET + 60_000
    over = incident(("alarm", 4_000, "worse"), ("resolved", 50_000, "no longer found"), resolved=True)
    assert stretch(over, ONSET + 60_000).until_ms == ONSET + 50_000


def test_the_whole_draft() -> None:
    told = incident(FOUND, OUT, BACK, resolved=True)
    blast = Blast("eager", stretch(told, ONSET))
    for n in range(3):
        blast.add(1, 40 + n, ONSET - 1_000, said(2.0, asked="eager", model="eager"))
    for n in range(7):
        blast.add(1, 50 + n, ONSET + n, said(900.0 + n, asked="eager", model="eager", version=9))
    blast.add(1, 60, ONSET + 10, said(asked="eager", model="usual", reason="out_of_bounds"))
    text = markdown(told, blast, TOPIC, ONSET + 10**6)
    for expected in (
        "# Bounds of eager",
        "Incident `eager-7`: **resolved**. It began at 2026-01-01 00:00:00, and lasted 0:01:30.",
        "The model lost its traffic 4.0 s after the onset.",
        "All was well again 0:01:30 after the onset: 500 clean answers.",
        "It had served 7 predictions since the onset.",
        "| eager | 9 | 7 |",
        "| usual | out of bounds | 1 |",
        "- `town.predictions/1 50-56`",
        "| share | 0.5 |",
        "| `p900.0` | 9 | 900 | `facts/0/7` |",
        "## Root cause",
    ):
        assert expected in text, f"{expected!r} is missing in:\n{text}"
    table = [line for line in text.splitlines() if "answers \\| out of bounds" in line]
    assert len(table) == 2, "what came from outside does not end a cell"
    assert "2 to 2.83  before 100.0%" in text and "724 to 1.02e+03  before   0.0%" in text


def test_the_pipelines_incident_names_no_model() -> None:
    told = incident(("alarm", 4_000, "late"), model="")
    text = markdown(told, Blast("", stretch(told, ONSET + 5_000)), TOPIC, ONSET + 5_000)
    assert "# Bounds of the pipeline" in text and "for 5.0 s by now" in text
    assert "An alarm takes nothing out" in text


def test_the_list_is_newest_first() -> None:
    old, new = incident(FOUND, OUT), incident(FOUND).model_copy(update={"id": "eager-9"})
    new = new.model_copy(update={"evidence": {"onset_ms": float(ONSET + 3_000)}})
    assert [row[:2] for row in listed([old, new])] == [["eager-9", "open"], ["eager-7", "mitigated"]]


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(ms) for ms in (-5, 1_500, 61_000, 90_000_000)] == [
        "0.0 s",
        "1.5 s",
        "0:01:01",
        "1 day, 1:00:00",
    ]
