"""Each of a cause's outputs is counted: none is "not greater" because another one came before it.

One fact has an answer of the live model and one of each shadow; one outcome may join two predictions.
"""

from __future__ import annotations

from collections import Counter

import msgspec
from aiokafka import TopicPartition
from river import linear_model

from riverkeeper import Model
from riverkeeper.agents.join import Join
from riverkeeper.agents.score import Score
from riverkeeper.topics.messages import Example, Origin, ShadowAnswer, Source
from riverkeeper.topics.store import ORIGIN, Progress
from tests.agents.loop import admitted, made
from tests.agents.tiny import Stored, runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand, fact, predictions
from tests.counterexamples.joined import outcome, prediction
from tests.counterexamples.published import outs, sealed
from tests.counterexamples.without import Remedy
from tests.topics.logs import writing

REMEDIES = [
    Remedy(
        "topics/store.py",
        "            if at > seen.get(source, NOTHING_SEEN):\n",
        "            if at[0] > seen.get(source, NOTHING_SEEN)[0]:\n",
        what="the order of (offset, n)",
    ),
    Remedy(
        "agents/score.py",
        "            counted[index] += 1\n",
        "",
        what="n counts a fact's shadow answers",
    ),
    Remedy(
        "agents/score.py",
        'topic, fingerprint = self._pipeline.topic("shadow"), self._pipeline.fingerprint',
        'topic, fingerprint = self._pipeline.topic("predictions"), self._pipeline.fingerprint',
        what="shadow answers have a topic of their own",
    ),
    Remedy(
        "agents/score.py",
        "in sorted(answers.shadows, key=lambda shadow: shadow.place):",
        "in answers.shadows:",
        what="outputs in the order of their causes",
    ),
]
LINE = linear_model.LinearRegression


async def test_live_and_shadows_are_all_taken(real: Broker) -> None:
    models = {name: Model(LINE, warmup=0) for name in ("line", "one", "two", "fall")}
    async with made(real, partitions=1, models=models, fallback="fall") as pipeline:
        async with writing(real) as writer:
            for name in models:
                await writer.write(outs(pipeline, sealed(pipeline, name, 1, LINE())))
            await writer.write([fact(pipeline, i) for i in range(20)])
        async with ByHand(Score(runtime(pipeline, real, "a", BY_HAND))) as score:
            await score.take_over(0)
            await score.read_to(pipeline.topic("facts"), 20)

        assert len(await admitted(real, pipeline, "predictions")) == 20, "one answer to each fact"
        answered = await predictions(real, pipeline)
        assert [(p.id, p.model, p.source) for p in answered] == [
            (f"s{i}", "line", Source.MODEL) for i in range(20)
        ]
        shadows = [
            msgspec.json.decode(record.value or b"", type=ShadowAnswer)
            for record in await admitted(real, pipeline, "shadow")
        ]
        assert Counter((s.id, s.model) for s in shadows) == Counter(
            (f"s{i}", model) for i in range(20) for model in ("one", "two")
        )


def test_a_reader_takes_every_output_once() -> None:
    log = [(5, 0), (5, 1), (6, 0), (5, 1), (6, 0), (6, 1)]  # a repeat of three in the middle
    tp = TopicPartition("examples", 0)
    origins = [Origin(b"outcomes/0", offset, n).header() for offset, n in log]
    records = [Stored(i, b"x", headers=((ORIGIN, origin),)) for i, origin in enumerate(origins)]
    taken = Progress({tp: 0}, frozenset({"examples"})).admit(tp, records)
    assert [record.offset for record in taken] == [0, 1, 2, 5]


async def test_one_outcome_makes_an_example_of_each_of_its_predictions(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        one = prediction(pipeline, 1)
        other = prediction(pipeline, 2)._replace(
            key=one.key, value=(prediction(pipeline, 2).value or b"").replace(b'"b2"', b'"b1"')
        )
        async with writing(real) as writer:
            await writer.write([one, other, outcome(pipeline, 1)])
        async with ByHand(Join(runtime(pipeline, real, "a", BY_HAND))) as join:
            await join.take_over(0)
            await join.read_to(pipeline.topic("predictions"), 2)
            await join.read_to(pipeline.topic("outcomes"), 1)
        made_of = [
            msgspec.json.decode(record.value or b"", type=Example)
            for record in await admitted(real, pipeline, "examples")
        ]
        assert sorted(example.id for example in made_of) == ["s1", "s2"]
