"""Every fact has an answer inside the bounds, also when no model of the pipeline may say anything.

The features change: no version there is fits the code that serves, the model's no more than the baseline's.
Or the model is refused, and the baseline in quarantine. A fallback that is a model, too, does not answer
then. The last one is a constant of the declaration: it needs no version and no features, and it is
checked against the bounds when the declaration is read.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from river import linear_model

from riverkeeper import Bounds, Pipeline, feature
from riverkeeper.agents.score import Score
from riverkeeper.models.features import PipelineError
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import State, Verdict
from tests.agents.loop import everything, made
from tests.agents.tiny import Sale, runtime, tiny
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand, fact
from tests.counterexamples.published import outs, sealed
from tests.counterexamples.without import Remedy
from tests.topics.logs import until, writing

REMEDIES = [
    Remedy(
        "models/serving.py",
        "return Served(pipeline.constant, Source.FALLBACK, reason, model, CONSTANT, 0, None)",
        'return Served(float("nan"), Source.FALLBACK, reason, model, CONSTANT, 0, None)',
        what="the constant answers",
    ),
    Remedy(
        "models/pipeline.py",
        "        if not self.bounds.admits(constant):\n",
        "        if False:\n",
        what="the constant lies inside the bounds",
    ),
    Remedy(
        "models/pipeline.py",
        "return float(min(max(middle, self.bounds.low), self.bounds.high))",
        "return middle",
        what="the constant that is not declared is moved inside",
    ),
]

FACTS = 3
BOUNDS, CONSTANT = Bounds(1.0, 9.0), 7.0


@feature
def doubled(sold: Sale) -> float:
    return 2.0 * sold.amount


def declared(**changed: Any) -> dict[str, Any]:
    models = {"main": linear_model.LinearRegression, "base": linear_model.LinearRegression}
    return {
        "partitions": 1,
        "models": models,
        "serve": "main",
        "fallback": "base",
        "bounds": BOUNDS,
        "constant": CONSTANT,
        **changed,
    }


async def said(broker: Broker, pipeline: Pipeline, refused: int) -> list[tuple[float, str]]:
    """What a scorer answers to all facts there are, once it has looked at every version."""
    async with ByHand(Score(runtime(pipeline, broker, limits=BY_HAND))) as byhand:
        score = byhand.agent
        assert isinstance(score, Score)
        await until(lambda: len(score.versions.refusals) == refused)
        await byhand.take_over(0)
        await byhand.read_to(pipeline.topic("facts"), FACTS)
    answers = [msgspec.json.decode(r.value or b"") for r in await everything(broker, pipeline, "predictions")]
    return [(answer["value"], answer["reason"]) for answer in answers]


async def test_no_version_fits_the_features(real: Broker) -> None:
    async with made(real, **declared()) as before, writing(real) as writer:
        for model in before.models:
            estimator = linear_model.LinearRegression(intercept_init=5.0)
            await writer.write(outs(before, sealed(before, model, 1, estimator)))
        await writer.write([fact(before, n) for n in range(FACTS)])
        after = tiny(before.name, **declared(features=["amount", doubled]))
        assert after.fingerprint != before.fingerprint
        assert await said(real, after, refused=2) == [(CONSTANT, "no_version")] * FACTS


async def test_the_model_is_refused_and_the_baseline_in_quarantine(real: Broker) -> None:
    async with made(real, **declared()) as pipeline, writing(real) as writer:
        for model, fingerprint in (("main", "another"), ("base", "")):
            estimator = linear_model.LinearRegression(intercept_init=5.0)
            version = sealed(pipeline, model, 1, estimator, fingerprint=fingerprint)
            await writer.write(outs(pipeline, version))
        out = Verdict(
            model="base", state=State.QUARANTINED, follows=-1, policy="operator", reason="leaks", at_ms=0
        )
        await writer.write([Out(pipeline.topic("verdicts"), 0, b"base", out.encode())])
        await writer.write([fact(pipeline, n) for n in range(FACTS)])
        assert await said(real, pipeline, refused=1) == [(CONSTANT, "no_version")] * FACTS


def test_a_constant_that_could_not_be_served_is_an_error_at_import() -> None:
    with pytest.raises(PipelineError, match="constant 10.0 lies outside 1.0..9.0"):
        tiny(**declared(constant=10.0))


def test_without_a_declaration_it_is_inside_the_bounds_all_the_same() -> None:
    assert tiny(**declared(constant=None)).constant == BOUNDS.low
