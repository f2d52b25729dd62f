"""Who answers a fact, and why: models asked in batches, the fallback in their place. Pure.

What comes out depends on the rows, the routing, the versions, whether a lease holds, and on the time there
is, as `clock` tells it; never on who calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..topics.messages import Answer, Features, Moments, Reason, Source, State
from .canary import point
from .fastpath import Raised, Scorer
from .features import FeatureFailure
from .gate import LIMIT_US
from .pipeline import CONSTANT, Bounds, Pipeline
from .routing import SERVING, Routing
from .sketch import merged
from .slices import slices_of

ASKED_STATES = SERVING | {State.SHADOW, State.PROBATION}
# µs per fact; a fact costs about three times that before any model is asked. A fallback that takes longer
# is no cheap one: late facts get the constant.
CHEAP_US = 20.0
SLICE = 8  # facts between two looks at the clock, of an estimator that takes them one by one
# seconds a model may take over a batch beyond what the gate allows its facts: less than a lease, more than
# a pause of the collector.
GRACE = 0.1


@dataclass(frozen=True)
class Serving:
    """A version that passed the gate."""

    model: str
    version: int
    line: int
    learned: int
    scorer: Scorer
    us_per_fact: float | None = None  # as the gate measured it


@dataclass(frozen=True)
class Pressure:
    """What time there is for a batch. `due` is, by fact, the second of `clock` at which its deadline passes.

    `rest` and `ask` are what lately was needed beside asking models (until all was written), and per fact
    for asking them; both in seconds. `batches` are still to be answered before anything is written.
    """

    due: Sequence[float] | None = None  # None: no deadline is declared
    rest: float = 0.0
    ask: float = 0.0
    batches: int = 1  # this one included
    behind: bool = False  # models without traffic are asked for the pipeline's share only


NO_PRESSURE = Pressure()


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
    warming: int = 0
    out_of_bounds: int = 0
    raised: int = 0  # those that took too long among them
    seconds: float = 0.0
    answers: Moments = field(default_factory=Moments)

    def add(self, other: Observed) -> None:
        self.version, self.line = other.version, other.line
        self.asked += other.asked
        self.served += other.served
        self.warming += other.warming
        self.out_of_bounds += other.out_of_bounds
        self.raised += other.raised
        self.seconds += other.seconds
        self.answers = merged(self.answers, other.answers)


@dataclass(frozen=True)
class Answers:
    served: list[Served]
    shadows: list[Shadow]
    observed: dict[str, Observed]
    spared: dict[str, int] = field(
        default_factory=dict
    )  # facts that a model without traffic was not asked for
    punctual: int = 0  # facts that were not late to begin with


def punctual(pressure: Pressure, now: float) -> frozenset[int] | None:
    """The most facts that can be answered by models before their deadlines; None: all of them.

    A batch is written at once, so those with the most time left come first: as many as can all wait
    for the last of them, and for as many of the batches that are written with it.
    """
    due, ready, ask = pressure.due, now + pressure.rest, pressure.ask * pressure.batches
    if due is None or ready + len(due) * ask <= min(due, default=math.inf):
        return None
    latest_first = sorted(range(len(due)), key=due.__getitem__, reverse=True)
    for asked, i in enumerate(latest_first):
        if ready + (asked + 1) * ask > due[i]:
            return frozenset(latest_first[:asked])
    return None


Rows = Sequence[Features | FeatureFailure]


def answer(
    pipeline: Pipeline,
    view: View,
    ids: Sequence[str],
    rows: Rows,
    clock: Callable[[], float],
    pressure: Pressure = NO_PRESSURE,
    keys: Sequence[str] = (),
) -> Answers:
    """One `Served` per row, in order, each inside the bounds; `clock` is monotonic seconds. `ids` and `keys` are
    the facts'; without keys no canary is asked."""
    asked = meant(pipeline, view.routing, ids, keys)
    in_time = punctual(pressure, clock())
    barred = _barred(pipeline, view.routing, rows)
    questions, spared = _questions(pipeline, view, asked, ids, rows, in_time, pressure.behind, barred)
    said: dict[str, _Said] = {}
    for model, where in questions.items():
        version = view.askable(model)
        if version is not None and where:
            said[model] = _ask(pipeline, version, where, rows, clock)
    fallback = said.get(pipeline.fallback)
    if fallback is not None and warming(pipeline, fallback.version):
        fallback = None
    count = len(rows) if in_time is None else len(in_time)
    late = _late(pressure, in_time, len(rows), clock() + (pressure.batches - 1) * count * pressure.ask)
    baselines = fallback.good if fallback else {}
    trusted = {model: each for model, each in said.items() if _may_serve(pipeline, view, each)}
    served = []
    for i, model in enumerate(asked):
        each = trusted.get(model)
        value = each.good.get(i) if each is not None and i not in late else None
        if each is not None and value is not None:
            each.observed.served += 1
            number = each.version.version
            served.append(Served(value, Source.MODEL, "", model, model, number, baselines.get(i)))
        else:
            baseline = baselines.get(i)
            instead = _instead(
                pipeline, view, said.get(model), i, model, rows[i], baseline, i in late, barred
            )
            served.append(instead)
    observed = {model: each.observed for model, each in said.items()}
    return Answers(served, _shadows(pipeline, view, said), observed, spared, count)


