"""One run of a fault: a seeded load, processes, a fault at a seeded moment, quiet, the ledger.

A fault file states one promise in its first docstring line. Its tests take a `trial` and look like this:

    async def test_kill(trial: Trial) -> None:
        rest = trial.spawn("ingest", "join", "learn", "supervisor")   # processes of their own
        victim = trial.spawn("score")
        await trial.flowing()            # the load has begun, and every stage works
        await trial.moment()             # a seeded number of predictions later
        victim.kill()
        trial.mark()                     # recovery is counted from here
        trial.spawn("score")
        await trial.recovered()          # facts sent after the mark are answered, in every partition
        await trial.quiet()              # the load ends, all is worked off, processes stop, the ledger

What a trial offers, besides: `rng` (seeded; for the fault's own choices), `until(condition, what)`,
`outside` (every topic as read so far, kept up to date in the background), `world` (topics, settings, connection),
`load` (may be told another `kind` or `truth`), `send(events)` (more events; nothing needs to be told of them),
`replicas`. `spawn(..., RIVERKEEPER_X="…")` sets a process's environment. A process that ends by itself fails
the trial unless `replica.expected` is set. `quiet(stop=False)` leaves the processes running.

Fixtures of conftest.py that a file may override: `broker` (default: the session's one-node Kafka) and
`kind` (default "gauges": one of tests/system/pipelines.py whose facts are `Reading` and `Truth`).
`recovered("facts", "models")` takes other topics for the sign of life: facts, predictions, examples or models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from riverkeeper.audit import audit, text
from riverkeeper.process import NAMES
from riverkeeper.topics.messages import Manifest
from tests.brokers.broker import Broker
from tests.faults.load import Load, number_of
from tests.system import account
from tests.system.harness import (
    SIGNING_KEY,
    Event,
    Outside,
    Record,
    Replica,
    World,
    cause,
    now_ms,
    processes,
    world,
)

NUMBERS_PER_SECOND = 100  # readings; some 200 events, a tenth of what one busy process works off
CHUNK = 10  # readings sent at a time
MOMENT = 150  # predictions among which the seed chooses the moment of a fault
MAX_BEHIND = 2_000  # readings without an answer at which the load waits: an outage of 20 s
PATIENCE_S = 180.0  # for what takes a few seconds on an idle machine
SHOWN = 20  # findings in a failed trial's text; they tend to have one cause


@dataclass
class Run:
    """What came of one trial."""

    fault: str
    seed: int
    findings: Counter[str] = field(default_factory=Counter)  # by kind of the ledger
    recovery: float | None = None  # seconds
    accounted: bool = False  # the ledger was drawn up
    story: list[str] = field(default_factory=list)  # what happened, each with its seconds
    passed: bool = False


class Unaccounted(AssertionError):
    """The ledger found something; the text names it."""


class Trial:
    """See the module's text. Made by the `trial` fixture."""

    def __init__(self, world: World, replicas: list[Replica], run: Run) -> None:
        self.world = world
        self.outside: Outside = world.outside
        self.replicas = replicas
        self.run = run
        self.rng = random.Random(f"{run.fault} {run.seed}")
        self.load = Load(run.seed, world.pipeline.partitions)
        self._read = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._marked = (0, 0)  # readings sent, ms
        self._began = time.monotonic()

    def note(self, what: str) -> None:
        """Adds to the story that a failed trial tells."""
        self.run.story.append(f"{time.monotonic() - self._began:6.2f} s  {what}")

    # Processes.

    def spawn(self, *names: str, module: str = "riverkeeper", **environment: str) -> Replica:
        """A process with these agents (default: all), at once; it takes some two seconds to be at work."""
        replica = self.world.spawn(
            names or NAMES, module=module, **{"RIVERKEEPER_LOG_FORMAT": "json", **environment}
        )
        self.replicas.append(replica)
        self.note(f"process {replica.process.pid} starts: {' '.join(names or NAMES)}")
        return replica

    def armed(self, *names: str, point: str, nth: int, do: str = "kill", **environment: str) -> Replica:
        """A process that kills or stops itself at the nth passing of a point of tests/faults/launch.py."""
        fault = {"FAULT_POINT": point, "FAULT_NTH": str(nth), "FAULT_DO": do}
        replica = self.spawn(*names, module="tests.faults.launch", **fault, **environment)
        replica.expected = do == "kill"
        return replica

    def check(self) -> None:
        """Raises what ended a process, the load or the reading."""
        for replica in self.replicas:
            replica.check()
        for task in (self._reading, self._sending):
            if task is not None and task.done():
                task.result()

    # The load.

    async def flowing(self) -> None:
        """Starts the load; returns when every partition answers and every model has a version."""
        self.feed()
        await self.until(partial(self._came, "predictions"), "every partition answers")
        await self.until(partial(self._came, "models"), "every model learns")

    def feed(self) -> None:
        """Starts the load."""
        self._sending = asyncio.create_task(self._send())
        self.mark()

    async def _send(self) -> None:
        due = time.monotonic()
        while True:
            await self.world.send(self.load.some(CHUNK))
            due = max(due + CHUNK / NUMBERS_PER_SECOND, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            async with self._read:
                while self.load.count - self.outside.firsts("predictions") > MAX_BEHIND:
                    await self._read.wait()

    async def send(self, events: Iterable[Event]) -> None:
        """More events, besides the load."""
        await self.world.send(events)

    async def moment(self, within: int = MOMENT) -> int:
        """Waits for a seeded number of further predictions, fewer than `within`; returns their count then."""
        said = self.outside["predictions"]
        at = len(said) + self.rng.randrange(within)
        await self.until(lambda: len(said) >= at, f"{at} predictions")
        return at

    # Recovery.

    def mark(self) -> None:
        """Recovery is counted from here: only what is sent from here on is a sign of life."""
        self._marked = (self.load.count, now_ms())
        self.note(f"the mark, at {self.load.count} readings")

    async def recovered(self, *by: str) -> None:
        """Waits until every partition of these topics (default: predictions) shows work on what was sent
        after the mark. Records the seconds from the mark to the append time of the last of these signs."""
        for suffix in by or ("predictions",):
            await self.until(partial(self._came, suffix), f"{suffix} go on in every partition")
            came = self._came(suffix)
            assert came is not None
            self.took(came)

    def took(self, came_ms: int) -> None:
        """Records a sign of life of one's own, by its append time."""
        self.run.recovery = max(self.run.recovery or 0.0, (came_ms - self._marked[1]) / 1000)

    def _came(self, suffix: str) -> int | None:
        """When the last of the partitions went on, in ms; None if one has not."""
        if suffix == "models":
            return self._learned()
        since, _ = self._marked
        came: dict[int, int] = {}
        for record in reversed(self.outside[suffix]):
            if record.timestamp < self._marked[1]:
                break
            if self._number(suffix, record) >= since:
                came[cause(record)[0].partition] = record.timestamp
        return max(came.values()) if len(came) == self.world.pipeline.partitions else None

    def _number(self, suffix: str, record: Record) -> int:
        if suffix != "facts":
            return number_of(record.key)
        data = msgspec.json.decode(record.value or b"")["data"]
        return number_of(data["number"].encode())

    def _learned(self) -> int | None:
        """When every model had a version that learned an example of what was sent after the mark."""
        since, at = self._marked
        fresh = [r for r in self.outside["examples"] if r.timestamp >= at and number_of(r.key) >= since]
        came: dict[str, int] = {}
        for record in self.outside["models"]:
            if record.timestamp < at or record.value is None or (record.key or b"").count(b"/") != 1:
                continue
            manifest = Manifest.model_validate_json(record.value)
            if any(manifest.offsets.get(r.partition, 0) > r.offset for r in fresh):
                came.setdefault(manifest.model, record.timestamp)
        return max(came.values()) if came.keys() == set(self.world.pipeline.models) else None

    # Waiting.

    async def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Waits until the topics as read show it; fails by name, with the counts, if not in time."""
        try:
            async with asyncio.timeout(seconds), self._read:
                while not condition():
                    self.check()
                    await self._read.wait()
            self.note(what)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; {self.outside.counts()}") from None

    async def _follow(self) -> None:
        while True:
            await self.outside.read()
            async with self._read:
                self._read.notify_all()

    # Quiet, and the ledger.

    async def quiet(self, *, stop: bool = True, complete: bool = True) -> None:
        """Ends the load, waits until all is worked off, stops the processes and draws up the ledger.

        What cannot be worked off is for the ledger to name, so it is drawn up in any case. `complete=False`
        is for agents that have stopped for good reason: nothing is waited for, and work may be left.
        """
        self.check()
        await self.hush()
        undone: AssertionError | None = None
        try:
            if complete:
                await self._worked_off()
        except AssertionError as error:
            self.check()
            undone = error
        if stop:
            for replica in self.replicas:
                if not replica.expected:
                    await replica.stop()
            self.note("the processes have stopped")
            await _cancelled(self._reading)
        await self._account(complete=complete)
        if undone is not None:
            raise undone

    async def _worked_off(self) -> None:
        await self.until(self._settled, "every event has an effect")
        await self.until(self._answered, "every fact is answered")
        await self.until(self._joined, "every outcome is joined")
        await self.until(self._learned_all, "every model learned it all")

    async def hush(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            await _cancelled(sending)
        await self.world.send(self.load.rest())

    def _settled(self) -> bool:
        events = self.outside["events"]
        repeats = account.repeating(events)
        return len(events) >= self.world.sent and self.outside.settled() >= len(events) - len(repeats)

    def _answered(self) -> bool:
        return self.outside.firsts("predictions") >= self.outside.firsts("facts")

    def _joined(self) -> bool:
        predicted = {r.key for r in self.outside["predictions"]}
        return len(self.outside["examples"]) >= len(predicted & {r.key for r in self.outside["outcomes"]})

    def _learned_all(self) -> bool:
        return account.all_learned(self.world.pipeline, self.outside)

    async def _account(self, *, complete: bool) -> None:
        """The ledger: `riverkeeper audit`, which is held to account itself in tests/audit."""
        key = SIGNING_KEY.encode()
        report = await audit(self.world.pipeline, self.world.connection, signing_key=key)
        self.run.accounted = True
        self.run.findings.update(report.found)
        self.note(f"the ledger: {report.found or 'clean'}, copies {report.repeats}, pending {report.pending}")
        if not report.clean or (complete and report.pending):
            raise Unaccounted(text(report, SHOWN))

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[Trial]:
        self._reading = asyncio.create_task(self._follow())
        try:
            yield self
        finally:
            await _cancelled(self._sending, self._reading)


async def _cancelled(*tasks: asyncio.Task[None] | None) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


@asynccontextmanager
async def trial_of(broker: Broker, kind: str, run: Run) -> AsyncIterator[Trial]:
    """A trial on topics of its own."""
    async with world(broker, kind) as it:
        with processes() as replicas:
            async with Trial(it, replicas, run)._following() as trial:
                yield trial


def stopped(replica: Replica) -> bool:
    """Whether a SIGSTOP holds it."""
    try:
        state = Path(f"/proc/{replica.process.pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] == "T"


def told(replica: Replica) -> Iterator[dict[str, Any]]:
    """What a process has logged so far, line by line."""
    for line in replica.log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def owned(replica: Replica, agent: str) -> set[int] | None:
    """The partitions that its agent took over last; None before the first time."""
    found = [e["owned"] for e in told(replica) if e.get("event") == "partitions" and e.get("agent") == agent]
    return set(found[-1]) if found else None
