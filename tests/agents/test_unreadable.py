"""A record on one of our own topics that does not decode costs itself only: in score and join a dead letter, in
learn a line in the log."""

from __future__ import annotations

from datetime import timedelta

import pytest
from aiokafka import TopicPartition

from riverkeeper.agents.join import Join, JoinWork, Matcher
from riverkeeper.agents.learn import Learn, LearnWork
from riverkeeper.agents.score import Score, ScoreWork
from riverkeeper.models.features import FoldState
from riverkeeper.topics.store import Progress
from tests.agents.tiny import Stored, runtime, tiny

JUNK = [b"", b"{", b"[]", b'{"id": 3}', b'{"id": "\xbd"}', b'{"\xff": 1}', b"\xef\xbb\xbf{}"]


def record(value: bytes | None, suffix: str) -> Stored:
    return Stored(7, value, topic=f"tiny.{suffix}")


@pytest.mark.parametrize("value", [*JUNK, None])
async def test_in_score(value: bytes | None) -> None:
    tp = TopicPartition("tiny.facts", 0)
    work = ScoreWork(Score(runtime(tiny())), Progress({tp: 0}), FoldState(), fresh=True)
    (letter,) = await work.step(tp, [record(value, "facts")])
    assert (letter.topic, letter.value) == ("tiny.dead", value)
    assert dict(letter.headers)["code"] == b"unreadable"


@pytest.mark.parametrize("side", ["predictions", "outcomes"])
@pytest.mark.parametrize("value", [*JUNK, None])
async def test_in_join(value: bytes | None, side: str) -> None:
    tp = TopicPartition(f"tiny.{side}", 0)
    matcher = Matcher(timedelta(hours=1), 10)
    work = JoinWork(Join(runtime(tiny())), 0, Progress({tp: 0}), matcher, fresh=True)
    (letter,) = await work.step(tp, [record(value, side)])
    assert (letter.topic, letter.value) == ("tiny.dead", value)


@pytest.mark.parametrize("value", [*JUNK, None])
async def test_in_learn(value: bytes | None) -> None:
    tp = TopicPartition("tiny.examples", 0)
    work = LearnWork(Learn(runtime(tiny())), 0, [])
    assert await work.process({tp: [record(value, "examples")]}) == []
