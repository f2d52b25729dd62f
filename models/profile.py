"""What a window's facts and answers looked like, from samples of bounded size.

On the hot path rows are kept by reference, some of each batch; they are looked at once per window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from ..topics.messages import Answer, Features, Moments, Sketch, Slice, Source
from .features import FeatureFailure
from .serving import Answers
from .sketch import moments, sketch
from .slices import slices_of

PER_BATCH = 64  # facts kept of one batch: ten batches a second fill the sample
SAMPLE = 512  # facts looked at per window; some 2 ms of work with ten features
MAX_COLUMNS = 32  # features sketched; more would make vitals larger than what they are about
MAX_SLICES = 32  # values of all slices told apart per window; the most frequent


class Seen(NamedTuple):
    """A window's facts. `event_ms` is the newest event time, 0 without a fact."""

    features: dict[str, Sketch]
    slices: dict[str, Slice]
    ages: Moments
    event_ms: int


class Profile:
    """Of the facts that one process scores."""

    def __init__(self, columns: Sequence[str], slices: Sequence[str]) -> None:
        self._columns = tuple(columns)[:MAX_COLUMNS]
        self._slices = tuple(slices)
        self._rows: list[Features | FeatureFailure] = []
        self._ages: list[float] = []
        self._facts = 0
        self._event_ms = 0

    def see(
        self,
        rows: Sequence[Features | FeatureFailure],
        times: Sequence[datetime],
        appended: Sequence[int],
    ) -> None:
        """One batch: its rows, event times and append times (ms)."""
        self._facts += len(rows)
        room = min(PER_BATCH, SAMPLE - len(self._rows))
        step = max(1, -(-len(rows) // max(1, room)))
        event_ms = [_ms(time) for time in times[::step]]
        self._event_ms = max(self._event_ms, *event_ms) if event_ms else self._event_ms
        if room > 0:
            self._rows += rows[::step]
            self._ages += [(at - of) / 1000 for at, of in zip(appended[::step], event_ms, strict=True)]

    def take(self) -> Seen:
        """What was seen since the last call."""
        rows, facts = self._rows, self._facts
        whole = [row for row in rows if not isinstance(row, FeatureFailure)]
        seen = Seen(self._sketches(whole), self._counts(whole, facts), moments(self._ages), self._event_ms)
        self._rows, self._ages, self._facts, self._event_ms = [], [], 0, 0
        return seen

    def _sketches(self, rows: Sequence[Features]) -> dict[str, Sketch]:
        if not rows:
            return {}
        return {name: sketch([row.get(name) for row in rows]) for name in self._columns}

    def _counts(self, rows: Sequence[Features], facts: int) -> dict[str, Slice]:
        weight = facts / len(rows) if rows else 0.0
        counted = Counter(name for row in rows for name in slices_of(self._slices, row))
        return {
            name: Slice(facts=round(n * weight))
            for name, n in sorted(counted.items(), key=lambda each: (-each[1], each[0]))[:MAX_SLICES]
        }


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


class Sample:
    """Answers of each model, some of each batch."""

    def __init__(self) -> None:
        self._said: dict[str, list[Answer]] = {}

    def see(self, answers: Answers) -> None:
        step = max(1, len(answers.served) // PER_BATCH)
        for each in answers.served[::step]:
            if each.source is Source.MODEL:
                self._add(each.model, each.value)
        step = max(1, len(answers.shadows) // PER_BATCH)
        for shadow in answers.shadows[::step]:
            if shadow.value is not None:
                self._add(shadow.model, shadow.value)

    def _add(self, model: str, value: Answer) -> None:
        said = self._said.setdefault(model, [])
        if len(said) < SAMPLE:
            said.append(value)

    def take(self) -> dict[str, Sketch]:
        """By model; of an answer by class, its likeliest class."""
        said, self._said = self._said, {}
        return {
            model: sketch([max(a, key=a.__getitem__) if isinstance(a, dict) else a for a in answers])
            for model, answers in said.items()
        }
