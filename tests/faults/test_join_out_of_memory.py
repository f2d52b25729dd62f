"""join killed for its memory, with all it holds pending, makes every example once when it is back.

`FAULT_PENDING=1000000` is the full size; CI runs a share of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from tests.faults.readings import FIRST, reading, truth
from tests.faults.trial import Trial, owned
from tests.system.harness import WAIT_S, Event, Replica

PENDING = int(os.environ.get("FAULT_PENDING", "20000"))  # predictions
BYTES = 160  # of memory that one takes at least
PATIENCE = WAIT_S + PENDING / 200  # s for the whole number to pass one stage, on a busy machine
AT_ONCE = 500  # events sent together
LOOK = 0.02  # s between two looks at a process's memory


@pytest.fixture
def kind() -> str:
    return "roomy"


async def test_join_out_of_memory(trial: Trial) -> None:
    numbers = range(FIRST, FIRST + PENDING)
    trial.spawn("ingest", "score", "learn")
    victim = await at_work(trial)
    sending = asyncio.create_task(send(trial, (reading(trial, n, "a") for n in numbers)))
    # What its first batches take is theirs, and no prediction's that waits.
    await trial.until(
        lambda: trial.outside.firsts("predictions") > PENDING // 10, "a tenth are answered", PATIENCE
    )
    bound = resident(victim) + int(PENDING * BYTES * trial.rng.uniform(0.3, 0.7))

    await killed_over(trial, victim, bound)
    victim = trial.spawn("join")
    await killed_over(trial, victim, bound)  # as it restores, or soon after
    victim = await at_work(trial)
    await sending
    await trial.until(lambda: trial.outside.firsts("predictions") == PENDING, "all are answered", PATIENCE)
    await all_pending(trial)

    victim.expected = True
    victim.kill()
    trial.mark()
    trial.spawn("join")
    await send(trial, (truth(trial, n) for n in numbers))
    await trial.until(lambda: len(trial.outside["examples"]) >= PENDING, "all are joined", PATIENCE)
    trial.took(min(record.timestamp for record in trial.outside["examples"]))
    await trial.quiet()
    assert len(trial.outside["examples"]) == PENDING


async def at_work(trial: Trial) -> Replica:
    """A join process that has every partition."""
    join = trial.spawn("join")
    everything = set(range(trial.world.pipeline.partitions))
    await trial.until(lambda: owned(join, "join") == everything, "join has every partition", PATIENCE)
    return join


async def send(trial: Trial, events: Iterable[Event]) -> None:
    left = iter(events)
    while some := list(islice(left, AT_ONCE)):
        await trial.send(some)


async def killed_over(trial: Trial, victim: Replica, bound: int) -> None:
    """What the kernel does to a process that takes more memory than it may."""
    victim.expected = True
    async with asyncio.timeout(PATIENCE):
        while resident(victim) < bound:
            assert victim.process.poll() is None, victim.tail()
            await asyncio.sleep(LOOK)
    victim.kill()
    trial.note(
        f"join had {bound >> 20} MB and was killed, at {trial.outside.firsts('predictions')} predictions"
    )


def resident(replica: Replica) -> int:
    """Bytes of memory that it has now."""
    status = Path(f"/proc/{replica.process.pid}/statm").read_text()
    return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def all_pending(trial: Trial) -> None:
    """Until join has read every prediction, as its group shows."""
    pipeline = trial.world.pipeline
    topic = pipeline.topic("predictions")
    ends = {p: 0 for p in range(pipeline.partitions)}
    for record in trial.outside["predictions"]:
        ends[record.partition] = record.offset + 1
    admin = AIOKafkaAdminClient(**trial.world.connection.client_options())
    await admin.start()
    try:
        async with asyncio.timeout(PATIENCE):
            shown: dict[TopicPartition, int] = {}
            while any(shown.get(TopicPartition(topic, p), 0) < end for p, end in ends.items()):
                found = await admin.list_consumer_group_offsets(pipeline.agent_group("join"))
                shown = {tp: at.offset for tp, at in found.items()}
                await asyncio.sleep(LOOK)
    finally:
        await admin.close()
