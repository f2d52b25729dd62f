"""How soon a process that was started again is at work, over real Kafka.

    python bench/restart.py [scorer] [catchup] [join] [--rounds 5] [--rate 1000] [--pending 1000000] [--json]

scorer    a score process under a live load is killed (-9), or stopped in order (SIGTERM), and started
          again at once: seconds from its spawn to each stage, up to the append time of the first new
          prediction. Stages are what /livez and /readyz say, asked every 10 ms.
catchup   score is away while the load goes on; started again, it has a backlog beside the load: facts/s
          while it catches up, as a multiple of the live rate.
join      a join process with a million pending predictions is killed and started again: seconds until
          it is at work, its memory, and bytes a pending prediction.

Figures are medians over the rounds; the machine's load average stands beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from score import envelopes, versions

from riverkeeper import Pipeline
from riverkeeper.demos.flights import Departure, flights
from riverkeeper.models.features import FoldState
from riverkeeper.process import topics_of
from riverkeeper.topics.catalog import Catalog, Replication
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import Envelope, Features, Prediction, Source
from riverkeeper.topics.partition import partition
from riverkeeper.topics.store import ORIGIN
from riverkeeper.topics.telemetry import configure_logging
from tests.brokers.kafka import KafkaCluster

KEY = "k" * 32
TICK = 0.05  # s between two batches of the live load
LOOK = 0.01  # s between two looks at a process's pages
PATIENCE = 120.0  # s for anything to come about; then the benchmark fails
AWAY = 100  # s of the live load that stand unanswered when score comes back
CHUNK = 5_000  # records written at once while a topic is filled
WAITING = "riverkeeper_pending_predictions"
DEMO = "riverkeeper.demos.flights:flights"
PENDING = "restart:pending"  # this file, for the child


def _pending() -> Pipeline:
    """The flights pipeline, with room for what is to wait."""
    f = flights
    return Pipeline(
        name="pending",
        facts=f.facts,
        outcomes=f.outcomes,
        key=f.key,
        join=f.join,
        features=f.features,
        label=f.label,
        models=f.models,
        serve=f.shares,
        bounds=f.bounds,
        fallback=f.fallback,
        constant=f.constant,
        partitions=f.partitions,
        max_pending=1_000_000,
    )


pending = _pending()


@dataclass
class Child:
    """A riverkeeper process, and when (seconds since 1970) it reached each stage."""

    process: subprocess.Popen[bytes]
    port: int
    spawned: float
    stages: dict[str, float] = field(default_factory=dict)

    @classmethod
    def spawn(cls, address: str, agent: str, ref: str = DEMO) -> Child:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        environment = {
            **os.environ,
            "RIVERKEEPER_BROKER": address,
            "RIVERKEEPER_SIGNING_KEY": KEY,
            "RIVERKEEPER_PORT": str(port),
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        spawned = time.time()
        log = tempfile.NamedTemporaryFile(prefix=f"restart-{agent}-", suffix=".log")  # noqa: SIM115  the child's
        process = subprocess.Popen(
            [sys.executable, "-m", "riverkeeper", "run", ref, "--agents", agent],
            env=environment,
            stdout=log,
            stderr=log,
        )
        return cls(process, port, spawned)

    async def until_at_work(self) -> None:
        """Notes when each stage was first seen to be over."""
        last = "imports"
        deadline = time.monotonic() + PATIENCE
        while last:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{last}: status {self.process.poll()}")
            waiting = await asyncio.to_thread(self._waiting)
            if waiting != last:
                self.stages[last] = time.time() - self.spawned
                last = waiting
            await asyncio.sleep(LOOK)

    def _waiting(self) -> str:
        try:
            said = json.loads(self.page("/readyz"))
        except OSError:
            return "imports"
        return next(iter(said["waiting"].values()), "")

    def page(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def sum_of(self, series: str) -> float:
        """A metric, over all its labels."""
        lines = self.page("/metrics").decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{series}{{"))

    def memory(self) -> tuple[float, float]:
        """Resident now and at most, MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        rows = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return tuple(int(rows[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]

    def end(self, signum: int) -> None:
        self.process.send_signal(signum)
        self.process.wait(PATIENCE)


class Load:
    """Facts at a rate, straight to their topic, until it is told to stop."""

    def __init__(self, connection: Connection, rate: int) -> None:
        self._connection, self._rate = connection, rate
        self.sent = 0

        self._facts = envelopes(5_000)
        self._ahead = 0  # facts sent besides the rate
        self._writer = Writer(connection)
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled."""
        began = time.monotonic()
        await self._writer.start()
        try:
            while True:
                await self._send(int((time.monotonic() - began) * self._rate) + self._ahead - self.sent)
                await asyncio.sleep(TICK)
        finally:
            await self._writer.stop()

    async def burst(self, facts: int) -> None:
        """So many more, at once."""
        for start in range(0, facts, CHUNK):
            due = min(CHUNK, facts - start)
            self._ahead += due
            await self._send(due)

    async def _send(self, due: int) -> None:
        async with self._turn:
            await self._writer.write([self._fact(n) for n in range(self.sent, self.sent + due)])
            self.sent += max(0, due)

    def _fact(self, n: int) -> Out:
        fact = msgspec.structs.replace(self._facts[n % len(self._facts)], id=str(n))
        where = partition(fact.key.encode(), flights.partitions)
        origin = ((ORIGIN, b"flights.events/%d/%d/0" % (where, n)),)
        return Out(flights.topic("facts"), where, fact.key.encode(), msgspec.json.encode(fact), origin)


class Predictions:
    """The predictions that were appended, seen from outside."""

    def __init__(self, address: str) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=address, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        self._places = [TopicPartition(flights.topic("predictions"), p) for p in range(flights.partitions)]

    async def __aenter__(self) -> Predictions:
        await self._consumer.start()
        self._consumer.assign(self._places)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._consumer.stop()

    async def ends(self) -> dict[TopicPartition, int]:
        return dict(await self._consumer.end_offsets(self._places))

    async def total(self) -> int:
        return sum((await self.ends()).values())

    async def first_after(self, ends: dict[TopicPartition, int]) -> float:
        """When the first prediction beyond `ends` was appended: seconds since 1970."""
        for tp, end in ends.items():
            self._consumer.seek(tp, end)
        got: dict[TopicPartition, list[object]] = {}
        async with asyncio.timeout(PATIENCE):
            while not got:
                got = await self._consumer.getmany(timeout_ms=20)
        return min(r.timestamp for records in got.values() for r in records) / 1000  # type: ignore[attr-defined]


@asynccontextmanager
async def under_load(kafka: KafkaCluster, rate: int) -> AsyncIterator[tuple[Load, Predictions]]:
    """Topics, versions of every model, and a load that is being sent."""
    connection = Connection(kafka.address)
    async with Catalog(connection, Replication(1, 1)) as catalog:
        await catalog.create(topics_of(flights))
    writer = Writer(connection)
    await writer.start()
    await writer.write(versions(flights))
    await writer.stop()
    load = Load(connection, rate)
    sending = asyncio.create_task(load.run())
    try:
        async with Predictions(kafka.address) as predictions:
            yield load, predictions
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def answered(load: Load, predictions: Predictions, rate: int) -> None:
    """Until score is less than half a second behind the load."""
    async with asyncio.timeout(PATIENCE):
        while await predictions.total() < load.sent - rate / 2:  # noqa: ASYNC110  seen from outside
            await asyncio.sleep(0.2)


async def scorer(kafka: KafkaCluster, rounds: int, rate: int) -> dict[str, object]:
    found: dict[str, list[dict[str, float]]] = {"SIGKILL": [], "SIGTERM": []}
    async with under_load(kafka, rate) as (load, predictions):
        child = Child.spawn(kafka.address, "score")
        await child.until_at_work()
        for how in (*["SIGKILL"] * rounds, *["SIGTERM"] * rounds):
            await answered(load, predictions, rate)
            await asyncio.to_thread(child.end, signal.Signals[how])
            ends = await predictions.ends()
            child = Child.spawn(kafka.address, "score")
            at_work = asyncio.create_task(child.until_at_work())
            first = await predictions.first_after(ends) - child.spawned
            await at_work
            found[how].append({**child.stages, "first prediction": first})
        child.end(signal.SIGTERM)
    return {how: _medians(rows) for how, rows in found.items()}


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, object]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown: dict[str, object] = {
        name: round(statistics.median(row[name] for row in rows if name in row), 3) for name in names
    }
    shown["first prediction, each"] = [round(row["first prediction"], 2) for row in rows]
    return shown


async def catchup(kafka: KafkaCluster, rounds: int, rate: int) -> dict[str, object]:
    found = []
    async with under_load(kafka, rate) as (load, predictions):
        for _ in range(rounds):
            child = Child.spawn(kafka.address, "score")
            await child.until_at_work()
            await answered(load, predictions, rate)
            await asyncio.to_thread(child.end, signal.SIGKILL)
            await load.burst(AWAY * rate)
            began = await predictions.total()
            child = Child.spawn(kafka.address, "score")
            at_work = asyncio.create_task(child.until_at_work())
            while await predictions.total() == began:  # noqa: ASYNC110  seen from outside
                await asyncio.sleep(LOOK)
            began, first = await predictions.total(), time.monotonic()
            await answered(load, predictions, rate)
            found.append((await predictions.total() - began) / (time.monotonic() - first))
            await at_work
            child.end(signal.SIGTERM)
    median = statistics.median(found)
    return {
        "live facts/s": rate,
        "facts/s while it catches up": round(median),
        "times the live rate": round(median / rate, 1),
        "each": [round(each) for each in found],
    }


async def join(kafka: KafkaCluster, rounds: int, count: int) -> dict[str, object]:
    connection = Connection(kafka.address)
    async with Catalog(connection, Replication(1, 1)) as catalog:
        await catalog.create(topics_of(pending))
    size = await fill(connection, count)
    child = Child.spawn(kafka.address, "join", PENDING)
    await child.until_at_work()
    at_work = child.memory()[0]
    began = time.monotonic()
    while await asyncio.to_thread(child.sum_of, WAITING) < count:  # noqa: ASYNC110  seen from outside
        await asyncio.sleep(1)
    rate = count / (time.monotonic() - began)
    full = child.memory()[0]
    seconds, resident, most = [], [], []
    for _ in range(rounds):
        await asyncio.to_thread(child.end, signal.SIGKILL)
        child = Child.spawn(kafka.address, "join", PENDING)
        await child.until_at_work()
        seconds.append(max(child.stages.values()) - child.stages["imports"])
        now, peak = child.memory()
        resident.append(now)
        most.append(peak)
    child.end(signal.SIGKILL)
    return {
        "pending": count,
        "bytes of a record": size,
        "predictions/s while it fills": round(rate),
        "MB at work, none pending": round(at_work),
        "MB, all pending": round(full),
        "bytes a pending prediction": round((full - at_work) * 2**20 / count),
        "restored: seconds from live to at work": round(statistics.median(seconds), 1),
        "each": [round(each, 1) for each in seconds],
        "restored: MB": round(statistics.median(resident)),
        "restored: MB at most": round(statistics.median(most)),
        "restored: bytes a pending prediction": round(
            (statistics.median(resident) - at_work) * 2**20 / count
        ),
    }


async def fill(connection: Connection, count: int) -> int:
    """Writes predictions as score does; returns the size of one."""
    writer, topic = Writer(connection), pending.topic("predictions")
    await writer.start()
    facts = envelopes(1_000)
    rows = pending.graph.extract(FoldState(), facts)
    said = []
    for fact, row in zip(facts, rows, strict=True):
        assert isinstance(row, dict)
        said.append(_prediction(fact, row))
    for start in range(0, count, CHUNK):
        outs = []
        for n in range(start, min(start + CHUNK, count)):
            key = f"2013-01-01/{n:08}/JFK"
            value = said[n % len(said)].replace(b"KEY", key.encode())
            where = partition(key.encode(), pending.partitions)
            origin = ((ORIGIN, b"pending.facts/%d/%d/0" % (where, n)),)
            outs.append(Out(topic, where, key.encode(), value, origin))
        await writer.write(outs)
    await writer.stop()
    return len(said[0])


def _prediction(fact: Envelope[Departure], features: Features) -> bytes:
    return msgspec.json.encode(
        Prediction(
            id=fact.id,
            key="KEY",
            time=fact.time,
            value=12.3456789,
            source=Source.MODEL,
            reason="",
            asked="steady",
            model="steady",
            version=17,
            fingerprint=pending.fingerprint,
            fact="pending.facts/0/123456",
            verdict=-1,
            baseline=9.87654321,
            features=features,
        )
    )


PARTS = {"scorer": scorer, "catchup": catchup, "join": join}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=1_000, help="facts/s of the live load")
    parser.add_argument("--pending", type=int, default=1_000_000, help="predictions without an outcome")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_logging("ERROR", json=False)
    found: dict[str, object] = {}
    for part in options.parts or PARTS:
        with KafkaCluster() as kafka:
            size = options.pending if part == "join" else options.rate
            found[part] = asyncio.run(PARTS[part](kafka, options.rounds, size))
    found["load average"] = os.getloadavg()
    sys.stdout.write(json.dumps(found, indent=None if options.json else 2) + "\n")


if __name__ == "__main__":
    main()
