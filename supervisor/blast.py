"""What an incident cost those downstream: a fold over the predictions of its time, and of as long before.

Pure. A prediction counts once, however many copies of it the log holds. Answers are compared as histograms over the
bins of `models.sketch`, which are the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ..models.sketch import added, sketch
from ..models.slices import slices_of
from ..topics.messages import Answer, Prediction, Scalar, Sketch, Source

SAMPLES = 5  # predictions named; enough to look one up in any system downstream
BATCH = 1_000  # answers sketched at a time


@dataclass(frozen=True)
class Stretch:
    """From when (ms) the model was at fault, and until when its answers were served, by append time."""

    onset_ms: int
    until_ms: int

    @property
    def from_ms(self) -> int:
        """Where the comparison begins: as long before."""
        return self.onset_ms - (self.until_ms - self.onset_ms)


@dataclass(frozen=True)
class Sample:
    id: str
    version: int
    value: Answer
    fact: str
    at_ms: int


@dataclass
class Blast:
    """Of one model, where its facts show `slice` if that is given; of every model that answered, if `model` is ""."""

    model: str
    stretch: Stretch
    slice: str = ""
    served: int = 0  # by the model itself, since the onset
    versions: Counter[int] = field(default_factory=Counter)  # of these
    instead: Counter[tuple[str, str]] = field(default_factory=Counter)  # (who answered in its place, why)
    places: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # partition → first and last offset served
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before, self._since = _Histogram(), _Histogram()
        self._seen: dict[int, int] = {}

    def add(self, partition: int, offset: int, at_ms: int, said: Prediction) -> None:
        """One more record of `predictions`, its copies left out; in order within a partition."""
        if not self.stretch.from_ms <= at_ms <= self.stretch.until_ms:
            return
        if self.model and said.asked != self.model:
            return
        if self.slice and self.slice not in slices_of([self.slice.partition("=")[0]], said.features):
            return
        own = said.source is Source.MODEL and (not self.model or said.model == self.model)
        if at_ms < self.stretch.onset_ms:
            if own:
                self._before.add(said.value)
            return
        if not own:
            self.instead[said.model, said.reason] += 1
            return
        self.served += 1
        self.versions[said.version] += 1
        first, _ = self.places.get(partition, (offset, offset))
        self.places[partition] = (first, offset)
        self._since.add(said.value)
        if len(self.samples) < SAMPLES:
            self.samples.append(Sample(said.id, said.version, said.value, said.fact, at_ms))

    @property
    def before(self) -> Sketch:
        return self._before.told()

    @property
    def since(self) -> Sketch:
        return self._since.told()


class _Histogram:
    def __init__(self) -> None:
        self._sketch = Sketch()
        self._open: list[Scalar] = []

    def add(self, value: Answer) -> None:
        # Of classes it is the likeliest that is counted.
        self._open.append(
            max(value, key=value.__getitem__) if isinstance(value, dict) and value else _number(value)
        )
        if len(self._open) >= BATCH:
            self._close()

    def _close(self) -> None:
        self._sketch, self._open = added(self._sketch, sketch(self._open)), []

    def told(self) -> Sketch:
        self._close()
        return self._sketch


def _number(value: Answer) -> Scalar:
    return None if isinstance(value, dict) else value


def bars(before: Sketch, since: Sketch, most: int = 16) -> list[tuple[str, float, float]]:
    """(bin, its share before, its share since), in the order of the values; the rarest left out beyond `most`."""
    shares = [_shares(before), _shares(since)]
    names = sorted({*shares[0], *shares[1]}, key=lambda b: -(shares[0].get(b, 0) + shares[1].get(b, 0)))
    kept = sorted(islice(names, most), key=_place)
    return [(_named(b), shares[0].get(b, 0.0), shares[1].get(b, 0.0)) for b in kept]


def _shares(of: Sketch) -> Mapping[str, float]:
    return {b: n / of.count for b, n in of.bins.items()} if of.count else {}


def _place(bin_: str) -> tuple[int, float, str]:
    """Numbers in their order, then texts."""
    if bin_ == "0":
        return (0, 0.0, "")
    if bin_[0] in "+-" and bin_[1:].lstrip("-").isdigit():
        size = 2.0 ** (int(bin_[1:]) / 2)
        return (0, size if bin_[0] == "+" else -size, "")
    return (1, 0.0, bin_)


def _named(bin_: str) -> str:
    """A bin as people read it: the numbers from and to, or the text."""
    kind, size, text = _place(bin_)
    if kind:
        return text.removeprefix("=")
    if not size:
        return "0"
    low, high = sorted((size, size * 2**0.5))
    return f"{low:.3g} to {high:.3g}"


def ranges(places: Mapping[int, tuple[int, int]], topic: str) -> Sequence[str]:
    """Where the predictions stand: "topic/partition first-last", for any tool that reads by offset."""
    return [f"{topic}/{p} {first}-{last}" for p, (first, last) in sorted(places.items())]
