"""A process that is told to end while it starts ends within 5 s, whatever it was doing, and breaks nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

from tests.faults.trial import Trial, told
from tests.system.harness import Replica

PROMISED_S = 5.0  # from SIGTERM to the end of the process
STARTS = 5
LONGEST_START_S = 3.0  # a process is at work within this on an idle machine
TAKEOVER_S = 1.5  # from its first line to that
UP_S = 60.0
# Before Python has come to our code the system's own way of ending holds.
CODES = (0, -signal.SIGTERM)


async def ended(replica: Replica) -> float:
    """SIGTERM; the seconds until it is gone."""
    replica.expected = True
    began = time.monotonic()
    replica.process.terminate()
    code = await asyncio.to_thread(replica.process.wait, UP_S)
    assert code in CODES, f"SIGTERM ended it with {code}:\n{replica.tail()}"
    return time.monotonic() - began


def has_begun(replica: Replica) -> bool:
    return any(True for _ in told(replica))


async def test_told_to_end_while_it_starts(trial: Trial) -> None:
    trial.spawn()
    await trial.flowing()
    for n in range(STARTS):
        replica = trial.spawn()
        since = "its start"
        if n:  # once before it can know of the promise
            await trial.until(partial(has_begun, replica), "its first line")
            since = "its first line"
        after = trial.rng.uniform(0.0, TAKEOVER_S)
        await asyncio.sleep(after)
        seconds = await ended(replica)
        told_so = f"told to end {after:.2f} s after {since}, it took {seconds:.2f} s"
        trial.note(told_so)
        assert seconds < PROMISED_S, f"{told_so}:\n{replica.tail()}"
    trial.mark()
    await trial.recovered()
    await trial.quiet()


async def test_killed_while_it_starts(trial: Trial) -> None:
    trial.spawn()
    await trial.flowing()
    for _ in range(STARTS):
        replica = trial.spawn()
        await asyncio.sleep(trial.rng.uniform(0.0, LONGEST_START_S))
        replica.kill()
    trial.mark()
    await trial.recovered()
    await trial.quiet()