def meant(pipeline: Pipeline, routing: Routing, ids: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The model that each fact is meant for: the canary has its share of the keys, the others theirs of the rest."""
    models, trial = pipeline.route_for(ids), routing.trial
    if trial is None or not keys:
        return models
    return [
        trial.model if point(key) < trial.share else model for key, model in zip(keys, models, strict=True)
    ]


def _barred(pipeline: Pipeline, routing: Routing, rows: Rows) -> dict[str, frozenset[int]]:
    """The rows, by place, that models may not answer for a slice they show; models without such are left out."""
    found = {}
    for model, route in routing.routes.items():
        if route.barred:
            found[model] = frozenset(
                i
                for i, row in enumerate(rows)
                if not isinstance(row, FeatureFailure)
                and any(name in route.barred for name in slices_of(pipeline.slices, row))
            )
    return found


def _late(pressure: Pressure, in_time: frozenset[int] | None, count: int, now: float) -> Collection[int]:
    """The facts that no model may answer, looked at again now that the models have been asked."""
    due, written = pressure.due, now + pressure.rest
    if due is None or (in_time is None and written <= min(due, default=math.inf)):
        return ()
    return {i for i in range(count) if (in_time is not None and i not in in_time) or due[i] < written}


@dataclass(frozen=True)
class _Said:
    """A model's answers by place in the batch: those that may be served, and why the others may not."""

    version: Serving
    good: dict[int, Answer]
    bad: dict[int, Reason]
    observed: Observed


def _questions(
    pipeline: Pipeline,
    view: View,
    asked: Sequence[str],
    ids: Sequence[str],
    rows: Rows,
    in_time: frozenset[int] | None,
    behind: bool,
    barred: Mapping[str, Collection[int]],
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Which rows each model is asked: its own traffic, or all of them where it has none.

    Late rows are the fallback's, if it is cheap. Also: how many each model without traffic is spared.
    """
    whole = [i for i, row in enumerate(rows) if not isinstance(row, FeatureFailure)]
    timely = whole if in_time is None else [i for i in whole if i in in_time]
    sampled = [i for i in timely if pipeline.spared(ids[i])] if behind else timely
    questions, spared = {}, {}
    for model in view.routing.routes:
        if model == pipeline.fallback:
            questions[model] = whole if cheap(view.versions.get(model)) else timely
        elif has_traffic(pipeline, view.routing, model):
            many = len(pipeline.shares) > 1 or view.routing.trial is not None
            own = [i for i in timely if asked[i] == model] if many else timely
            questions[model] = [i for i in own if i not in barred[model]] if model in barred else own
        else:
            questions[model] = sampled
            if len(sampled) < len(whole) and view.askable(model) is not None:
                spared[model] = len(whole) - len(sampled)
    return questions, spared


def cheap(version: Serving | None) -> bool:
    """Whether the fallback model may be asked even for late facts."""
    return version is not None and version.us_per_fact is not None and version.us_per_fact <= CHEAP_US


def has_traffic(pipeline: Pipeline, routing: Routing, model: str) -> bool:
    """A canary that was promoted has all of it: then the others are asked in shadow, and stand by."""
    trial = routing.trial
    if trial is not None and (trial.model == model or trial.share >= 1):
        return trial.model == model
    return routing.routes[model].state is State.LIVE and pipeline.shares.get(model, 0.0) > 0


def warming(pipeline: Pipeline, version: Serving) -> bool:
    """Whether the version has learned too little to be served."""
    return version.learned < pipeline.models[version.model].warmup


def _ask(
    pipeline: Pipeline, version: Serving, where: Sequence[int], rows: Rows, clock: Callable[[], float]
) -> _Said:
    began = clock()
    asked: Sequence[Features] = rows if len(where) == len(rows) else [rows[i] for i in where]  # type: ignore[assignment,misc]  # none of them failed
    answers = _in_time(version.scorer, asked, pipeline.model_features[version.model], clock)
    seconds = clock() - began
    bad: dict[int, Reason] = dict.fromkeys(where[len(answers) :], Reason.TOO_SLOW)
    good = _good(pipeline.bounds, where, answers, bad)
    raised = sum(reason is not Reason.OUT_OF_BOUNDS for reason in bad.values())
    observed = Observed(
        version=version.version,
        line=version.line,
        asked=len(where),
        warming=len(where) if warming(pipeline, version) else 0,
        out_of_bounds=len(bad) - raised,
        raised=raised,
        seconds=seconds,
        answers=moments([a for a in good.values() if not isinstance(a, dict)]),
    )
    return _Said(version, good, bad, observed)


def _good(
    bounds: Bounds, where: Sequence[int], answers: Sequence[Answer | Raised], bad: dict[int, Reason]
) -> dict[int, Answer]:
    """The answers that may be served, by place; `bad` takes those that may not."""
    if not bad and set(map(type, answers)) == {float}:
        numbers = np.array(answers)
        if ((numbers >= bounds.low) & (numbers <= bounds.high) & np.isfinite(numbers)).all():
            return dict(zip(where, answers, strict=True))  # type: ignore[arg-type]  # floats, all of them
    good: dict[int, Answer] = {}
    for i, each in zip(where, answers, strict=False):
        if isinstance(each, Raised):
            bad[i] = Reason.RAISED
        elif bounds.admits(each):
            good[i] = each
        else:
            bad[i] = Reason.OUT_OF_BOUNDS
    return good


def _in_time(
    scorer: Scorer, rows: Sequence[Features], names: tuple[str, ...], clock: Callable[[], float]
) -> Sequence[Answer | Raised]:
    """The answers to the first rows: to all of them, unless the estimator is slower than the gate allows."""
    if scorer.fast:
        return scorer(rows, names)
    answers: list[Answer | Raised] = []
    limit = clock() + GRACE
    for start in range(0, len(rows), SLICE):
        answers += scorer(rows[start : start + SLICE], names)
        if clock() > limit + len(answers) * LIMIT_US / 1e6:
            break
    return answers


def _may_serve(pipeline: Pipeline, view: View, said: _Said) -> bool:
    """Whether the model's good answers may be served, as far as that does not depend on the fact."""
    live = view.routing.routes[said.version.model].state in SERVING
    return view.lease and live and not warming(pipeline, said.version)


def _instead(
    pipeline: Pipeline,
    view: View,
    said: _Said | None,
    i: int,
    model: str,
    row: Features | FeatureFailure,
    baseline: Answer | None,
    late: bool,
    barred: Mapping[str, Collection[int]],
) -> Served:
    """What is served in the model's place."""
    reason = _why_not(pipeline, view, said, i, model, row, late, i in barred.get(model, ()))
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
    late: bool,
    barred: bool,
) -> str:
    """Why the model does not answer this fact."""
    if isinstance(row, FeatureFailure):
        return Reason.FEATURE_FAILED.value
    if not view.lease:
        return Reason.NO_LEASE.value
    if barred or view.routing.routes[model].state not in SERVING:
        return Reason.QUARANTINED.value
    if late:
        return Reason.LATE.value
    if said is None:
        return Reason.NO_VERSION.value
    if warming(pipeline, said.version):
        return Reason.WARMING.value
    return said.bad[i].value


def _shadows(pipeline: Pipeline, view: View, said: Mapping[str, _Said]) -> list[Shadow]:
    """The fallback's answers stand in every prediction; they need no record of their own."""
    shadows = []
    for model, each in said.items():
        if has_traffic(pipeline, view.routing, model) or model == pipeline.fallback:
            continue
        version = each.version.version
        shadows += [Shadow(i, model, version, value, "") for i, value in each.good.items()]
        shadows += [Shadow(i, model, version, None, reason.value) for i, reason in each.bad.items()]
    return shadows


def moments(numbers: Sequence[float]) -> Moments:
    if not numbers:
        return Moments()
    column = np.array(numbers, dtype=np.float64)
    with np.errstate(over="ignore"):
        return Moments(
            count=len(numbers),
            total=float(column.sum()),
            squares=float(column @ column),
            low=float(column.min()),
            high=float(column.max()),
        )
