"""Another kind of task, on River's own data, runs unchanged through the same agents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec
from river import datasets

from riverkeeper.models.fastpath import Scorer
from riverkeeper.models.quality import learn, loss
from riverkeeper.models.routing import Routing
from riverkeeper.models.serving import Serving, View, answer
from riverkeeper.topics.messages import Features, Source
from tests.brokers.broker import Broker
from tests.system import account
from tests.system.harness import Event, world
from tests.system.pipelines import SEGMENT, segments
from tests.system.play import finished

LATE = 60  # pages later comes the report: labels are never there when they are asked for


def pages() -> Iterator[Event]:
    """The 1 250 pages of River's Phishing, each reported some pages later."""
    waiting: list[Event] = []
    for i, (x, y) in enumerate(datasets.Phishing()):
        page, host, time = f"p{i}", f"h{i % 16}", 1_700_000_000_000 + i * 1_000
        fact = {"id": f"{page}/seen", "type": "page", "time": time, "page": page, "host": host} | x
        yield Event(host, msgspec.json.encode(fact))
        report = {"id": f"{page}/report", "type": "report", "time": time, "page": page, "phishing": y}
        waiting.append(Event(host, msgspec.json.encode(report)))
        if len(waiting) > LATE:
            yield waiting.pop(0)
    yield from waiting


async def test_binary_classification(broker: Broker) -> None:
    async with world(broker, "pages") as it:
        events = pages()
        async with it.running():
            while chunk := list(islice(events, 100)):
                await it.send(chunk)
                await finished(it, it.sent)  # so that versions come before the facts they answer
        await it.outside.read_up()
        found = account.adds_up(it.pipeline, it.outside)
        assert len(found.facts) == len(found.outcomes) == len(found.examples) == 1_250
        account.learned_once(it.outside, account.manifests(it.outside), to_the_end=True)

        judged = [e for e in found.examples if e.source is Source.MODEL]
        assert len(judged) > 900 and {e.model for e in judged} == {"logistic"}
        assert all(e.baseline is not None for e in judged)
        served = sum(loss("binary", e.served, e.label) for e in judged) / len(judged)
        prior = sum(loss("binary", e.baseline or 0.0, e.label) for e in judged) / len(judged)
        assert served < 0.7 * prior, f"log loss {served:.3f} of the model, {prior:.3f} of the prior"


def test_multiclass_is_served_and_judged_by_class() -> None:
    pipeline = segments("segments")
    estimators = {name: model.factory() for name, model in pipeline.models.items()}
    routing = Routing.declared(pipeline.models, pipeline.serving)
    images = datasets.ImageSegments()  # type: ignore[no-untyped-call]
    errors = {"softmax": 0.0, "prior": 0.0}
    for i, (x, y) in enumerate(iter(images)):
        row: Features = {name: float(x[name.replace("_", "-")]) for name in SEGMENT}
        if i >= 500:
            serving = {
                name: Serving(name, 1, 0, i, Scorer("multiclass", estimator))
                for name, estimator in estimators.items()
            }
            said = answer(pipeline, View(routing, serving, lease=True), [str(i)], [row], lambda: 0.0)
            (served,) = said.served
            assert served.source is Source.MODEL and isinstance(served.value, dict)
            assert abs(sum(served.value.values()) - 1.0) < 1e-6
            assert served.baseline is not None
            errors["softmax"] += loss("multiclass", served.value, y)
            errors["prior"] += loss("multiclass", served.baseline, y)
        for estimator in estimators.values():
            learn("multiclass", estimator, row, y)
    assert errors["softmax"] < 0.6 * errors["prior"], errors
    unled = answer(pipeline, View(routing, {}, lease=False), ["a"], [row], lambda: 0.0).served[0]
    assert unled.value == pipeline.constant, "the constant is a probability for each class, too"
