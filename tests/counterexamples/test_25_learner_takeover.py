"""One line of versions, whoever teaches: a deposed learner publishes nothing after its successor has read the log.

A has published v1 and learned on. B reads `models`, finds v1 and goes on from it; A, not fenced yet,
publishes its v2; B publishes another v2: two models of one number, each with examples that the other has
not. So B fences the id of that partition of `models` before it reads. A finds itself fenced, for good: it
does not take the id back, which B would take back in turn. What B holds is what was published, never what
it has learned by itself in another order: no learner learns ahead for a takeover.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import msgspec
import pytest

from riverkeeper import Publish
from riverkeeper.agents.agent import Runtime, Table
from riverkeeper.agents.learn import Learn, LearnWork
from riverkeeper.models.pipeline import Pipeline
from riverkeeper.models.quality import learn
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler, ManifestKey, interned, parse_key, rebuild
from riverkeeper.topics.log import Fenced, Out
from riverkeeper.topics.messages import Example, Manifest
from riverkeeper.topics.store import Inspector
from tests.agents.loop import made
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.test_16_defaults import example
from tests.counterexamples.without import Remedy
from tests.topics.logs import records, writing

REMEDIES = [
    Remedy(
        "agents/agent.py",
        """\
                await writer.start()
                async with Inspector(self.runtime.connection) as inspector:
                    table = await inspector.read_table(TopicPartition(self.store, partition), self.held)
                    work = await self.open(partition, table, inspector)
""",
        """\
                async with Inspector(self.runtime.connection) as inspector:
                    table = await inspector.read_table(TopicPartition(self.store, partition), self.held)
                    work = await self.open(partition, table, inspector)
                await writer.start()
""",
        what="fence, then read",
    ),
    Remedy(
        "agents/agent.py",
        "                self.pipeline.transactional_id(self.name, partition),\n",
        '                f"{self.pipeline.name}.{self.name}.{self.runtime.replica}",\n',
        what="an id per partition of models, and not per replica",
    ),
]


class Successor(Learn):
    """A learner that is interrupted when it has read `models`."""

    def __init__(self, runtime: Runtime, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(runtime)
        self._meanwhile = meanwhile

    async def open(self, partition: int, table: Table, inspector: Inspector) -> LearnWork:
        await self._meanwhile()
        return await super().open(partition, table, inspector)


async def publish(learner: ByHand) -> None:
    """What has been learned, as at an orderly end."""
    owner = learner.session.owners[0]
    await owner.settle()
    await owner.work.prepare(time.monotonic(), drained=True)
    await learner.checkpoint()


async def published(broker: Broker, pipeline: Pipeline) -> tuple[list[Manifest], Assembler]:
    """Every manifest that was ever committed, in order, and what a reader makes of it all."""
    found, library = list[Manifest](), Assembler(keep=100)
    for record in await records(broker, pipeline.topic("models")):
        assert record.key is not None and record.value is not None
        library.feed(record.key, record.value)
        if isinstance(parse_key(record.key), ManifestKey):
            found.append(Manifest.model_validate_json(record.value))
    return found, library


async def test_a_deposed_learner_forks_nothing(real: Broker) -> None:
    never = Publish(every=timedelta(hours=1))
    async with made(real, partitions=1, publish=never) as pipeline, writing(real) as writer:
        log = [example(pipeline, n) for n in range(10)]
        zombie = ByHand(Learn(runtime(pipeline, real, "a", BY_HAND)))

        async def zombie_publishes() -> None:
            with suppress(Fenced):
                await publish(zombie)

        successor = ByHand(Successor(runtime(pipeline, real, "b", BY_HAND), zombie_publishes))
        async with zombie, successor:
            await zombie.take_over(0)
            await publish(zombie)  # there is a first version, of nothing
            await learn_next(writer.write, zombie, log[:3], 3)
            await publish(zombie)
            await learn_next(writer.write, zombie, log[3:6], 6)
            await successor.take_over(0)
            await learn_next(writer.write, successor, log[6:9], 9)
            await publish(successor)
            with pytest.raises(Fenced):  # for good: it does not take the id back
                await zombie.commit([log[9]])
            await learn_next(writer.write, successor, log[9:], 10)
            await publish(successor)

        # What aiokafka leaves of a fenced producer complains as it goes: not while pytest reads a failure.
        gc.collect()
        versions, library = await published(real, pipeline)
        numbers = [m.version for m in versions]
        assert numbers == list(range(1, len(versions) + 1)), "two versions of one number"
        assert [m.parent for m in versions] == [0, *numbers[:-1]]
        learned = [n for m in versions for span in m.spans for n in range(span.start, span.end)]
        assert learned == list(range(10))
        for version in versions:
            blob = library.blob("line", version.version)
            assert rebuilt(pipeline, library, version, log) == blob, version.version


async def learn_next(
    write: Callable[[list[Out]], Awaitable[None]], learner: ByHand, examples: list[Out], end: int
) -> None:
    await write(examples)
    await learner.read_to(learner.agent.pipeline.topic("examples"), end)


def rebuilt(pipeline: Pipeline, library: Assembler, version: Manifest, log: Sequence[Out]) -> bytes:
    """A version once more, from the bytes of its parent and the examples that it names."""

    def teach(estimator: object, examples: Sequence[Example]) -> None:
        for each in examples:
            learn(pipeline.task, estimator, interned(each.features), each.label)

    examples = [msgspec.json.decode(out.value or b"", type=Example) for out in log]
    parent = library.blob("line", version.parent) if version.parent else None
    spans = [examples[span.start : span.end] for span in version.spans]
    return rebuild(parent, pipeline.models["line"].factory, spans, teach, AllowList(pipeline.trusted))
