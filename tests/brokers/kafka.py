"""Real Apache Kafka for the tests: its jars from Maven Central, its brokers as child processes."""

import atexit
import base64
import ctypes
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

STARTUP_SECONDS = 60.0  # s; a broker is up in 3 to 6 s, ten times that on a busy machine
STOP_SECONDS = 30.0  # s; a controlled shutdown moves leaders first
POLL_SECONDS = 0.05  # s between two looks at a condition that another process brings about
DOWNLOAD_SECONDS = 600.0  # s; 43 MB, once per machine
LOG_TAIL_LINES = 40  # lines of a broker's log in an error: a Java stack trace and what led to it
MAX_NODES = 5  # 350 MB each

# Below the ephemeral ranges of Linux and macOS: while a broker is down, no client's outgoing connection
# (not even its own attempt to reconnect) can be given the port that the broker needs again.
PORTS = range(20_000, 32_000)

_HERE = Path(__file__).parent
_JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xmx384m",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# The signal is sent when the *thread* that started the child ends: so one that lives as long as Python
# starts them all.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-spawner")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class KafkaError(RuntimeError):
    """Kafka could not be fetched, started or stopped; the message says why."""


def jars() -> Path:
    """The folder with Kafka's jars, fetched once per machine and version: that may block for minutes."""
    _require("java")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "riverkeeper"
    pom = (_HERE / "pom.xml").read_bytes()
    folder = cache / f"kafka-{_version()}-{hashlib.sha256(pom).hexdigest()[:8]}"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{folder.name}.lock"):
        if not folder.is_dir():
            _download(folder)
    return folder


