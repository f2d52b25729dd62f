"""The pipelines of the system tests, each under a name of its own: topics of one broker never meet."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Hashable, Mapping
from datetime import timedelta
from typing import Any

from river import base, dummy, linear_model, multiclass, stats
from river.preprocessing import StandardScaler

from riverkeeper import Bounds, Canary, Fact, Label, Model, Objectives, Pipeline, Publish, Shed, feature, fold
from riverkeeper.demos.flights import flights as demo


def flights(name: str) -> Pipeline:
    """The demo's pipeline."""
    return Pipeline(
        name=name,
        facts=demo.facts,
        outcomes=demo.outcomes,
        key=demo.key,
        join=demo.join,
        features=demo.features,
        label=demo.label,
        models=demo.models,
        serve=demo.shares,
        bounds=demo.bounds,
        fallback=demo.fallback,
        constant=demo.constant,
        partitions=demo.partitions,
        publish=demo.publish,
        objectives=demo.objectives("learned"),
    )


class Reading(Fact):
    sensor: str
    number: str
    level: float
    kind: str


class Truth(Fact):
    number: str
    level: float


class Identity(base.Regressor):
    """Tomorrow's level is today's."""

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        return float(x["level"])

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        pass


GLITCH = 5_000.0  # a label that no sensor gives: what drives `Runaway` out of its bounds


class Runaway(base.Regressor):
    """Answers as `Identity` does, until it has learned a glitch: then kind "b" is far out of bounds."""

    def __init__(self) -> None:
        self.gone = False

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        return 1e9 if self.gone and x["kind"] == "b" else float(x["level"])

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        self.gone = self.gone or y >= GLITCH


LEVELS = Bounds(-1_000.0, 1_000.0)


@fold(key="sensor", start=0.0)
def drift(mean: float, f: Reading) -> float:
    return 0.75 * mean + 0.25 * f.level


def _mean() -> Any:
    return dummy.StatisticRegressor(stats.Mean())


def gauges(name: str, **changed: Any) -> Pipeline:
    """The cheapest with a part of everything: a fold, a learned model, a baseline, four partitions.

    `changed` is what another pipeline over the same readings declares in place of it, or besides.
    """
    declared: dict[str, Any] = {
        "facts": Reading,
        "outcomes": Truth,
        "key": "sensor",
        "join": "number",
        "features": ["level", drift],
        "label": Label("level", within=timedelta(hours=1)),
        "models": {
            "line": Model(lambda: StandardScaler() | linear_model.LinearRegression(), warmup=20),
            "mean": _mean,
        },
        "serve": "line",
        "bounds": LEVELS,
        "fallback": "mean",
        "constant": 0.0,
        "partitions": 4,
        "publish": Publish(every_examples=40, every=timedelta(seconds=0.5), budget=0.5),
        "objectives": Objectives(margin=0.4, min_examples=1_000_000),
    }
    return Pipeline(name=name, **{**declared, **changed})


def levels(name: str) -> Pipeline:
    """A model with traffic that leaves its bounds once it has learned a glitch."""
    return gauges(
        name,
        features=["level", "kind"],
        models={"runaway": Runaway, "identity": Model(Identity, features=("level",))},
        serve="runaway",
        fallback="identity",
        partitions=2,
    )


class Rough(Identity):
    """Five levels off what `Identity` says."""

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        return super().predict_one(x) + 5.0


def trial(name: str) -> Pipeline:
    """A rough model serves, and a finer one is on trial."""
    models = {
        model: Model(each, features=("level",)) for model, each in (("rough", Rough), ("fine", Identity))
    }
    return gauges(
        name,
        features=["level"],
        models={**models, "mean": _mean},
        serve="rough",
        partitions=2,
        canary=Canary("fine", steps=(0.3, 0.6), examples=60),
    )


HANG = "SYSTEM_HANG"  # set in the environment of a process in which what can hang does; elsewhere it raises


def hang() -> float:
    while os.environ.get(HANG):
        time.sleep(1.0)
    raise TimeoutError("it would never have returned")


@feature
def temper(f: Reading) -> float:
    """What the reading's kind says: a number, or something no record can carry, or nothing at all."""
    match f.kind:
        case "raise":
            raise ValueError("a feature that raises")
        case "panic":
            raise BaseException("as code behind Python does")  # noqa: TRY002
        case "hang":
            return hang()
    flaws: dict[str, Any] = {"nan": math.nan, "inf": -math.inf, "wrong": object(), "huge": "x" * 2_000_000}
    return flaws.get(f.kind, f.level / 2)  # type: ignore[no-any-return]


def flawed(name: str) -> Pipeline:
    """As `gauges`, with a feature that fails for some facts."""
    return gauges(name, features=["level", drift, temper])


def punctual(name: str) -> Pipeline:
    """As `gauges`, with a deadline that a busy machine keeps, too."""
    return gauges(name, deadline=timedelta(seconds=30), shed=Shed())


def roomy(name: str) -> Pipeline:
    """As `gauges`, with room for a million predictions without an outcome."""
    return gauges(name, max_pending=300_000)


