"""What all parts share: brokers, topics, child processes and what they used, outputs, results.

A contender is a process of its own. Its rate is told by the log: records after those of the first
append time, over the time from there to the last. What it used is told by the kernel, over the same
stretch. Contenders take turns, and the order changes from round to round, so that what else the machine
does falls on all of them.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.work import KEY, Declared
from riverkeeper import Pipeline
from riverkeeper.models.version import ManifestKey, parse_key
from riverkeeper.process import topics_of
from riverkeeper.topics.catalog import Catalog, Replication, TopicSpec, create_embedded
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import Manifest
from tests.brokers.kafka import KafkaCluster

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PATIENCE = 90.0  # s for anything to come about; then the benchmark fails
LOOK = 0.02  # s between two looks at what another process brings about
CHUNK = 5_000  # records written at once while a topic is filled
TICKS = os.sysconf("SC_CLK_TCK")  # per s of processor time
OURS, BEFORE = "riverkeeper", "riverkeeper before"  # contenders: this tree, and the one it is compared with
OUR_PACKAGES = ("aiokafka", "river", "numpy", "msgspec", "orjson", "confluent-kafka")
THEIR_PACKAGES = (
    "aiokafka",
    "river",
    "orjson",
    "bytewax",
    "quixstreams",
    "faust-streaming",
    "confluent-kafka",
)


@dataclass(frozen=True)
class Options:
    """`size` is the number of records that the fastest contender works through; parts scale from it."""

    rounds: int = 5
    size: int = 200_000
    pending: int = 1_000_000
    seconds: float = 60.0  # of a live load
    rates: tuple[int, ...] = (1_000, 8_333, 20_000)  # events/s of a live load
    contenders: tuple[str, ...] = ()  # only these; () for all
    peers: str = sys.executable  # the Python that has the peers' packages
    against: str = ""  # folder of another checkout, whose agents are a contender of their own


@dataclass(frozen=True)
class Broker:
    kind: str
    address: str
    embedded: EmbeddedBroker | None = None

    @property
    def connection(self) -> Connection:
        return Connection(self.address)

    async def create(self, specs: Sequence[TopicSpec]) -> None:
        if self.embedded is not None:
            create_embedded(self.embedded, specs)
            return
        async with Catalog(self.connection, Replication(1, 1)) as catalog:
            await catalog.create(specs)


@contextmanager
def broker(kind: str) -> Iterator[Broker]:
    if kind == "embedded":
        with EmbeddedBroker() as embedded:
            yield Broker(kind, embedded.address, embedded)
    else:
        with KafkaCluster() as kafka:
            yield Broker(kind, kafka.address)


async def prepare(broker: Broker, pipeline: Pipeline, extra: Sequence[TopicSpec] = ()) -> None:
    await broker.create([*topics_of(pipeline), *extra])


def plain_topic(name: str, partitions: int) -> TopicSpec:
    return TopicSpec(name, partitions, {"message.timestamp.type": "LogAppendTime"})


async def write(broker: Broker, outs: Iterable[Out]) -> int:
    """Fills topics; returns how many records that were."""
    writer, chunk, count = Writer(broker.connection), [], 0
    await writer.start()
    for out in outs:
        chunk.append(out)
        count += 1
        if len(chunk) == CHUNK:
            await writer.write(chunk)
            chunk = []
    await writer.write(chunk)
    await writer.stop()
    return count


class Used(NamedTuple):
    """Processor seconds of a process so far, over all threads, and resident memory in MB."""

    cpu: float
    resident: float
    most: float


@dataclass
class Child:
    """A contender's process."""

    process: subprocess.Popen[bytes]
    log: Any
    port: int
    spawned: float = field(default_factory=time.time)

    @classmethod
    def spawn(
        cls, module: Sequence[str], environment: Mapping[str, str], python: str = sys.executable
    ) -> Child:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        log = tempfile.TemporaryFile(prefix="bench-")  # noqa: SIM115  the child's, closed by `end`
        process = subprocess.Popen(
            [python, "-m", *module],
            env={
                **os.environ,
                "RIVERKEEPER_PORT": str(port),
                "RIVERKEEPER_SIGNING_KEY": KEY,
                "RIVERKEEPER_LOG_LEVEL": "WARNING",
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        return cls(process, log, port)

    @classmethod
    def agents(cls, broker: Broker, declared: Declared, names: str, tree: str = "") -> Child:
        """A process of our own agents; of another checkout's, if `tree` is its folder."""
        environment = {"RIVERKEEPER_BROKER": broker.address, **declared.environment()}
        if tree:
            environment["PYTHONPATH"] = os.pathsep.join([f"{tree}/src", tree])
        return cls.spawn(["riverkeeper", "run", "bench.child:pipeline", "--agents", names], environment)

    def used(self) -> Used:
        folder = Path(f"/proc/{self.process.pid}")
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        rows = dict(row.split(":", 1) for row in (folder / "status").read_text().splitlines() if ":" in row)
        resident, most = (int(rows[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return Used((int(fields[11]) + int(fields[12])) / TICKS, resident, most)

    def check(self) -> None:
        """Raises RuntimeError if it has failed, or has ended before its work was done, or takes too long."""
        if self.process.poll() not in (None, 0) or time.time() - self.spawned > PATIENCE:
            raise RuntimeError(f"{self.process.args!r}: status {self.process.poll()}: {self.said()[-4_000:]}")

    async def until_said(self) -> dict[str, Any]:
        """What a contender that ends by itself says last, as JSON."""
        await asyncio.to_thread(self.process.wait, PATIENCE)
        self.check()
        last: dict[str, Any] = json.loads(self.said().splitlines()[-1])
        return last

    def said(self) -> str:
        self.log.seek(0)
        text: str = self.log.read().decode(errors="replace")
        return text

    async def until_at_work(self) -> dict[str, float]:
        """Of riverkeeper's own processes: seconds from the spawn to the end of each stage of starting."""
        stages, last = {}, "imports"
        async with asyncio.timeout(PATIENCE):
            while last:
                self.check()
                waiting = await asyncio.to_thread(self._waiting)
                if waiting != last:
                    stages[last] = time.time() - self.spawned
                    last = waiting
                await asyncio.sleep(LOOK / 2)
        return stages

    def _waiting(self) -> str:
        try:
            said = json.loads(self.page("/readyz"))
        except OSError:
            return "imports"
        return next((str(reason) for reason in said["waiting"].values() if reason), "")

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

    def end(self, signum: int = signal.SIGTERM) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signum)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Row(NamedTuple):
    ms: int
    partition: int
    key: bytes
    value: bytes


class Topic:
    """A topic as an outside reader sees it."""

    def __init__(self, broker: Broker, name: str, partitions: int) -> None:
        self._places = [TopicPartition(name, p) for p in range(partitions)]
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=broker.address,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=4_000_000,
        )

    async def __aenter__(self) -> Topic:
        await self._consumer.start()
        self._consumer.assign(self._places)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._consumer.stop()

    async def ends(self) -> dict[TopicPartition, int]:
        return dict(await self._consumer.end_offsets(self._places))

    async def total(self) -> int:
        return sum((await self.ends()).values())

    async def rows(self) -> list[Row]:
        """All that is there now and was not read before."""
        ends, rows = await self.ends(), []
        async with asyncio.timeout(PATIENCE):
            while any([await self._consumer.position(tp) < end for tp, end in ends.items() if end]):
                for records in (await self._consumer.getmany(timeout_ms=100)).values():
                    rows += [Row(r.timestamp, r.partition, r.key or b"", r.value or b"") for r in records]
        return rows

    async def skip_to_end(self) -> None:
        for tp, end in (await self.ends()).items():
            self._consumer.seek(tp, end)

    async def until(self, count: int, child: Child, looks: float = LOOK) -> tuple[Used, int, Used]:
        """Looks every `looks` seconds and waits for `count` records: what the child had used when the first were there, how many these
        were, and what it had used at the end."""
        first: Used | None = None
        began = total = 0
        while total < count:
            total = await self.total()
            if first is None and total:
                first, began = child.used(), total
            child.check()
            await asyncio.sleep(looks)
        assert first is not None
        return first, began, child.used()


def manifests(rows: Iterable[Row]) -> list[Manifest]:
    """The versions that records of `models` publish, in order."""
    found = [row for row in rows if row.value and isinstance(parse_key(row.key), ManifestKey)]
    return [Manifest.model_validate_json(row.value) for row in found]


def rate(rows: Sequence[Row]) -> float:
    """Records per second, by append times: those after the first stamp, over the time since it."""
    stamps = sorted(row.ms for row in rows)
    after = max(1, sum(stamp > stamps[0] for stamp in stamps))  # one stamp for all tells nothing
    return after / max(0.001, (stamps[-1] - stamps[0]) / 1000)


def medians(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The median of each figure, and the first figure of every round."""
    names = list(dict.fromkeys(name for row in found for name in row))
    shown: dict[str, Any] = {n: short(statistics.median(r[n] for r in found if n in r)) for n in names}
    if names:
        shown["each"] = [short(row[names[0]]) for row in found if names[0] in row]
    return shown


def compared(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each contender, and riverkeeper's rate as a multiple of each other's: per round, for what
    the machine did besides differs from round to round less than within a minute."""
    shown: dict[str, Any] = {"contenders": {name: medians(found) for name, found in runs.items()}}
    ours = runs.get(OURS, [])
    shown["ratios"] = {
        name: medians([_ratios(a, b) for a, b in zip(ours, found, strict=True)])
        for name, found in runs.items()
        if name != OURS and ours
    }
    return shown


def _ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Of the rates, and of the records that a processor second is enough for."""
    ratios = {"of rates": ours["rate"] / theirs["rate"]}
    if "cpu us" in ours and "cpu us" in theirs:
        ratios["per processor second"] = theirs["cpu us"] / max(1e-9, ours["cpu us"])
    return ratios


def short(figure: float) -> float:
    """Four digits: none of these figures is known to more."""
    return float(f"{figure:.4g}") if abs(figure) < 1_000 else float(round(figure))


def percentile(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    by %= len(items)
    return [*items[by:], *items[:by]]


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[Child]:
    try:
        yield child
    finally:
        await asyncio.to_thread(child.end)


async def fetched(environment: dict[str, str]) -> dict[str, float]:
    child = Child.spawn(["bench.peers.fetch"], environment)
    async with running(child):
        said = await child.until_said()
    return {"rate": said["rate"], "cpu us": said["cpu"] * 1e6}


def machine(peers: str) -> dict[str, Any]:
    """What the figures stand on."""
    commit = _said("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "commit": commit,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "cpu": next((line.split(":", 1)[1].strip() for line in cpus if line.startswith("model name")), ""),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(sys.executable, OUR_PACKAGES),
        "packages of the peers": _versions(peers, THEIR_PACKAGES),
        "load average": [round(each, 1) for each in os.getloadavg()],
        "nice": os.nice(0),
    }


def _versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed there, if that is there."""
    if not Path(python).exists():
        return {}
    lines = _said(python, "-m", "pip", "--disable-pip-version-check", "freeze", "--all").splitlines()
    known = dict(line.split("==", 1) for line in lines if "==" in line)
    return {package: known[package] for package in packages if package in known}


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
