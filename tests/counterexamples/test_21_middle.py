"""A reader that begins in the middle of a stretch of copies knows which numbers came before it.

A zombie and its successor wrote `6 7 8 6' 7' 8' 9'`. One reader takes [0, 3) and stops; the next takes
[3, 7) and, with no more than a position, would take 6, 7 and 8 a second time. A position never stands
alone: the greatest number of each source is stored beside it. No other agent reads facts, outcomes
or predictions from the middle, and an audit with `--since` judges nothing whose cause it has not read.
Versions name stretches of `examples`, which join writes in transactions: there are no copies in it.
"""

from __future__ import annotations

from collections import Counter

from aiokafka import TopicPartition

from riverkeeper.agents.score import Score
from riverkeeper.topics.store import Progress
from tests.agents.loop import everything, made
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand, fact
from tests.counterexamples.without import Remedy
from tests.topics.logs import writing
from tests.topics.test_store import caused

REMEDIES = [
    Remedy(
        "topics/store.py",
        "            seen={place(tp): {s.decode(): at for s, at in by.items()} for tp, by in self.seen.items()},\n",
        "            seen={},\n",
    ),
    Remedy(
        "topics/store.py",
        "            seen={tp: {s.encode(): at for s, at in head.seen.get(place(tp), {}).items()} for tp in inputs},\n",
        "            seen={},\n",
    ),
]

STRETCH, CUT = (6, 7, 8, 6, 7, 8, 9), 3


def test_of_the_second_part_only_the_new_one_is_admitted() -> None:
    facts = TopicPartition("facts", 0)
    log = [caused(i, (n, 0)) for i, n in enumerate(STRETCH)]
    first = Progress({facts: 0}, frozenset({"facts"}))
    assert [r.offset for r in first.admit(facts, log[:CUT])] == [0, 1, 2]
    second = Progress.restore(first.head("r", drained=False), [facts], frozenset({"facts"}))
    assert [r.offset for r in second.admit(facts, log[CUT:])] == [6]


async def test_each_fact_has_one_answer_from_two_scorers_who_share_the_stretch(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline, writing(real) as writer:
        facts = [fact(pipeline, n) for n in STRETCH]
        for part, end in ((facts[:CUT], CUT), (facts[CUT:], len(STRETCH))):
            await writer.write(part)
            async with ByHand(Score(runtime(pipeline, real, limits=BY_HAND))) as score:
                await score.take_over(0)
                await score.read_to(pipeline.topic("facts"), end)
                await score.checkpoint()
        answered = Counter(record.key for record in await everything(real, pipeline, "predictions"))
    assert answered == Counter(b"b%d" % n for n in (6, 7, 8, 9))
