"""Join's two inputs lie with one owner: partition p of predictions and p of outcomes never part.

aiokafka's default assignor, 3 members, 4 + 4 partitions: all four numbers are split.
"""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from riverkeeper.agents.agent import PartitionsDiffer
from riverkeeper.agents.join import Join
from tests.agents.tiny import runtime, tiny
from tests.brokers.broker import Broker
from tests.counterexamples.without import Remedy
from tests.topics.logs import seated, topic, until

REMEDIES = [
    Remedy(
        "topics/log.py",
        "            partition_assignment_strategy=(RangePartitionAssignor,),\n",
        "",
        what="the range assignor",
    ),
    Remedy(
        "agents/agent.py",
        "        if any(other != numbers for other in by_topic.values()):\n",
        "        if not by_topic:\n",
        what="a split is refused",
    ),
    Remedy(
        "agents/agent.py",
        "        if numbers and max(numbers) >= self.partitions:\n",
        "        if not by_topic:\n",
        what="counts other than the declared ones are refused",
    ),
]


async def test_three_members_own_both_sides_of_four_partitions(real: Broker) -> None:
    predictions, outcomes = await topic(real, partitions=4), await topic(real, partitions=4)
    both, group = [predictions, outcomes], f"g-{predictions}"
    async with (
        seated(real, group, both, []) as a,
        seated(real, group, both, []) as b,
        seated(real, group, both, []) as c,
    ):
        members = (a, b, c)

        def all_assigned() -> bool:
            return all(m.owned for m in members) and sum(len(m.owned) for m in members) == 8

        await until(all_assigned)
        assert [m.numbers(predictions) for m in members] == [m.numbers(outcomes) for m in members]


@pytest.mark.parametrize(
    ("predictions", "outcomes"),
    [({1}, {1, 2}), ({1}, {2}), ({0, 1, 2, 3}, {0, 1, 2}), ({0, 1, 2, 3}, {0, 1, 2, 3})],
    ids=["one side more", "other numbers", "one topic larger", "both larger than declared"],
)
def test_any_other_assignment_ends_the_stay(predictions: set[int], outcomes: set[int]) -> None:
    agent = Join(runtime(tiny(partitions=3)))

    def assigned(one: set[int], two: set[int]) -> frozenset[TopicPartition]:
        sides = zip(agent.group_topics, (one, two), strict=True)
        return frozenset(TopicPartition(name, p) for name, numbers in sides for p in numbers)

    assert agent._owned(assigned({0, 2}, {0, 2})) == {0, 2}
    with pytest.raises(PartitionsDiffer):
        agent._owned(assigned(predictions, outcomes))