def _version() -> str:
    pom = (_HERE / "pom.xml").read_text()
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", pom)
    if found is None:
        raise KafkaError(f"{_HERE / 'pom.xml'} names no version of kafka_2.13")
    return found[1]


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise KafkaError(
            f"tests against Kafka need {program}, which is not installed: "
            "apt-get install openjdk-17-jre-headless maven"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(folder: Path) -> None:
    _require("mvn")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        target = Path(scratch) / "lib"
        command = ["mvn", "-q", "-B", "-f", str(_HERE / "pom.xml"), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={target}"],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
        if done.returncode != 0:
            raise KafkaError(f"Maven could not fetch Kafka {_version()}:\n{done.stdout}{done.stderr}")
        target.rename(folder)


class Security(Protocol):
    """What makes a cluster a secured one; see tests/brokers/security.py."""

    def properties(self, port: int, controller_port: int) -> dict[str, object]:
        """Of a node whose clients come to this port; they replace those of a plain one."""

    @property
    def format_arguments(self) -> tuple[str, ...]: ...

    def brokers_seen(self, port: int) -> set[int]:
        """The ids of the live brokers by the one on that port; none if it does not answer."""


@dataclass
class _Node:
    id: int
    folder: Path
    port: int
    controller_port: int
    proxied_port: int  # what comes through a proxy is served there,
    proxy_port: int  # and is told that the broker lives here
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "kafka.log"

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"


class KafkaCluster:
    """Apache Kafka in KRaft mode, every node broker and controller, with ids from 1; up when constructed.

    `behind` is the address for clients that come through proxies, one for each of `routes`: they are told
    that the brokers live at the proxies' ports. With `disk_mb` each node keeps its data on a disk of that
    size (a tmpfs, which takes root), so that it can be full.

    Its methods block (a start takes seconds): in a coroutine, call them through `asyncio.to_thread`.
    No broker outlives this process, however it ends (Linux; elsewhere, unless it is killed with -9).
    """

    def __init__(
        self, nodes: int = 1, *, disk_mb: int | None = None, security: Security | None = None
    ) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise ValueError(f"KafkaCluster: nodes={nodes} is outside 1..{MAX_NODES}")
        self._jars = jars()
        self._folder = Path(tempfile.mkdtemp(prefix="riverkeeper-kafka-"))
        self._disk_mb = disk_mb
        self._security = security
        ports = iter(_free_ports(4 * nodes))
        self._nodes = {
            i: _Node(i, self._folder / f"node{i}", next(ports), next(ports), next(ports), next(ports))
            for i in range(1, nodes + 1)
        }
        self.address = ",".join(f"127.0.0.1:{node.port}" for node in self._nodes.values())
        self.behind = ",".join(f"127.0.0.1:{node.proxy_port}" for node in self._nodes.values())
        self.routes = {node.proxy_port: node.proxied_port for node in self._nodes.values()}
        atexit.register(self.close)
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def kill(self, node: int) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self._process(node)
        process.kill()
        process.wait(STOP_SECONDS)
        self._nodes[node].process = None

    def stop(self, node: int) -> None:
        """SIGTERM: a controlled shutdown. Raises KafkaError if it takes longer than STOP_SECONDS."""
        process = self._process(node)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._error(node, f"did not stop within {STOP_SECONDS:.0f} s") from None
        self._nodes[node].process = None

    def start(self, node: int) -> None:
        """Start a stopped node with the data it had, and wait until it serves."""
        if self._nodes[node].process is not None:
            raise KafkaError(f"Kafka node {node} is already running")
        self._spawn(node)
        self._await_brokers(node, {node}, time.monotonic() + STARTUP_SECONDS)

    def pause(self, node: int) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        self._process(node).send_signal(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """SIGCONT."""
        self._process(node).send_signal(signal.SIGCONT)

    def running(self, node: int) -> bool:
        """Whether its process is there; one that ended by itself is let go, so that it can be started."""
        it = self._nodes[node]
        if it.process is not None and it.process.poll() is not None:
            it.process = None
        return it.process is not None

    def data(self, node: int) -> Path:
        """The folder of the node's log."""
        return self._nodes[node].data

    def close(self) -> None:
        """Kill every node and remove the data. Does nothing the second time."""
        atexit.unregister(self.close)
        running = [node.process for node in self._nodes.values() if node.process is not None]
        for process in running:
            process.kill()
        for process in running:
            process.wait(STOP_SECONDS)
        for node in self._nodes.values():
            node.process = None
            if node.data.is_mount():
                subprocess.run(["umount", "--lazy", str(node.data)], check=True, timeout=STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _boot(self) -> None:
        cluster_id = _cluster_id()
        for node in self._nodes.values():
            node.folder.mkdir()
            if self._disk_mb is not None:
                _mount(node.data, self._disk_mb)
            settings = _properties(node, self._nodes.values())
            if self._security is not None:
                settings |= self._security.properties(node.port, node.controller_port)
            node.properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            list(pool.map(lambda node: self._format(node, cluster_id), self._nodes))
        for node_id in self._nodes:
            self._spawn(node_id)
        deadline = time.monotonic() + STARTUP_SECONDS
        for node_id in self._nodes:
            self._await_brokers(node_id, set(self._nodes), deadline)

    def _format(self, node: int, cluster_id: str) -> None:
        it = self._nodes[node]
        arguments = ["format", "-t", cluster_id, "-c", str(it.properties)]
        if self._security is not None:
            arguments += self._security.format_arguments
        process = _launch(self._command("kafka.tools.StorageTool", *arguments), it.log)
        if process.wait(STARTUP_SECONDS) != 0:
            raise self._error(node, "could not format its storage")

    def _spawn(self, node: int) -> None:
        it = self._nodes[node]
        it.process = _launch(self._command("kafka.Kafka", str(it.properties)), it.log)

    def _command(self, *arguments: str) -> list[str]:
        return ["java", *_JVM, "-cp", f"{self._jars}/*", *arguments]

    def _await_brokers(self, node: int, expected: set[int], deadline: float) -> None:
        """Wait until the node answers, and knows the expected brokers as alive."""
        seen: set[int] = set()
        while not expected <= seen:
            if self._process(node).poll() is not None:
                raise self._error(node, f"ended with status {self._process(node).returncode} while starting")
            if time.monotonic() > deadline:
                raise self._error(node, f"sees brokers {sorted(seen)}, not {sorted(expected)}, in time")
            time.sleep(POLL_SECONDS)
            look = _brokers_seen if self._security is None else self._security.brokers_seen
            seen = look(self._nodes[node].port)

    def _process(self, node: int) -> subprocess.Popen[bytes]:
        process = self._nodes[node].process
        if process is None:
            raise KafkaError(f"Kafka node {node} is not running")
        return process

    def _error(self, node: int, what: str) -> KafkaError:
        lines = self._nodes[node].log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return KafkaError("\n".join([f"Kafka node {node} {what}; the end of its log:", *lines]))


def _mount(folder: Path, megabytes: int) -> None:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        timeout=STOP_SECONDS,
    )
    if done.returncode != 0:
        raise KafkaError(f"a disk of {megabytes} MB for Kafka cannot be mounted: {done.stderr.strip()}")


def _launch(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is pytest's to handle: it must not stop brokers under a running test.
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    return _SPAWNER.submit(start).result()


def _die_with_parent() -> Callable[[], None] | None:
    libc = _LIBC
    if libc is None:
        return None
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _cluster_id() -> str:
    """A random id in Kafka's form; the first letter is fixed, for a leading "-" would look like an option."""
    return "R" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(free) == count:
            return free
        with socket.socket() as probe:
            # Kafka binds with it, too; without it a port in TIME_WAIT would look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                free.append(port)
    raise KafkaError(f"no {count} free ports in {PORTS}")


def _properties(node: _Node, nodes: Iterable[_Node]) -> dict[str, object]:
    peers = list(nodes)
    replicas, in_sync = min(3, len(peers)), min(2, len(peers))
    return {
        "node.id": node.id,
        "process.roles": "broker,controller",
        "listeners": ",".join(
            (
                f"PLAINTEXT://127.0.0.1:{node.port}",
                f"PROXIED://127.0.0.1:{node.proxied_port}",
                f"CONTROLLER://127.0.0.1:{node.controller_port}",
            )
        ),
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port},PROXIED://127.0.0.1:{node.proxy_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": ",".join(f"{peer.id}@127.0.0.1:{peer.controller_port}" for peer in peers),
        "log.dirs": node.data,
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "unclean.leader.election.enable": "false",
        # The default of 50 costs seconds when the first group or transaction arrives.
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": 0,
        # Tests kill members and brokers and wait for the rest to notice.
        "group.min.session.timeout.ms": 1000,
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        # By default a third of the heap, taken at the start.
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }


def _brokers_seen(port: int) -> set[int]:
    """The ids of the live brokers by the metadata of the broker on that port; none if it does not answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            # Metadata (3), version 1, correlation 1, client "t"; no topics.
            connection.sendall(struct.pack(">ihhih1si", 15, 3, 1, 1, 1, b"t", 0))
            stream = connection.makefile("rb")
            (size,) = struct.unpack(">i", stream.read(4))
            return _broker_ids(stream.read(size))
    except (OSError, struct.error):
        return set()


def _broker_ids(response: bytes) -> set[int]:
    _, count = struct.unpack_from(">ii", response)
    ids, at = set(), 8
    for _ in range(count):
        node, host_size = struct.unpack_from(">ih", response, at)
        (rack_size,) = struct.unpack_from(">h", response, at + 10 + host_size)
        at += 12 + host_size + max(rack_size, 0)
        ids.add(node)
    return ids
