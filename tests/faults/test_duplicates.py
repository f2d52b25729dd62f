"""Two producers that send the same events, and outcomes before their facts, change nothing: one fact, one
prediction, one example each."""

from __future__ import annotations

from itertools import chain

from tests.faults.readings import FIRST, reading, truth
from tests.faults.trial import Trial
from tests.system.harness import first

NUMBERS = range(FIRST, FIRST + 400)
CHUNK = 20


async def test_two_producers(trial: Trial) -> None:
    """The second one sends the same, in its own order, somewhat later."""
    trial.spawn()
    await trial.flowing()
    trial.mark()
    once = list(chain.from_iterable((reading(trial, n, "a"), truth(trial, n)) for n in NUMBERS))
    again = sorted(once, key=lambda _: trial.rng.random())
    for start in range(0, len(once), CHUNK):
        await trial.send(once[start : start + CHUNK])
        await trial.send(again[start : start + CHUNK])
    await trial.recovered()
    await trial.quiet()
    _once(trial)


async def test_outcomes_first(trial: Trial) -> None:
    """All outcomes stand in the log before the first of their facts is sent."""
    trial.spawn()
    await trial.flowing()
    trial.mark()
    await trial.send(truth(trial, n) for n in NUMBERS)
    await trial.moment()
    await trial.send(reading(trial, n, "a") for n in sorted(NUMBERS, key=lambda _: trial.rng.random()))
    await trial.recovered("predictions", "examples")
    await trial.quiet()
    _once(trial)


def _once(trial: Trial) -> None:
    """As many as there are numbers; the ledger says that they are the right ones."""
    keys = {f"n{n}".encode() for n in NUMBERS}
    for suffix in ("outcomes", "predictions", "examples"):
        records = trial.outside[suffix] if suffix == "examples" else first(trial.outside[suffix])
        assert sorted(r.key or b"" for r in records if r.key in keys) == sorted(keys), suffix
