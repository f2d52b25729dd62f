"""Who answers a fact, and why: models asked in batches, the fallback in their place. Pure.

What comes out depends on the rows, the routing, the versions and whether a lease holds; never on who
calls, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..topics.messages import Answer, Features, Moments, Reason, Source, State
from .fastpath import Raised, Scorer
from .features import FeatureFailure
from .pipeline import CONSTANT, Pipeline
from .routing import Route, Routing

ASKED_STATES = frozenset({State.LIVE, State.SHADOW, State.PROBATION})


@dataclass(frozen=True)
class Serving:
    """A version that passed the gate."""

    model: str
    version: int
    line: int
    learned: int
    scorer: Scorer


@dataclass(frozen=True)
class View:
    """What score knows when it answers a batch."""

    routing: Routing
    versions: Mapping[str, Serving]
    lease: bool

    def askable(self, model: str) -> Serving | None:
        """The version of a model that may be asked: of the line in force, in a state that is asked."""
        route, version = self.routing.routes[model], self.versions.get(model)
        if not self.lease or version is None or version.line != route.line:
            return None
        return version if route.state in ASKED_STATES else None


class Served(NamedTuple):
    """The answer to one fact."""

    value: Answer
    source: Source
    reason: str
    asked: str
    model: str
    version: int
    baseline: Answer | None


class Shadow(NamedTuple):
    """What a model without traffic says of the fact at `place` in the batch."""

    place: int
    model: str
    version: int
    value: Answer | None
    reason: str


@dataclass
class Observed:
    """What a batch showed of one model."""

    version: int = 0
    line: int = 0
    asked: int = 0
    served: int = 0
    out_of_bounds: int = 0
    raised: int = 0
    seconds: float = 0.0
    answers: Moments = field(default_factory=Moments)

    def add(self, other: Observed) -> None:
        self.version, self.line = other.version, other.line
        self.asked += other.asked
        self.served += other.served
        self.out_of_bounds += other.out_of_bounds
        self.raised += other.raised
        self.seconds += other.seconds
        self.answers = merged(self.answers, other.answers)


@dataclass(frozen=True)
class Answers:
    served: list[Served]
    shadows: list[Shadow]
    observed: dict[str, Observed]


Rows = Sequence[Features | FeatureFailure]


def answer(
    pipeline: Pipeline, view: View, ids: Sequence[str], rows: Rows, clock: Callable[[], float]
) -> Answers:
    """One `Served` per row, in order, each inside the bounds; `clock` is monotonic seconds."""
    asked = pipeline.route_for(ids)
    said: dict[str, _Said] = {}
    for model, where in _questions(pipeline, view, asked, rows).items():
        version = view.askable(model)
        if version is not None and where:
            said[model] = _ask(pipeline, version, where, rows, clock)
    fallback = said.get(pipeline.fallback)
    if fallback is not None and warming(pipeline, fallback.version):
        fallback = None
    served = []
    for i, model in enumerate(asked):
        baseline = fallback.good.get(i) if fallback else None
        served.append(_served(pipeline, view, said.get(model), i, model, rows[i], baseline))
    observed = {model: each.observed for model, each in said.items()}
    for each in served:
        if each.source is Source.MODEL:
            observed[each.model].served += 1
    return Answers(served, _shadows(pipeline, view, said), observed)


@dataclass(frozen=True)
class _Said:
    """A model's answers by place in the batch: those that may be served, and why the others may not."""

    version: Serving
    good: dict[int, Answer]
    bad: dict[int, Reason]
    observed: Observed


def _questions(pipeline: Pipeline, view: View, asked: Sequence[str], rows: Rows) -> dict[str, list[int]]:
    """Which rows each model is asked: its own traffic, or all of them where it has none."""
    whole = [i for i, row in enumerate(rows) if not isinstance(row, FeatureFailure)]
    questions = {}
    for model, route in view.routing.routes.items():
        if has_traffic(pipeline, route) and len(pipeline.shares) > 1 and model != pipeline.fallback:
            questions[model] = [i for i in whole if asked[i] == model]
        else:
            questions[model] = whole
    return questions


