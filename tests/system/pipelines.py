"""The pipelines of the system tests, each under a name of its own: topics of one broker never meet."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from datetime import timedelta
from typing import Any

from river import base, dummy, linear_model, multiclass
from river.preprocessing import StandardScaler

from riverkeeper import Bounds, Fact, Label, Model, Pipeline, Publish, Quality, feature
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
        quality=demo.quality,
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


def levels(name: str) -> Pipeline:
    """A model with traffic that leaves its bounds once it has learned a glitch."""
    return Pipeline(
        name=name,
        facts=Reading,
        outcomes=Truth,
        key="sensor",
        join="number",
        features=["level", "kind"],
        label=Label("level", within=timedelta(hours=1)),
        models={"runaway": Runaway, "identity": Model(Identity, features=("level",))},
        serve="runaway",
        bounds=LEVELS,
        fallback="identity",
        constant=0.0,
        partitions=2,
        publish=Publish(every_examples=40, every=timedelta(seconds=0.5), budget=0.5),
        quality=Quality(margin=0.4, min_examples=1_000_000),
    )


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
        quality=Quality(margin=0.4, min_examples=400),
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


KINDS: Mapping[str, Callable[[str], Pipeline]] = {"flights": flights, "levels": levels, "pages": pages}
