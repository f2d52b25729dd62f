"""Whether a prediction obeyed the verdicts."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from pydantic import ValidationError

from ..models.pipeline import CONSTANT, Pipeline
from ..topics.log import Record
from ..topics.messages import SUPERVISOR, Prediction, Source, Span, State, Verdict
from .report import Notebook, Place, Topic

# A lease lasts a second at most. As much again is for answering a batch and for its way to the broker.
OBEYED_WITHIN_MS = 2_000
MAX_BARRED = 8  # slices of one model; a verdict on one more counts for nothing
SLICE_TEXT = 40  # characters of a value by which a slice is named
SERVING = frozenset({State.LIVE, State.CANARY})
ASKED = SERVING | {State.SHADOW, State.PROBATION}


class Ruling(NamedTuple):
    """A verdict in force from its offset on. `state` None: the declaration, which may have changed since."""

    offset: int
    at: int  # append time, ms
    state: State | None
    line: int
    skip: tuple[Span, ...] = ()
    barred: frozenset[str] = frozenset()  # slices whose facts the model may not answer


class Verdicts:
    """Every model's rulings in order; a verdict that follows another than the last one counts for nothing, nor
    does a supervisor's while an operator holds it."""

    def __init__(self, pipeline: Pipeline, within_ms: int = OBEYED_WITHIN_MS) -> None:
        self._within = within_ms
        self._names = pipeline.slices
        self._held = False
        self._rulings = {model: [Ruling(-1, 0, None, 0)] for model in pipeline.models}

    def read(self, record: Record, notes: Notebook) -> None:
        notes.counts["verdicts"] += 1
        try:
            verdict = Verdict.model_validate_json(record.value or b"")
        except ValidationError:
            place = Place(Topic.VERDICTS, record.partition, record.offset)
            notes.find("altered", place, "is no verdict")
            return
        automatic = verdict.by == SUPERVISOR
        if not verdict.model and not automatic:
            self._held = verdict.state is State.QUARANTINED
        rulings = self._rulings.get(verdict.model)
        if self._held and automatic:
            return
        if rulings is not None and verdict.follows == rulings[-1].offset:
            self._rule(rulings, record, verdict)

    def _rule(self, rulings: list[Ruling], record: Record, verdict: Verdict) -> None:
        last = rulings[-1]
        state, line, barred = last.state, last.line, last.barred
        skip: tuple[Span, ...] = ()
        if not verdict.slice:
            state, line, skip = verdict.state, verdict.line, verdict.skip
        elif verdict.state is State.QUARANTINED:
            barred |= {verdict.slice}
        else:
            barred -= {verdict.slice}
        if len(barred) <= MAX_BARRED:
            rulings.append(Ruling(record.offset, record.timestamp, state, line, skip, barred))

    def destroyed(self, model: str) -> bool:
        return self._rulings[model][-1].state is State.DESTROYED

    def line(self, model: str) -> int:
        return self._rulings[model][-1].line

    def skips(self, model: str, line: int) -> list[Span]:
        """What the verdicts of a line leave out."""
        return [span for ruling in self._rulings[model] if ruling.line == line for span in ruling.skip]

    def disobeyed(self, said: Prediction, appended: int, line: int | None) -> str:
        """What the prediction disobeyed; "" if nothing. `line` is its version's, None if not known."""
        rulings = self._rulings.get(said.model)
        if said.model == CONSTANT or rulings is None or len(rulings) == 1:
            return ""
        allowed = SERVING if said.source is Source.MODEL else ASKED
        known = max(r for r in rulings if r.offset <= said.verdict) if said.verdict >= -1 else rulings[0]
        slices = self._slices(said)
        forbidden = _forbids(known, allowed, line, slices)
        if forbidden:
            return f"was served although verdict {known.offset}, which it knew, {forbidden}"
        # In force at some moment of the time that there was to obey:
        first = max(i for i, r in enumerate(rulings) if r.at <= max(0, appended - self._within))
        during = [r for r in rulings[first:] if r.at <= appended]
        if all(_forbids(ruling, allowed, line, slices) for ruling in during):
            ruling = during[0]
            why = _forbids(ruling, allowed, line, slices)
            return (
                f"was served {(appended - ruling.at) / 1000:.1f} s after verdict {ruling.offset} that {why}"
            )
        return ""

    def _slices(self, said: Prediction) -> list[str]:
        """Those that the fact shows; for the fallback none is barred."""
        if said.source is not Source.MODEL:
            return []
        return [f"{n}={str(said.features[n])[:SLICE_TEXT]}" for n in self._names if n in said.features]


def _forbids(ruling: Ruling, allowed: frozenset[State], line: int | None, slices: Collection[str]) -> str:
    if barred := ruling.barred.intersection(slices):
        return f"bars the model where {min(barred)}"
    if ruling.state is None:
        return ""
    if ruling.state not in allowed:
        return f"puts the model in {ruling.state}"
    if line is not None and line != ruling.line:
        return f"begins line {ruling.line}, while the version is of line {line}"
    return ""