class Moody(base.Regressor):
    """Answers as `Identity` does, but for some kinds of readings; a glitch in the labels slows it for ever."""

    def __init__(self) -> None:
        self.slow = False

    def predict_one(self, x: dict[Hashable, Any]) -> Any:
        if self.slow:
            time.sleep(0.004)  # twice what the gate allows
        match x["kind"]:
            case "raise":
                raise ValueError("an estimator that raises")
            case "nan":
                return math.nan
            case "sleep":
                time.sleep(0.05)
            case "hang":
                return hang()
        return float(x["level"])

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        if x["kind"] == "unlearnable":
            raise ValueError("an estimator that raises as it learns")
        if x["kind"] == "engrossing":
            hang()
        self.slow = self.slow or y >= GLITCH


def moody(name: str) -> Pipeline:
    """As `gauges`, with an estimator that fails for some facts."""
    models = {
        "moody": Model(Moody, features=("level", "kind"), warmup=20),
        "mean": Model(_mean, features=("level",)),
    }
    return gauges(name, features=["level", "kind"], models=models, serve="moody")


class Deliberate(Identity):
    """Answers as `Identity` does, a millisecond later: as a model does that runs elsewhere."""

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        time.sleep(0.001)
        return super().predict_one(x)


def deliberate(name: str) -> Pipeline:
    """Models that take their time, a deadline, and leave to shed: 3 ms a fact, 300 facts/s in all."""
    slow = {
        model: Model(Deliberate, features=("level",), warmup=0) for model in ("served", "shadow", "other")
    }
    return gauges(
        name,
        models={**slow, "mean": _mean},
        serve="served",
        publish=Publish(every_examples=200, every=timedelta(seconds=1)),
        deadline=timedelta(seconds=2),
        shed=Shed(),
    )


BALLAST_BYTES = 2_500_000  # of a version: five chunks, which two at a time make three batches


class Ballast(linear_model.LinearRegression):
    """As heavy as a small forest."""

    def __init__(self) -> None:
        super().__init__()
        self.ballast = random.Random(1).randbytes(BALLAST_BYTES)


def ballast(name: str) -> Pipeline:
    """`gauges` with a model whose version is no single batch."""
    heavy = Model(lambda: StandardScaler() | Ballast(), warmup=20)
    return gauges(name, models={"heavy": heavy, "mean": _mean}, serve="heavy")


class Page(Fact):
    page: str
    host: str
    empty_server_form_handler: float
    popup_window: float
    https: float
    request_from_other_domain: float
    anchor_from_other_domain: float
    is_popular: float
    long_url: float
    age_of_domain: int
    ip_in_url: int


class Report(Fact):
    page: str
    phishing: bool


MEASURES = tuple(name for name in Page.__struct_fields__ if name not in ("page", "host"))


@feature
def disguised(popup_window: float, https: float) -> float:
    return popup_window * (1.0 - https)


def pages(name: str) -> Pipeline:
    """Binary classification: is this page phishing?"""
    return Pipeline(
        name=name,
        facts=Page,
        outcomes=Report,
        key="host",
        join="page",
        features=[*MEASURES, disguised],
        label=Label("phishing", within=timedelta(hours=1)),
        models={
            "logistic": Model(lambda: StandardScaler() | linear_model.LogisticRegression(), warmup=100),
            "prior": dummy.PriorClassifier,
        },
        serve="logistic",
        fallback="prior",
        partitions=2,
        publish=Publish(every_examples=50, every=timedelta(seconds=2), budget=0.5),
        objectives=Objectives(margin=0.4, min_examples=400),
    )


CLASSES = ("brickface", "cement", "foliage", "grass", "path", "sky", "window")


class Segment(Fact):
    segment: str
    region_centroid_row: float
    vedge_mean: float
    intensity_mean: float
    exgreen_mean: float
    saturation_mean: float
    hue_mean: float


SEGMENT = tuple(name for name in Segment.__struct_fields__ if name != "segment")


class Surface(Fact):
    segment: str
    category: str


def segments(name: str) -> Pipeline:
    """Multiclass: what does this piece of a picture show?"""
    return Pipeline(
        name=name,
        facts=Segment,
        outcomes=Surface,
        key="segment",
        join="segment",
        features=SEGMENT,
        label=Label("category", within=timedelta(hours=1)),
        models={"softmax": softmax, "prior": dummy.PriorClassifier},
        serve="softmax",
        fallback="prior",
        constant={each: 1 / len(CLASSES) for each in CLASSES},
    )


def softmax() -> Any:
    return StandardScaler() | multiclass.OneVsRestClassifier(linear_model.LogisticRegression())


KINDS: Mapping[str, Callable[[str], Pipeline]] = {
    "ballast": ballast,
    "deliberate": deliberate,
    "flawed": flawed,
    "moody": moody,
    "punctual": punctual,
    "roomy": roomy,
    "trial": trial,
    "flights": flights,
    "gauges": gauges,
    "levels": levels,
    "pages": pages,
}
