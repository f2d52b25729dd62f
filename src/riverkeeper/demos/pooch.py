"""The pooch demo's pipelines: how many likes will a dog's post get, asked when it is posted.

`pooch` came first. Its `line` fits likes by a straight line in each region, without a link function: what keeps its
answers above zero is nothing but the data. `pooch_2` is what came later, with features that the first had not. Its
`poet` counts the rhymes of a caption, pair by pair, so that its time grows with the square of the caption's length.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

from river import base, dummy, linear_model, optim, stats
from river.compose import Select
from river.preprocessing import OneHotEncoder, StandardScaler

from .. import Bounds, Fact, Label, Model, Objectives, Pipeline, Publish, feature

MAX_LIKES = 100_000.0  # as many as the largest account has followers
PARTITIONS = 2


class Post(Fact):
    post: str
    time: datetime
    dog: str
    breed: str
    region: str
    followers: int
    caption: str


class Likes(Fact):
    post: str
    likes: float


@feature
def reach(f: Post) -> float:
    return math.log10(1 + f.followers)


@feature
def part(f: Post) -> str:
    return "evening" if 18 <= f.time.hour < 23 else "night" if f.time.hour < 7 else "day"


class ByRegion(base.Regressor):
    """An estimator of its own for each region, made when the first post from there is learned."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.regions: dict[str, Any] = {}

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        model = self.regions.get(x["region"], self.model)
        return float(model.predict_one(x))

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        if x["region"] not in self.regions:
            self.regions[x["region"]] = self.model.clone()
        self.regions[x["region"]].learn_one(x, y)


class Logarithm(base.Regressor):
    """A log link: whatever the model inside says, the answer lies between none and `MAX_LIKES`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        exponent = min(max(self.model.predict_one(x), 0.0), math.log1p(MAX_LIKES))
        return min(math.expm1(exponent), MAX_LIKES)

    def learn_one(self, x: dict[Hashable, Any], y: float) -> None:
        self.model.learn_one(x, math.log1p(y))


class Rhymes(base.Transformer):
    """How many pairs of a caption's words end alike, and how many words there are."""

    def transform_one(self, x: dict[Hashable, Any]) -> dict[Hashable, Any]:
        words = x["caption"].split()
        rhymes = sum(one[-2:] == other[-2:] for one, other in combinations(words, 2))
        return {"rhymes": math.log1p(rhymes), "words": math.log1p(len(words))}


def line() -> base.Regressor:
    return ByRegion(Select("reach") | StandardScaler() | linear_model.LinearRegression(optim.SGD(0.01)))


def steady() -> base.Regressor:
    return ByRegion(
        Logarithm(Select("reach") | StandardScaler() | linear_model.LinearRegression(optim.SGD(0.01)))
    )


def encoded() -> Any:
    return (Select("reach") | StandardScaler()) + (Select("breed", "part") | OneHotEncoder())


def tuned() -> base.Regressor:
    return ByRegion(Logarithm(encoded() | linear_model.LinearRegression(optim.SGD(0.05))))


def poet() -> base.Regressor:
    seen = encoded() + (Select("caption") | Rhymes() | StandardScaler())
    return ByRegion(Logarithm(seen | linear_model.LinearRegression(optim.SGD(0.03))))


def typical() -> base.Regressor:
    return ByRegion(dummy.StatisticRegressor(stats.Mean()))


def network(name: str, features: list[Any], models: dict[str, Model], serve: dict[str, float]) -> Pipeline:
    """A pipeline over the network's posts; all but features and models is the same in each."""
    return Pipeline(
        name=name,
        facts=Post,
        outcomes=Likes,
        key="dog",
        join="post",
        features=features,
        label=Label("likes", within=timedelta(hours=24)),
        models={**models, "typical": Model(typical, features=("region",), warmup=0)},
        serve=serve,
        fallback="typical",
        bounds=Bounds(0.0, MAX_LIKES),
        constant=20.0,
        slices=["region"],
        partitions=PARTITIONS,
        publish=Publish(every_examples=200, every=timedelta(seconds=2)),
        objectives=Objectives(margin=0.25),
    )


pooch = network(
    "pooch",
    ["region", reach],
    {
        "line": Model(line, features=("region", "reach"), warmup=400),
        "steady": Model(steady, features=("region", "reach"), warmup=400),
    },
    {"line": 0.7, "steady": 0.3},
)

pooch_2 = network(
    "pooch-2",
    ["region", "breed", "caption", reach, part],
    {
        "tuned": Model(tuned, features=("region", "reach", "breed", "part"), warmup=400),
        "poet": Model(poet, features=("region", "reach", "breed", "part", "caption"), warmup=400),
    },
    {"tuned": 0.5, "poet": 0.5},
)
