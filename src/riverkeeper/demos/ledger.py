"""The demo's own account of what flowed: a pure fold over the records of every topic.

It knows of Riverkeeper only what its topics promise to any reader, and shares no code with the agents:
so that its sums are a check of theirs. Records may come in any order across partitions.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec

RECENT_EXAMPLES = 1_000  # of a model: what its live error is measured over
RECENT_ANSWERS = 2_000  # predictions whose models show as shares of the traffic
IN_TRAFFIC = ("live", "shadow")
SUPERVISOR = "supervisor"  # who gave a verdict, if no operator did
TOPICS = (
    "events",
    "facts",
    "outcomes",
    "dead",
    "predictions",
    "examples",
    "models",
    "vitals",
    "verdicts",
    "incidents",
)


class Record(Protocol):
    """A Kafka record, by the fields that are read here."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class _Event(msgspec.Struct):
    id: str | int


class _Prediction(msgspec.Struct):
    value: float
    source: str
    model: str
    version: int


class _Example(msgspec.Struct):
    label: float
    served: float
    baseline: float | None


class _Manifest(msgspec.Struct):
    model: str
    version: int
    line: int
    learned: int


class _Vitals(msgspec.Struct):
    agent: str
    model: str
    replica: str = ""
    version: int = 0
    labelled: int = 0
    error: float = 0.0
    baseline_error: float = 0.0


class _Verdict(msgspec.Struct):
    model: str
    state: str
    follows: int
    policy: str
    reason: str
    at_ms: int
    by: str = SUPERVISOR
    slice: str = ""


class Step(msgspec.Struct, frozen=True):
    state: str
    at_ms: int
    reason: str = ""


class Incident(msgspec.Struct, frozen=True):
    id: str
    model: str
    policy: str
    timeline: tuple[Step, ...] = ()
    resolved: bool = False


class Ruling(NamedTuple):
    """A verdict in force, as it fell."""

    at_ms: int
    model: str
    state: str
    policy: str
    reason: str


class Matches:
    """Pairs what must come in twos, whichever comes first; holds only what waits for its other half."""

    def __init__(self) -> None:
        self.open: dict[Place, bool] = {}  # came, and waits for its effect; True: it repeats an earlier one
        self.repeated = 0  # of these
        self.early: set[Place] = set()  # the effects of these came first

    def cause(self, place: Place, repeated: bool = False) -> None:
        if place in self.early:
            self.early.remove(place)
        else:
            self.open[place] = repeated
            self.repeated += repeated

    def effect(self, place: Place) -> None:
        if place in self.open:
            self.repeated -= self.open.pop(place)
        else:
            self.early.add(place)


class Seen:
    """The reading rule: of each source partition only what is greater than the greatest so far counts."""

    def __init__(self) -> None:
        self._greatest: dict[tuple[str, int, str, int], tuple[int, int]] = {}

    def first(self, record: Record, cause: Place, n: int) -> bool:
        source = (record.topic, record.partition, cause.topic, cause.partition)
        if (cause.offset, n) <= self._greatest.get(source, (-1, -1)):
            return False
        self._greatest[source] = (cause.offset, n)
        return True


@dataclass
class ModelView:
    """What is known of one model from the outside."""

    state: str
    share: float = 0.0  # declared
    since_ms: int = 0
    follows: int = -1  # offset of the verdict in force
    version: int = 0  # the one that score asks
    newest: int = 0
    learned: int = 0
    recent: deque[_Vitals] = field(default_factory=deque)

    def note(self, vitals: _Vitals) -> None:
        if vitals.agent == "score" and vitals.version:
            self.version = vitals.version
        if vitals.agent == "learn" and vitals.labelled:
            self.recent.append(vitals)
            while self.labelled - self.recent[0].labelled >= RECENT_EXAMPLES:
                self.recent.popleft()

    @property
    def labelled(self) -> int:
        return sum(v.labelled for v in self.recent)

    @property
    def error(self) -> float | None:
        return sum(v.error for v in self.recent) / self.labelled if self.recent else None

    @property
    def baseline(self) -> float | None:
        return sum(v.baseline_error for v in self.recent) / self.labelled if self.recent else None


