"""The nouns: every record that flows through a pipeline's topics.

Records of the data plane (facts, predictions, examples) are msgspec structs: they are decoded and
encoded by the ten thousand a second. Records of the control plane (verdicts, vitals, versions,
incidents) are pydantic models: they are few, read by people, and constrained field by field.
All travel as JSON; times are ISO 8601 with an offset, or epoch milliseconds where named `_ms`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar, dataclass_transform

import msgspec
from pydantic import BaseModel, ConfigDict, Field

# A feature as it stands in a record: what JSON can carry and an estimator can read.
Scalar = bool | int | float | str | None
Features = dict[str, Scalar]
# What a model answers: a number (regression; probability of True in binary classification),
# or the probability of each class, by its name.
Answer = float | dict[str, float]
# What came true.
LabelValue = bool | int | float | str


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the user's own facts and outcomes: immutable, typed, validated when decoded.

    `event_type` is the value of an event's type field that stands for this class; by default the
    class name in lower case.
    """

    event_type: ClassVar[str] = ""

    @classmethod
    def type_name(cls) -> str:
        return cls.event_type or cls.__name__.lower()


F = TypeVar("F", bound=Fact)


class Envelope(msgspec.Struct, Generic[F], frozen=True, kw_only=True):
    """A fact or an outcome as it stands on its topic."""

    id: str
    type: str
    time: datetime
    key: str
    data: F


class Origin(NamedTuple):
    """Why a record exists: the `n`-th output of the record at `offset` of `source`.

    `source` is "topic/partition". Orders within one source; see docs/design.md, "By origin".
    """

    source: bytes
    offset: int
    n: int

    def header(self) -> bytes:
        return b"%b/%d/%d" % self

    @classmethod
    def parse(cls, header: bytes) -> Origin:
        source, offset, n = header.rsplit(b"/", 2)
        return cls(source, int(offset), int(n))


class Source(StrEnum):
    """Who answered."""

    MODEL = "model"
    FALLBACK = "fallback"


class Reason(StrEnum):
    """Why the fallback answered. Stable codes: dashboards and readers match on them."""

    NO_VERSION = "no_version"  # no version of the model has passed the gate
    WARMING = "warming"  # the version has learned fewer examples than the declared warm-up
    QUARANTINED = "quarantined"  # a verdict takes the model's traffic away, or that of a slice the fact shows
    OUT_OF_BOUNDS = "out_of_bounds"  # the answer lay outside the declared bounds, or was not finite
    RAISED = "raised"  # the estimator raised
    FEATURE_FAILED = "feature_failed"  # a feature raised or was not finite
    NO_LEASE = "no_lease"  # the verdicts could not be read to their end in time
    LATE = "late"  # the fact's deadline would have passed before a model's answer was written
    TOO_SLOW = "too_slow"  # the model took longer over the batch's earlier facts than the gate allows


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What was served for one fact, with its lineage and the features it was made from.

    `asked` is the model that traffic was meant for; `model` the one that answered ("constant" is
    the declared last fallback, version 0). `verdict` is the offset of the last verdict known when
    this was written. `baseline` is what the fallback model says of the same fact, so that any
    model can be compared with it pair by pair.
    """

    id: str
    key: str
    time: datetime
    value: Answer
    source: Source
    reason: str
    asked: str
    model: str
    version: int
    fingerprint: str
    fact: str  # "topic/partition/offset" of the fact
    verdict: int
    baseline: Answer | None
    features: Features


class ShadowAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model without traffic would have served."""

    id: str
    key: str
    time: datetime
    model: str
    version: int
    fingerprint: str
    value: Answer | None  # None: it raised or was not finite
    reason: str  # why it would not have been served; "" if it would


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction joined with what came true. The training set is a log of these."""

    id: str
    key: str
    time: datetime
    features: Features
    label: LabelValue
    served: Answer
    source: Source
    model: str
    version: int
    fingerprint: str  # of the code that made the features
    baseline: Answer | None


class ErrorCode(StrEnum):
    """Why a record became a dead letter. Stable: operators alert on these."""

    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    TOO_LARGE = "too_large"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_TYPE = "unknown_type"
    BAD_TIME = "bad_time"
    NO_KEY = "no_key"
    BAD_CLOUDEVENT = "bad_cloudevent"
    UNREADABLE = "unreadable"  # a record on one of our own topics that does not decode


# What decoding one of our own records may raise: msgspec lets the error of a text that is not UTF-8 through.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


class BadRecord(Exception):
    """One record cannot be processed; it costs one dead letter and nothing else."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class ControlRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    def encode(self) -> bytes:
        return self.model_dump_json().encode()


class Span(NamedTuple):
    """Examples (or facts) of one partition, from `start` up to but not including `end`."""

    partition: int
    start: int
    end: int


class State(StrEnum):
    """Where a model stands in its life."""

    SHADOW = "shadow"  # asked, compared, never served
    CANARY = "canary"  # on trial: serves a share of the keys
    LIVE = "live"  # serves its share of the facts
    QUARANTINED = "quarantined"  # not asked at all
    PROBATION = "probation"  # healed; asked in shadow until it has earned its traffic back
    DESTROYED = "destroyed"  # given up; only an operator admits it again


SUPERVISOR = "supervisor"  # who gave a verdict, if no operator did


