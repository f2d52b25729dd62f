"""What score says that it answered is what is acknowledged, and the records that it names as covered are those."""

from __future__ import annotations

from aiokafka import TopicPartition
from river import linear_model

from riverkeeper import Model
from riverkeeper.agents.score import Score, ScoreWork
from riverkeeper.models.features import FoldState
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import Span
from riverkeeper.topics.store import Progress
from tests.agents.tiny import Stored, runtime, tiny
from tests.counterexamples.byhand import fact
from tests.counterexamples.published import outs, sealed

TP = TopicPartition("tiny.facts", 0)


def stored(offset: int, out: Out) -> Stored:
    return Stored(offset, out.value, out.key, out.headers, out.topic)


async def test_nothing_is_told_or_covered_before_it_is_acknowledged() -> None:
    model = linear_model.LinearRegression
    pipeline = tiny(partitions=1, models={"line": Model(model, warmup=0)})
    score = Score(runtime(pipeline))
    score.verdicts._known_at = float("inf")  # a lease that holds
    for offset, out in enumerate(outs(pipeline, sealed(pipeline, "line", 1, model()))):
        score.versions._apply(stored(offset, out))
    await score.versions._look()
    work = ScoreWork(score, Progress({TP: 0}), FoldState(), fresh=True)
    await work.process({TP: [stored(i, fact(pipeline, i)) for i in range(3)]})
    work.delivered()
    await work.process({TP: [stored(i, fact(pipeline, i)) for i in range(3, 7)]})
    (first,) = work.vitals()
    assert (first.asked, first.spans) == (3, (Span(0, 0, 3),))
    assert work.vitals() == []
    work.delivered()
    (second,) = work.vitals()
    assert (second.asked, second.spans) == (4, (Span(0, 3, 7),))
