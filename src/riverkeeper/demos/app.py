"""The app's own account: a pure fold over the predictions that it reads, as the program of somebody else.

The app shows the likes to expect beneath each post. It reads one pipeline's predictions, and from a post on, when
traffic is moved, another's. Records may come in any order across partitions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from .ledger import Record, Seen, origin

PAIRED = 500  # newest posts over which two pipelines are compared


class _Features(msgspec.Struct):
    region: str = ""


class _Prediction(msgspec.Struct):
    id: str
    value: float
    source: str
    reason: str
    asked: str
    model: str
    features: _Features


class _Example(msgspec.Struct):
    id: str
    label: float
    served: float
    baseline: float | None
    source: str
    features: _Features


class Shown(msgspec.Struct, frozen=True):
    """What the app's users saw."""

    posts: int
    shown: int
    missing: int
    doubled: int  # posts with a second answer that is not a copy of the first
    copies: int  # repeats of an answer, which readers pass over
    out_of_bounds: int  # of all, copies included
    by: dict[str, int]  # answers shown, by `pipeline/model`


class Errors(msgspec.Struct):
    """Sums of absolute errors."""

    count: int = 0
    served: float = 0.0
    baseline: float = 0.0


class Compared(NamedTuple):
    """Mean absolute errors of two pipelines over the same posts."""

    posts: int
    first: float
    second: float


@dataclass
class _Topic:
    """The predictions of one pipeline, by post."""

    answers: dict[str, str] = field(default_factory=dict)  # who gave the first
    doubled: set[str] = field(default_factory=set)
    copies: int = 0
    out_of_bounds: int = 0


class App:
    """`bounds` are what the app's designers were promised; `pipelines` those that it reads, in turn."""

    def __init__(self, pipelines: tuple[str, str], bounds: tuple[float, float]) -> None:
        self._pipelines = pipelines
        self._bounds = bounds
        self._topics = {name: _Topic() for name in pipelines}
        self._seen = Seen()
        self.moved: int | None = None  # the first post whose answer is read from the second
        self.instead: Counter[tuple[str, str, str]] = Counter()  # by asked model, reason and region
        self.regions: defaultdict[str, Errors] = defaultdict(Errors)  # of models in the first pipeline
        self._waiting: tuple[dict[str, float], dict[str, float]] = ({}, {})  # errors without their pair
        self._pairs: deque[tuple[int, float, float]] = deque(maxlen=PAIRED)

    def feed(self, record: Record) -> None:
        """Takes a record; those of other topics than predictions and examples say nothing to the app."""
        pipeline, _, suffix = record.topic.rpartition(".")
        if suffix == "predictions":
            self._prediction(pipeline, record)
        elif suffix == "examples":
            self._example(pipeline, record)

    def _prediction(self, pipeline: str, record: Record) -> None:
        said = msgspec.json.decode(record.value or b"", type=_Prediction)
        topic, (low, high) = self._topics[pipeline], self._bounds
        topic.out_of_bounds += not (math.isfinite(said.value) and low <= said.value <= high)
        if not self._seen.first(record, *origin(record)):
            topic.copies += 1
            return
        if said.id in topic.answers:
            topic.doubled.add(said.id)
            return
        topic.answers[said.id] = f"{pipeline}/{said.model}"
        if said.source == "fallback":
            self.instead[said.asked, said.reason, said.features.region] += 1

    def _example(self, pipeline: str, record: Record) -> None:
        example = msgspec.json.decode(record.value or b"", type=_Example)
        error = abs(example.served - example.label)
        which = self._pipelines.index(pipeline)
        if which == 0 and example.source == "model" and example.baseline is not None:
            sums = self.regions[example.features.region]
            sums.count += 1
            sums.served += error
            sums.baseline += abs(example.baseline - example.label)
        mine, other = self._waiting[which], self._waiting[1 - which]
        if example.id not in other:
            mine[example.id] = error
            return
        pair = (error, other.pop(example.id))
        self._pairs.append((int(example.id[1:]), *(pair if which == 0 else pair[::-1])))

    def compared(self, since: int) -> Compared:
        """Over the newest posts that both have learned the likes of, from that number on."""
        pairs = [(first, second) for number, first, second in self._pairs if number >= since]
        if not pairs:
            return Compared(0, math.nan, math.nan)
        first, second = (sum(errors) / len(pairs) for errors in zip(*pairs, strict=True))
        return Compared(len(pairs), first, second)

    def answered_instead(self, model: str, reason: str) -> dict[str, int]:
        """By region, the posts meant for the model that the fallback answered for this reason."""
        return {
            region: count
            for (asked, why, region), count in sorted(self.instead.items())
            if (asked, why) == (model, reason)
        }

    def shown(self, posts: int) -> Shown:
        """Of the posts numbered below `posts`."""
        first, second = (self._topics[name] for name in self._pipelines)
        moved = posts if self.moved is None else self.moved
        read = [(f"p{n}", first if n < moved else second) for n in range(posts)]
        by = Counter(topic.answers[post] for post, topic in read if post in topic.answers)
        return Shown(
            posts=posts,
            shown=by.total(),
            missing=posts - by.total(),
            doubled=sum(post in topic.doubled for post, topic in read),
            copies=first.copies + second.copies,
            out_of_bounds=first.out_of_bounds + second.out_of_bounds,
            by=dict(by),
        )