def has_traffic(pipeline: Pipeline, route: Route) -> bool:
    return route.state is State.LIVE and pipeline.shares.get(route.model, 0.0) > 0


def warming(pipeline: Pipeline, version: Serving) -> bool:
    """Whether the version has learned too little to be served."""
    return version.learned < pipeline.models[version.model].warmup


def _ask(
    pipeline: Pipeline, version: Serving, where: Sequence[int], rows: Rows, clock: Callable[[], float]
) -> _Said:
    names = pipeline.model_features[version.model]
    whole = len(names) == len(pipeline.graph.wanted)
    asked: list[Features] = []
    for i in where:
        row = rows[i]
        assert not isinstance(row, FeatureFailure)
        asked.append(row if whole else {name: row[name] for name in names})
    began = clock()
    answers = version.scorer(asked)
    seconds = clock() - began
    good: dict[int, Answer] = {}
    bad: dict[int, Reason] = {}
    admits = pipeline.bounds.admits
    for i, each in zip(where, answers, strict=True):
        if isinstance(each, Raised):
            bad[i] = Reason.RAISED
        elif admits(each):
            good[i] = each
        else:
            bad[i] = Reason.OUT_OF_BOUNDS
    raised = sum(reason is Reason.RAISED for reason in bad.values())
    observed = Observed(
        version=version.version,
        line=version.line,
        asked=len(where),
        out_of_bounds=len(bad) - raised,
        raised=raised,
        seconds=seconds,
        answers=moments([a for a in good.values() if not isinstance(a, dict)]),
    )
    return _Said(version, good, bad, observed)


def _served(
    pipeline: Pipeline,
    view: View,
    said: _Said | None,
    i: int,
    model: str,
    row: Features | FeatureFailure,
    baseline: Answer | None,
) -> Served:
    reason = _why_not(pipeline, view, said, i, model, row)
    if not reason:
        assert said is not None
        return Served(said.good[i], Source.MODEL, "", model, model, said.version.version, baseline)
    if baseline is not None:
        version = view.versions[pipeline.fallback].version
        return Served(baseline, Source.FALLBACK, reason, model, pipeline.fallback, version, baseline)
    return Served(pipeline.constant, Source.FALLBACK, reason, model, CONSTANT, 0, None)


def _why_not(
    pipeline: Pipeline,
    view: View,
    said: _Said | None,
    i: int,
    model: str,
    row: Features | FeatureFailure,
) -> str:
    """Why the model does not answer this fact; "" if it does."""
    if isinstance(row, FeatureFailure):
        return Reason.FEATURE_FAILED.value
    if not view.lease:
        return Reason.NO_LEASE.value
    if view.routing.routes[model].state is not State.LIVE:
        return Reason.QUARANTINED.value
    if said is None:
        return Reason.NO_VERSION.value
    if warming(pipeline, said.version):
        return Reason.WARMING.value
    reason = said.bad.get(i)
    return reason.value if reason is not None else ""


def _shadows(pipeline: Pipeline, view: View, said: Mapping[str, _Said]) -> list[Shadow]:
    """The fallback's answers stand in every prediction; they need no record of their own."""
    shadows = []
    for model, each in said.items():
        if has_traffic(pipeline, view.routing.routes[model]) or model == pipeline.fallback:
            continue
        version = each.version.version
        shadows += [Shadow(i, model, version, value, "") for i, value in each.good.items()]
        shadows += [Shadow(i, model, version, None, reason.value) for i, reason in each.bad.items()]
    return shadows


def moments(numbers: Sequence[float]) -> Moments:
    if not numbers:
        return Moments()
    return Moments(
        count=len(numbers),
        total=sum(numbers),
        squares=sum(n * n for n in numbers),
        low=min(numbers),
        high=max(numbers),
    )


def merged(a: Moments, b: Moments) -> Moments:
    if not a.count or not b.count:
        return a if a.count else b
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    return Moments(
        count=a.count + b.count,
        total=a.total + b.total,
        squares=a.squares + b.squares,
        low=min(a.low, b.low),
        high=max(a.high, b.high),
    )
