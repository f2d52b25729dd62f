"""A published version is made again, byte for byte, from its parent and its spans of the log."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.system import account
from tests.system.harness import ROOT, WAIT_S, World, processes, world
from tests.system.play import finished, stormy

EVENTS = 3_000
AGENTS = ("ingest", "score", "join", "learn")
SEEDED = {"PYTHONHASHSEED": "0"}


async def rebuilt(world: World) -> dict[str, bool]:
    """By version, whether a fresh process made the same bytes."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.system.rebuild", world.broker.address, world.kind, world.pipeline.name],
        cwd=ROOT,
        env={**os.environ, **SEEDED},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def learned_something(world: World) -> bool:
    newest = [versions[-1] for versions in account.manifests(world.outside).values()]
    return len(newest) == len(world.pipeline.models) and all(m.learned >= 250 for m in newest)


async def test_rebuilt_across_a_restart(kafka: KafkaCluster) -> None:
    events, retries = stormy(EVENTS)
    half = len(events) // 2
    async with world(Broker(kafka.address, transactions=True), "flights") as it:
        with processes() as running:
            running.append(it.spawn(AGENTS, **SEEDED))
            await it.feed(events[:half], retries, running[-1].check)
            await it.outside.until(lambda: learned_something(it), "versions of each model")
            await running[-1].stop()
            await it.outside.read_up()
            before = {m.version for m in account.manifests(it.outside)["learned"]}
            # Decoders and the order of arrival differ in the process that goes on.
            running.append(it.spawn(AGENTS, **SEEDED))
            await it.feed(events[half:], retries, running[-1].check)
            await finished(it, len(events) - retries, running[-1].check)
            await running[-1].stop()
        await it.outside.read_up()
        versions = account.manifests(it.outside)
        account.learned_once(it.outside, versions, to_the_end=True)
        for model in ("learned", "steady"):
            after = [m for m in versions[model] if m.version not in before and m.learned > 0]
            assert after and after[0].parent in before, "a version goes on from one before the restart"
        same = await rebuilt(it)
        assert {f"learned/{v.version}" for v in versions["learned"]} <= same.keys()
        # The empty one, one before the restart and one after, of each; how many more is a matter of speed.
        assert len(same) >= 3 * len(it.pipeline.models)
        different = [version for version, equal in same.items() if not equal]
        assert not different, f"{len(different)} of {len(same)} versions: {different}"
