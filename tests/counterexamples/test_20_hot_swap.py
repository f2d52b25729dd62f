"""Of two predictions for one fact the first in the log counts, whichever model versions made them.

A scorer answers with version 7 and dies before its checkpoint; its successor, which serves version 8 by
then, answers the same facts again. `predictions` holds p7 and p8 for each id. Join learns from p7. A
foreign program that keeps the last of each id would act on p8: README tells readers the rule, and
`delivery="transactional"` is for those who cannot follow it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from river import linear_model

from riverkeeper.agents.join import Join
from riverkeeper.agents.score import Score
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.topics.messages import Prediction
from tests.agents.loop import everything, made
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand, fact
from tests.counterexamples.joined import examples, outcome
from tests.counterexamples.published import outs, sealed
from tests.counterexamples.without import Remedy
from tests.topics.logs import until, writing

REMEDIES = [
    Remedy(
        "topics/store.py",
        "            if at > seen.get(source, NOTHING_SEEN):\n",
        "            if at >= NOTHING_SEEN:\n",
        what="what is not greater is a copy",
    ),
    Remedy(
        "agents/join.py",
        "        filtered = frozenset(self.group_topics)\n",
        "        filtered = frozenset[str]()\n",
    ),
    Remedy(
        "README.md", "**if an id comes twice, the first copy is the prediction**", "**predictions have ids**"
    ),
]

FACTS = 4


async def answered(broker: Broker, pipeline: Pipeline, version: int) -> None:
    """A scorer that serves this version answers all facts there are, and dies without a checkpoint."""
    async with ByHand(Score(runtime(pipeline, broker, limits=BY_HAND))) as byhand:
        score = byhand.agent
        assert isinstance(score, Score)
        await until(lambda: "line" in score.versions.serving)
        assert score.versions.serving["line"].version == version
        await byhand.take_over(0)
        await byhand.read_to(pipeline.topic("facts"), FACTS)


async def test_join_learns_from_the_first_and_says_so_to_others(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline, writing(real) as writer:
        await writer.write([fact(pipeline, n) for n in range(FACTS)])
        for version in (7, 8):
            says = linear_model.LinearRegression(intercept_init=float(version))
            await writer.write(outs(pipeline, sealed(pipeline, "line", version, says)))
            await answered(real, pipeline, version)
            # One outcome comes between the two, the others after both.
            await writer.write(
                [outcome(pipeline, n) for n in (range(1) if version == 7 else range(1, FACTS))]
            )

        written = [
            msgspec.json.decode(record.value or b"", type=Prediction)
            for record in await everything(real, pipeline, "predictions")
        ]
        assert [said.version for said in written] == [7] * FACTS + [8] * FACTS
        assert {said.id: said.version for said in written} == {f"s{n}": 8 for n in range(FACTS)}  # last wins

        async with ByHand(Join(runtime(pipeline, real, limits=BY_HAND))) as join:
            await join.take_over(0)
            await join.read_to(pipeline.topic("predictions"), 2 * FACTS)
            await join.read_to(pipeline.topic("outcomes"), FACTS)
        learned = {e.id: (e.version, e.served) for e in await examples(real, pipeline)}
        assert learned == {f"s{n}": (7, 7.0) for n in range(FACTS)}
        assert len(await examples(real, pipeline)) == FACTS


def test_readers_are_told() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "if an id comes twice, the first copy is the prediction" in readme