class Verdict(ControlRecord):
    """A decision about one model. The routing table is the fold of these.

    `follows` is the offset of the verdict on the same model that this one knows as the last (-1:
    none). A verdict that follows another is ignored by every reader. `line` counts the model's
    restarts: only versions of the current line are served, and the learner's state is the newest
    version of that line. `restore` is the version the line starts from (0: from nothing), `skip`
    the examples it must not learn again.

    `share` is the part of the keys that a model gets which has no traffic by declaration: on trial as a canary, or
    promoted.

    With a `slice`, "name=value" of a feature, only the facts that show it are meant: QUARANTINED has others answer them,
    any other state gives them back. The model's own state and line stay as they are.

    A verdict on the model "" is an operator's on the supervisor itself: QUARANTINED holds it, LIVE releases it.
    While it is held, every reader ignores verdicts by a supervisor.
    """

    model: str
    state: State
    follows: int
    line: int = 0
    restore: int = 0
    skip: tuple[Span, ...] = ()
    share: float = 0.0
    slice: str = ""
    policy: str
    reason: str
    evidence: dict[str, float] = Field(default_factory=dict)
    by: str = SUPERVISOR
    incident: str = ""
    at_ms: int


class Manifest(ControlRecord):
    """One version of a model: what it is, what it has learned, and how to check its bytes.

    `spans` are those learned since the parent, in order of learning, one per learn call if the
    model learns in mini-batches; `offsets` is, per partition of `examples`, the next one to learn.
    `probes` are pairs of features and the answer this version gave when it was published.
    """

    model: str
    version: int
    line: int
    parent: int
    fingerprint: str
    environment: dict[str, str]
    spans: tuple[Span, ...]
    skipped: tuple[Span, ...] = ()
    offsets: dict[int, int]
    learned: int  # examples since the line's beginning, its restored part included
    error: float | None = None  # progressive error since the parent, in the task's metric
    baseline_error: float | None = None
    probes: tuple[tuple[Features, Answer], ...] = ()
    size: int
    chunks: int
    sha256: str
    published_ms: int
    signature: str = ""  # hex HMAC-SHA256 over this record without its signature


class Moments(ControlRecord):
    """Count, sum and extremes of finite numbers."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float | None = None
    high: float | None = None


class Sketch(ControlRecord):
    """The distribution of a column in one window: counts of bins that are the same everywhere, so that
    sketches are added bin by bin. See `models.sketch` for the bins.

    `count` values were looked at, of which `nulls` were None or not finite.
    """

    count: int = 0
    nulls: int = 0
    bins: dict[str, int] = Field(default_factory=dict)


class Slice(ControlRecord):
    """What one value of a declared slice showed in one window. Errors are sums over `labelled` examples."""

    facts: int = 0  # estimated, if the window was sampled
    labelled: int = 0
    error: float = 0.0
    baseline_error: float = 0.0
    worse: Moments = Moments()  # of error minus baseline error
    residuals: Moments = Moments()  # label minus answer


WAITED = "waited_ms"  # in the counts of score's vitals without a model: the longest that a fact had to wait


class Vitals(ControlRecord):
    """What one agent saw of one model in one window of time.

    `spans` are the input records covered, so that a repeat is not counted twice. Errors are sums
    over `labelled` examples in the task's metric; `baseline_error` is over the same examples.
    """

    agent: Literal["ingest", "score", "join", "learn"]
    replica: str
    model: str  # "" for what concerns no single model
    version: int = 0
    line: int = 0
    spans: tuple[Span, ...] = ()
    from_ms: int
    to_ms: int
    # score
    asked: int = 0
    served: int = 0
    warming: int = 0  # of those asked, by a version that has learned too little to be served
    out_of_bounds: int = 0
    raised: int = 0
    seconds: float = 0.0  # spent predicting
    answers: Moments = Moments()
    gate: str = ""  # why the newest version was refused; "" if it was not
    # learn
    learned: int = 0
    labelled: int = 0
    error: float = 0.0
    baseline_error: float = 0.0
    # any agent
    counts: dict[str, int] = Field(default_factory=dict)
    trouble: str = ""  # a partition that stopped, and why
    # What the judgement knows the world by. Sampled where it says so; bounded in size everywhere.
    event_ms: int = 0  # the newest event time among the facts or events covered
    sketch: Sketch = Sketch()  # score: of a sample of the model's answers; join: of a sample of the labels
    features: dict[str, Sketch] = Field(default_factory=dict)  # score: of a sample of the facts
    slices: dict[str, Slice] = Field(default_factory=dict)  # by "name=value"
    ages: Moments = Moments()  # score: seconds from event time to append time, of a sample
    errors: Moments = Moments()  # learn: of the errors, each one
    baselines: Moments = Moments()  # learn: of the baseline's errors over the same examples
    against: Moments = Moments()  # learn: own error minus that of what another model served
    against_error: float = 0.0  # learn: sum of those others' errors
    products: float = 0.0  # learn: sum of error times baseline error, for the variance of their difference
    residuals: Moments = Moments()  # learn: label minus answer, by probability for classes
    wrong: int | None = None  # learn: of `errors.count` answers, those that held another class for likelier
    delays: Moments = Moments()  # join: seconds from a prediction's append to its outcome's
    golden: Moments = Moments()  # learn: how far answers to the golden facts moved, one per version


class IncidentStep(ControlRecord):
    state: str  # detected, quarantined, restored, relearned, probation, re-admitted, destroyed
    at_ms: int
    reason: str = ""


class Incident(ControlRecord):
    """An episode of one model from detection to resolution; the newest record of an id counts."""

    id: str
    model: str
    slice: str = ""  # of the facts that it concerns; "" for all of the model's
    policy: str
    evidence: dict[str, float] = Field(default_factory=dict)
    timeline: tuple[IncidentStep, ...] = ()
    resolved: bool = False
