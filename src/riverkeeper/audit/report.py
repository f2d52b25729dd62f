"""What an audit found: the nouns, and how they are shown."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from typing import Literal, NamedTuple

import msgspec

Kind = Literal["lost", "doubled", "reordered", "altered", "out_of_bounds", "unlearned", "disobeyed"]

MAX_HELD = 10_000  # findings held with their places, ~5 MB; beyond, they are counted


class Topic(IntEnum):
    """The topics that are read, by suffix; a small number in a row."""

    EVENTS = 0
    FACTS = 1
    OUTCOMES = 2
    PREDICTIONS = 3
    EXAMPLES = 4
    DEAD = 5
    MODELS = 6
    VERDICTS = 7

    @property
    def suffix(self) -> str:
        return self.name.lower()


class Place(NamedTuple):
    """Where a record stands, or should."""

    topic: Topic
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic.suffix}/{self.partition}/{self.offset}"


class Finding(msgspec.Struct, frozen=True):
    """One record for which the sums do not hold. `offset` -1: it is not there, and nothing says where it was."""

    kind: Kind
    topic: str  # in full
    partition: int
    offset: int
    id: str  # of the record, or of what should have followed from it; "" if it has none
    text: str

    def __str__(self) -> str:
        where = f"{self.topic}/{self.partition}" + (f"/{self.offset}" if self.offset >= 0 else "")
        return f"{self.kind}: {where}" + (f" ({self.id})" if self.id else "") + f": {self.text}"


class Report(msgspec.Struct):
    """The account of a pipeline.

    - `found` counts every finding by kind; `findings` holds the first of them, at most `MAX_HELD`
    - `counts` is what was read and accounted for, by what it is
    - `repeats` counts, by topic, the copies that the reading rule passes over
    - `pending` is what merely had no effect yet, by topic; empty when all was quiet
    - `unchecked` says, a sentence each, what could not be judged
    """

    pipeline: str
    findings: list[Finding] = []
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    repeats: dict[str, int] = {}
    pending: dict[str, int] = {}
    unchecked: list[str] = []
    records: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.found


class Notebook:
    """Findings as they come, and the sums. What is explained by one finding is not found again."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self.findings: list[Finding] = []
        self.named_by: list[Place] = []  # by finding: the record whose id it bears
        self.found: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.repeats: Counter[str] = Counter()
        self.pending: Counter[str] = Counter()
        self.unchecked: Counter[str] = Counter()  # by sentence
        self._explained: set[int] = set()

    def find(
        self, kind: Kind, place: Place, text: str, *explains: int, id: str = "", named_by: Place | None = None
    ) -> None:
        """Notes a finding. `explains` are hashes of contents whose further mismatches follow from it.

        Its id, unless given, is that of the record at `named_by`, or at `place` itself.
        """
        self.found[kind] += 1
        if len(self.findings) < MAX_HELD:
            topic = f"{self._pipeline}.{place.topic.suffix}"
            self.findings.append(Finding(kind, topic, place.partition, place.offset, id, text))
            self.named_by.append(named_by or place)
            self.explain(*explains)

    def explain(self, *contents: int) -> None:
        self._explained.update(contents)

    def explained(self, *contents: int) -> bool:
        return not self._explained.isdisjoint(contents)


def text(report: Report, limit: int) -> str:
    """For people: the sums, then the findings, at most `limit` of them."""
    lines = [f"pipeline {report.pipeline}: {report.records} records in {report.seconds:.1f} s", ""]
    lines += _sums("counted", report.counts)
    lines += _sums("copies that the reading rule passes over", report.repeats)
    lines += _sums("pending", report.pending)
    if report.unchecked:
        lines += ["not judged", *(f"  {each}" for each in report.unchecked), ""]
    if report.clean:
        return "\n".join([*lines, "nothing lost, doubled, reordered, altered, out of bounds or disobeyed"])
    total = sum(report.found.values())
    lines += _sums(f"{total} findings", report.found)
    lines += [str(finding) for finding in report.findings[:limit]]
    if total > limit:
        lines.append(f"and {total - min(limit, len(report.findings))} more; --limit shows more of them")
    return "\n".join(lines)


def _sums(title: str, sums: dict[str, int]) -> list[str]:
    if not sums:
        return []
    width = max(map(len, sums))
    return [title, *(f"  {name:<{width}}  {count:>12,}" for name, count in sums.items()), ""]
