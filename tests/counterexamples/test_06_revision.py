"""Whether an output exists, and where it goes, depends on the source and the pipeline's revision alone.

A writes fact 11 to partition 1; B, with 8 partitions or another key, to partition 5: both would be seen.
A dead-letters 11 and writes 12; B holds 11 valid: its fact would be skipped.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from riverkeeper import Fact, Pipeline
from riverkeeper.agents.ingest import Ingest
from riverkeeper.models.pipeline import Dedupe
from riverkeeper.topics.messages import Origin
from riverkeeper.topics.store import ORIGIN, RevisionMismatch
from tests.agents.loop import admitted, all_there, at_work, events, head_of, is_exact, made, produce
from tests.agents.tiny import runtime, sale, tiny
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy
from tests.topics.logs import DEADLINE, add_partitions, until

REMEDIES = [
    Remedy(
        "agents/work.py",
        "    if head.revision != pipeline.revision and not head.drained:\n",
        "    if not head.revision:\n",
        what="the revision is in the checkpoint",
    ),
    Remedy(
        "agents/work.py",
        "        if not self._fresh:\n            return []\n",
        "        if self.positions:\n            return []\n",
        what="a head before the first output",
    ),
    Remedy(
        "models/pipeline.py",
        '            "key": self.key,\n            "join": self.join,\n',
        "",
        what="the revision changes with the key",
    ),
    Remedy(
        "models/pipeline.py",
        '            "label": self.label.field,\n            "partitions": self.partitions,\n',
        '            "label": self.label.field,\n',
        what="the revision changes with the declared counts",
    ),
    Remedy(
        "models/pipeline.py",
        '            "facts": self._schema(self.facts),\n',
        "",
        what="the revision changes with the schema",
    ),
]


class Lax(Fact):
    """What a sale may look like to a newer revision."""

    event_type = "sale"
    basket: str
    shop: str
    amount: float | str
    note: Any = None


CHANGES: dict[str, dict[str, Any]] = {
    "key": {"key": "basket"},
    "partitions": {"partitions": 8},
    "schema": {"facts": Lax},
}


async def causes(broker: Broker, pipeline: Pipeline) -> dict[str, Counter[int]]:
    """By topic, how many outputs a reader takes of each event's offset."""
    found: dict[str, Counter[int]] = {}
    for suffix in ("facts", "dead"):
        taken = await admitted(broker, pipeline, suffix)
        found[suffix] = Counter(Origin.parse(dict(record.headers)[ORIGIN]).offset for record in taken)
    return found


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("checkpointed", [True, False])
async def test_another_revision_redoes_nothing_of_the_first(
    real: Broker, changed: str, checkpointed: bool
) -> None:
    async with made(real, partitions=8) as wide:
        first = tiny(wide.name, partitions=3)
        second = tiny(wide.name, **{"partitions": 3, **CHANGES[changed]})
        source = wide.topic("events")
        bad = sale(11, shop="shop 11", basket="basket 11", amount="much")
        good = [sale(i, shop=f"shop {i}", basket=f"basket {i}") for i in (*range(11), *range(12, 20))]
        values = [*good[:11], bad, *good[11:]]
        await produce(real, tiny(wide.name, partitions=1), "events", [(b"k", value, ()) for value in values])

        async with ByHand(Ingest(runtime(first, real, "a", BY_HAND))) as a:
            await a.take_over(0)
            if checkpointed:
                await a.checkpoint()
            await a.read_to(source, 20)  # and here it dies
        async with ByHand(Ingest(runtime(second, real, "b", BY_HAND))) as b:
            with suppress(RevisionMismatch):
                await b.take_over(0)
                await b.read_to(source, 20)

        found = await causes(real, wide)
        assert found["facts"] == Counter({i: 1 for i in range(20) if i != 11})
        assert found["dead"] == Counter({11: 1})


async def test_partitions_added_to_an_output_move_no_key(real: Broker) -> None:
    """The declared count places a record, never what the broker's metadata says now."""
    async with made(real, partitions=3) as pipeline:
        shops = [f"shop {i}" for i in range(30)]
        running = at_work(Ingest, pipeline, real)

        async def written(rounds: int) -> dict[str, set[int]]:
            rows = [(b"k", sale(f"{rounds}-{shop}", shop=shop), ()) for shop in shops]
            await produce(real, pipeline, "events", rows)
            placed: dict[str, set[int]] = {}

            async def all_placed() -> bool:
                found = await admitted(real, tiny(pipeline.name, partitions=3), "facts")
                placed.clear()
                for record in found:
                    placed.setdefault((record.key or b"").decode(), set()).add(record.partition)
                return len(found) == rounds * len(shops)

            await until(all_placed)
            return placed

        before = await written(1)
        await add_partitions(real, pipeline.topic("facts"), 6)
        assert await written(2) == before
        await running.stop()


async def test_another_revision_waits_until_the_store_is_drained(broker: Broker) -> None:
    async with made(broker, partitions=1) as pipeline:
        changed = tiny(pipeline.name, partitions=1, dedupe=Dedupe(timedelta(hours=2)))
        assert changed.revision != pipeline.revision
        await events(broker, pipeline, range(20))
        old = at_work(Ingest, pipeline, broker)
        await until(lambda: all_there(broker, pipeline, range(20)))
        await old.crash()
        refused = at_work(Ingest, changed, broker)
        with pytest.raises(RevisionMismatch, match=f"{pipeline.revision}.*{changed.revision}.*drained"):
            await refused.ended(DEADLINE)

        old = at_work(Ingest, pipeline, broker)
        await old.ready()
        await old.stop()
        assert (await head_of(broker, pipeline, "ingest", 0)).drained
        new = at_work(Ingest, changed, broker)
        await new.ready()
        head = await head_of(broker, pipeline, "ingest", 0)
        assert (head.revision, head.drained) == (changed.revision, False)
        await events(broker, pipeline, range(20, 30))
        await until(lambda: all_there(broker, pipeline, range(30)))
        await new.stop()
        await is_exact(broker, pipeline, range(30))
