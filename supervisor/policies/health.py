"""What is known of one model: JSON, so that it can live in a table and be replayed; bounded, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from ...topics.messages import Span, Vitals

HEALTH_GRAINS = 32  # least entries a full window is kept in; finer only makes the record larger
MAX_ENTRIES = 96  # of a window: neighbours hold a grain together, so that 64 do unless versions rush
WORST = 1e300  # stands for an error that is not finite: JSON and sums can carry it


class Answers(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answers of one version in one stretch of time; `bad` are out of bounds, not finite or raised."""

    from_ms: int
    to_ms: int
    version: int
    size: int
    bad: int

    def plus(self, later: Answers) -> Answers:
        first, last = min(self.from_ms, later.from_ms), max(self.to_ms, later.to_ms)
        return Answers(first, last, later.version, self.size + later.size, self.bad + later.bad)


class Examples(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Labelled examples in one stretch of time; both errors are sums over the same examples."""

    from_ms: int
    to_ms: int
    version: int
    size: int
    error: float
    baseline: float

    def plus(self, later: Examples) -> Examples:
        first, last = min(self.from_ms, later.from_ms), max(self.to_ms, later.to_ms)
        error, baseline = self.error + later.error, self.baseline + later.baseline
        return Examples(first, last, later.version, self.size + later.size, error, baseline)


E = TypeVar("E", Answers, Examples)


class Mark(NamedTuple):
    """From when on examples at and above `offsets` (by partition) were learned."""

    at_ms: int
    offsets: dict[int, int]


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one version's answers and errors."""

    asked: int = 0
    bad: int = 0
    labelled: int = 0
    error: float = 0.0
    baseline: float = 0.0
    refused: bool = False


class Refusal(NamedTuple):
    at_ms: int
    version: int
    reason: str


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy keeps of one model, derived from by each. Whoever derives keeps it bounded, and of what
    JSON can carry: numbers, texts, named tuples, tuples, and mappings of such."""

    since_ms: int = 0  # evidence from before counts for nothing

    def renewed(self, since_ms: int) -> Memory:
        """After a verdict: without the evidence so far. What is history and no accusation may stay."""
        return type(self)(since_ms=since_ms)


M = TypeVar("M", bound=Memory)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model. Windows hold the evidence of the current line only."""

    model: str
    line: int = 0
    since_ms: int = 0  # when the line was first seen
    judged_ms: int = 0  # when the verdict in force was given: what policies remember begins there
    arriving_ms: int = 0  # when an example was last seen to arrive, for whichever model
    answers: tuple[Answers, ...] = ()
    examples: tuple[Examples, ...] = ()
    refusal: Refusal | None = None
    versions: dict[int, Tally] = {}  # of every line
    learned: dict[int, int] = {}  # partition of examples → next one to learn
    marks: tuple[Mark, ...] = ()
    covered: dict[str, tuple[Span, ...]] = {}  # agent → spans counted
    progress_ms: int = 0  # when it last learned
    version: int = 0  # the newest one asked
    version_ms: int = 0  # when that one was first asked
    memory: dict[str, Any] = {}  # policy → a Memory, or its JSON after a restart

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Health:
        """Raises msgspec.DecodeError for what is no health, or another release's."""
        return msgspec.json.decode(value, type=cls)

    def recall(self, policy: str, kind: type[M]) -> M:
        """What the policy remembered; nothing if that was written in another form."""
        known = self.memory.get(policy)
        if not isinstance(known, kind):
            try:
                known = kind() if known is None else msgspec.convert(known, kind, str_keys=True)
            except msgspec.ValidationError:
                known = kind()
        if known.since_ms >= self.judged_ms:
            return known
        renewed = known.renewed(self.judged_ms)
        assert isinstance(renewed, kind)
        return renewed

    def remember(self, policy: str, memory: Memory) -> Health:
        if self.memory.get(policy) is memory:
            return self
        return replace(self, memory={**self.memory, policy: memory})

    def within(self, line: int, since_ms: int) -> Health:
        """The evidence that a line gave since a moment; nothing if it is another line's health."""
        judged_ms = max(since_ms, self.judged_ms)
        if line != self.line:
            return Health(
                model=self.model,
                line=line,
                since_ms=since_ms,
                judged_ms=judged_ms,
                versions=self.versions,
                memory=self.memory,
            )
        if not since_ms:
            return self
        refusal = self.refusal if self.refusal and self.refusal.at_ms >= since_ms else None
        return replace(
            self,
            since_ms=max(since_ms, self.since_ms),
            judged_ms=judged_ms,
            answers=tuple(a for a in self.answers if a.from_ms >= since_ms),
            examples=tuple(e for e in self.examples if e.from_ms >= since_ms),
            refusal=refusal,
        )


@dataclass(frozen=True)
class Finding:
    """One policy's objection to one model. `onset_ms` is when the trouble began.

    `grave`: the model's answers are worth less than what would stand in for them, so it is taken out. Where that is so
    of one slice only ("name=value"), it is barred from that. Any other finding raises an alarm.
    """

    policy: str
    reason: str
    onset_ms: int
    evidence: dict[str, float] = field(default_factory=dict)
    grave: bool = False
    slice: str = ""


# Takes up one vitals record of the model, or says what it finds (None); `now` in epoch ms. Findings beside a
# record are not looked at.
Policy: TypeAlias = Callable[[Health, Vitals | None, int], tuple[Health, list[Finding]]]


def push(entries: tuple[E, ...], new: E, window: int) -> tuple[E, ...]:
    """With `new` at the end; small neighbours of one version become one entry."""
    last = entries[-1] if entries else None
    if last is None or last.version != new.version or last.size + new.size > window // HEALTH_GRAINS:
        return entries + (new,)
    return entries[:-1] + (last.plus(new),)


def trim(entries: tuple[E, ...], window: int, oldest_ms: int) -> tuple[E, ...]:
    """The newest entries that hold the window, none older than that, of bounded number."""
    recent = [e for e in entries if e.to_ms >= oldest_ms][-MAX_ENTRIES:]
    total = sum(e.size for e in recent)
    first = 0
    while first < len(recent) - 1 and total - recent[first].size >= window:
        total -= recent[first].size
        first += 1
    return tuple(recent[first:])


def onset(excesses: Sequence[float]) -> int:
    """Where the run up to now begins whose excess is largest: the likeliest point of change."""
    sums = list(accumulate(reversed(excesses)))
    largest = max(range(len(sums)), key=sums.__getitem__)
    return len(sums) - 1 - largest