class Summary(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    events: int
    duplicates: int
    facts: int
    outcomes: int
    dead: int
    predictions: dict[str, int]
    examples: int
    versions: int
    error: dict[str, str | float | None]
    incidents: list[dict[str, Any]]
    seconds: float


class Ledger:
    """Counts and compares. `bounds` are those that no served prediction may leave."""

    def __init__(
        self, pipeline: str, models: Collection[str], shares: dict[str, float], bounds: tuple[float, float]
    ) -> None:
        self._prefix = f"{pipeline}."
        self._bounds = bounds
        self.models = {m: ModelView("live" if m in shares else "shadow", shares.get(m, 0.0)) for m in models}
        self.events = self.facts = self.outcomes = self.dead = self.unreadable = 0
        self.predictions = self.by_model = self.out_of_bounds = 0
        self.examples = self.compared = 0
        self.served_error = self.baseline_error = 0.0
        self.versions: set[tuple[str, int]] = set()
        self.incidents: dict[str, Incident] = {}
        self.rulings: list[Ruling] = []
        self.held = False  # by an operator: no supervisor's verdict counts
        self.replicas: dict[str, str] = {}  # by agent, the one that told vitals last
        self.began_ms: int | None = None  # when the first event was appended
        self.moved = 0  # records that changed a count
        self.answers: deque[str] = deque(maxlen=RECENT_ANSWERS)
        self._ids: dict[int, set[str | int]] = {}  # by partition of `events`
        self._settled = Matches()  # events and what became of them
        self._answered = Matches()  # facts and their predictions
        self._seen = Seen()
        self._parsers = {
            "events": self._event,
            "facts": self._fact,
            "outcomes": self._outcome,
            "dead": self._dead,
            "predictions": self._prediction,
            "examples": self._example,
            "models": self._version,
            "vitals": self._vitals,
            "verdicts": self._verdict,
            "incidents": self._incident,
        }

    def feed(self, record: Record) -> None:
        """Takes the next record of its partition."""
        suffix = record.topic.removeprefix(self._prefix)
        self._parsers[suffix](record)
        if suffix not in ("vitals", "models"):
            self.moved += 1

    # Events and what became of them.

    def _event(self, record: Record) -> None:
        self.events += 1
        self.began_ms = min(self.began_ms or record.timestamp, record.timestamp)
        place = Place(record.topic, record.partition, record.offset)
        self._settled.cause(place, self._repeated(record))

    def _repeated(self, record: Record) -> bool:
        try:
            ident = msgspec.json.decode(record.value or b"", type=_Event).id
        except msgspec.DecodeError:
            return False
        ids = self._ids.setdefault(record.partition, set())
        if ident in ids:
            return True
        ids.add(ident)
        return False

    def _first(self, record: Record) -> Place | None:
        """The record's cause, if this is the first copy of that effect."""
        cause, n = origin(record)
        return cause if self._seen.first(record, cause, n) else None

    def _fact(self, record: Record) -> None:
        cause = self._first(record)
        if cause is not None:
            self.facts += 1
            self._settled.effect(cause)
            self._answered.cause(Place(record.topic, record.partition, record.offset))

    def _outcome(self, record: Record) -> None:
        cause = self._first(record)
        if cause is not None:
            self.outcomes += 1
            self._settled.effect(cause)

    def _dead(self, record: Record) -> None:
        cause = self._first(record)
        if cause is None:
            return
        if cause.topic == f"{self._prefix}events":
            self.dead += 1
            self._settled.effect(cause)
        else:
            self.unreadable += 1

    # Predictions and their errors.

    def _prediction(self, record: Record) -> None:
        cause = self._first(record)
        if cause is None:
            return
        said = msgspec.json.decode(record.value or b"", type=_Prediction)
        self.predictions += 1
        self.by_model += said.source == "model"
        low, high = self._bounds
        self.out_of_bounds += not (math.isfinite(said.value) and low <= said.value <= high)
        self.answers.append(said.model)
        self._answered.effect(cause)

    def _example(self, record: Record) -> None:
        example = msgspec.json.decode(record.value or b"", type=_Example)
        self.examples += 1
        if example.baseline is not None:
            self.compared += 1
            self.served_error += abs(example.served - example.label)
            self.baseline_error += abs(example.baseline - example.label)

    @property
    def error(self) -> float | None:
        """Mean absolute error of what was served."""
        return self.served_error / self.compared if self.compared else None

    @property
    def baseline(self) -> float | None:
        """The same of the baseline, over the same examples."""
        return self.baseline_error / self.compared if self.compared else None

    def answering(self) -> dict[str, float]:
        """By model, its part of the latest answers."""
        counts = Counter(self.answers)
        return {model: count / len(self.answers) for model, count in counts.items()}

    # Models and what was decided of them.

    def _version(self, record: Record) -> None:
        key = (record.key or b"").decode(errors="replace")
        if key.count("/") != 1 or record.value is None:
            return
        manifest = msgspec.json.decode(record.value, type=_Manifest)
        self.versions.add((manifest.model, manifest.version))
        model = self.models[manifest.model]
        model.newest, model.learned = manifest.version, manifest.learned

    def _vitals(self, record: Record) -> None:
        told = msgspec.json.decode(record.value or b"", type=list[_Vitals] | _Vitals)
        for vitals in told if isinstance(told, list) else [told]:
            self.replicas[vitals.agent] = vitals.replica
            if vitals.model in self.models:
                self.models[vitals.model].note(vitals)

    def _verdict(self, record: Record) -> None:
        verdict = msgspec.json.decode(record.value or b"", type=_Verdict)
        if not verdict.model and verdict.by != SUPERVISOR:
            self.held = verdict.state == "quarantined"
        if self.held and verdict.by == SUPERVISOR:
            return
        model = self.models.get(verdict.model)
        if model is None or verdict.follows != model.follows:
            return
        model.follows = record.offset
        state = f"{verdict.state} where {verdict.slice}" if verdict.slice else verdict.state
        self.rulings.append(Ruling(verdict.at_ms, verdict.model, state, verdict.policy, verdict.reason))
        if verdict.slice:
            return
        model.state, model.since_ms = verdict.state, verdict.at_ms
        if verdict.state not in IN_TRAFFIC:
            model.recent.clear()

    def _incident(self, record: Record) -> None:
        incident = msgspec.json.decode(record.value or b"", type=Incident)
        self.incidents[incident.id] = incident

    def open_incidents(self) -> list[Incident]:
        return [i for i in self.incidents.values() if not i.resolved]

    # The sums.

    @property
    def duplicates(self) -> int:
        """Events without an effect of their own, whose id came before in their partition."""
        return self._settled.repeated

    @property
    def unsettled(self) -> int:
        """Events that came to nothing yet and repeat no other, and facts without a prediction."""
        return len(self._settled.open) - self.duplicates + len(self._answered.open)

    def imbalances(self) -> Iterator[str]:
        """What does not add up, a sentence each; nothing if everything does."""
        lost = [place for place, repeated in self._settled.open.items() if not repeated]
        if lost:
            yield f"{len(lost)} events became neither fact, outcome nor dead letter, first {min(lost)}"
        if self._settled.early:
            first = min(self._settled.early)
            yield f"{len(self._settled.early)} effects name an event that is not there, first {first}"
        settled = self.facts + self.outcomes + self.dead + self.duplicates
        if not lost and settled != self.events:
            yield f"{settled} facts, outcomes, dead letters and duplicates of {self.events} events"
        yield from self._unanswered()
        if self.out_of_bounds:
            yield f"{self.out_of_bounds} served predictions lie out of bounds"
        if self.unreadable:
            yield f"{self.unreadable} records of our own topics were unreadable and are in dead letters"

    def _unanswered(self) -> Iterator[str]:
        if self._answered.open:
            yield f"{len(self._answered.open)} facts have no prediction, first {min(self._answered.open)}"
        if self._answered.early:
            first = min(self._answered.early)
            yield f"{len(self._answered.early)} predictions name a fact that is not there, first {first}"

    def summary(self, seconds: float) -> Summary:
        return summed([self], seconds)


def summed(ledgers: Sequence[Ledger], seconds: float) -> Summary:
    """The account of several pipelines together; errors over the examples of all."""
    incidents = [incident for each in ledgers for incident in each.incidents.values()]
    incidents.sort(key=lambda i: i.timeline[0].at_ms if i.timeline else 0)
    said, by_model = sum(each.predictions for each in ledgers), sum(each.by_model for each in ledgers)
    compared = sum(each.compared for each in ledgers)
    served, baseline = (
        sum(errors) / compared if compared else None
        for errors in (
            [each.served_error for each in ledgers],
            [each.baseline_error for each in ledgers],
        )
    )
    return Summary(
        events=sum(each.events for each in ledgers),
        duplicates=sum(each.duplicates for each in ledgers),
        facts=sum(each.facts for each in ledgers),
        outcomes=sum(each.outcomes for each in ledgers),
        dead=sum(each.dead for each in ledgers),
        predictions={
            "total": said,
            "model": by_model,
            "fallback": said - by_model,
            "out_of_bounds": sum(each.out_of_bounds for each in ledgers),
        },
        examples=sum(each.examples for each in ledgers),
        versions=sum(len(each.versions) for each in ledgers),
        error={"metric": "MAE", "served": served, "baseline": baseline},
        incidents=[_told(i) for i in incidents],
        seconds=round(seconds, 3),
    )


def origin(record: Record) -> tuple[Place, int]:
    """The record that caused this one, and which of its effects this is. Raises ValueError."""
    for name, value in record.headers:
        if name == "origin":
            topic, partition, offset, n = value.decode().rsplit("/", 3)
            return Place(topic, int(partition), int(offset)), int(n)
    raise ValueError(f"{record.topic}/{record.partition}/{record.offset} names no origin")


def _told(incident: Incident) -> dict[str, Any]:
    timeline = [{"state": step.state, "at": iso(step.at_ms)} for step in incident.timeline]
    return {"model": incident.model, "policy": incident.policy, "timeline": timeline}


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
