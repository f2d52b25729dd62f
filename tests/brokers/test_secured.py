"""On a secured broker every part works with the rights that are listed for it, and says which one it lacks.

The broker speaks SASL_SSL, knows its users by SCRAM and allows nothing that was not granted; every grant
here is one that `riverkeeper acls` prints.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from riverkeeper import Pipeline
from riverkeeper.acls import ROLES, document
from riverkeeper.demos.flights_data import rows, stream
from riverkeeper.process import NAMES, Process
from riverkeeper.remedies import sentence
from riverkeeper.settings import Settings
from riverkeeper.topics.connection import Connection
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster, jars
from tests.brokers.security import ADMIN, Authority, Grant, Secured, add_user, grant, granted, revoke
from tests.system import account
from tests.system.harness import SIGNING_KEY, Event, World, processes, world
from tests.system.pipelines import KINDS
from tests.system.play import finished

PASSWORD = "not-a-secret"
SECONDS = 60.0
EVENTS = 600
ROOT = Path(__file__).parents[2]
REF = "tests.system.named:pipeline"


@dataclass
class Secure:
    """The secured cluster, and its administrator."""

    cluster: KafkaCluster
    secured: Secured
    admin: AdminClient = field(init=False)

    def __post_init__(self) -> None:
        self.admin = self.secured.admin(self.cluster.address)

    def options(self, user: str, password: str = PASSWORD) -> dict[str, str]:
        """As `Connection` takes them."""
        return {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": user,
            "sasl_password": password,
            "ssl_cafile": str(self.secured.authority.certificate),
        }

    @property
    def broker(self) -> Broker:
        """As the administrator sees it."""
        options = self.options(ADMIN, self.secured.password)
        return Broker(self.cluster.address, transactions=True, security=options)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    secured = Secured(Authority.make(tmp_path_factory.mktemp("authority")))
    with KafkaCluster(security=secured) as cluster:
        yield Secure(cluster, secured)


def printed(pipeline: Pipeline, kind: str) -> dict[str, list[list[str]]]:
    """What `riverkeeper acls` prints: the commands for each role, as words."""
    out = riverkeeper(["acls", REF], pipeline, kind).stdout
    found: dict[str, list[list[str]]] = {}
    for line in out.splitlines():
        if line.startswith("# "):
            role = line[2:].partition(":")[0]
        else:
            found.setdefault(role, []).append(shlex.split(line))
    return found


def riverkeeper(
    words: Sequence[str], pipeline: Pipeline, kind: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    named = {"SYSTEM_KIND": kind, "SYSTEM_NAME": pipeline.name, "RIVERKEEPER_SIGNING_KEY": SIGNING_KEY}
    command = [sys.executable, "-m", "riverkeeper", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **named, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def environment(secure: Secure, user: str, **changed: str) -> dict[str, str]:
    options = {"broker": secure.cluster.address, "port": "0", **secure.options(user), **changed}
    return {f"RIVERKEEPER_{name.upper()}": value for name, value in options.items()}


def grants(command: Sequence[str]) -> list[Grant]:
    """What a `kafka-acls` command adds."""
    pairs = list(pairwise(command))
    said = {flag: value for flag, value in pairs if flag.startswith("--")}
    return [
        Grant(
            user=said["--allow-principal"].removeprefix("User:"),
            resource=flag.removeprefix("--"),
            name=value,
            pattern=said.get("--resource-pattern-type", "literal"),
            operation=said["--operation"],
        )
        for flag, value in pairs
        if flag in ("--topic", "--group", "--transactional-id", "--cluster")
    ]


@dataclass
class Guarded:
    """A pipeline on the secured cluster, and a user for each role with the rights printed for it."""

    secure: Secure
    world: World
    rights: dict[str, list[Grant]]

    def user(self, role: str) -> str:
        return f"{self.world.pipeline.name}-{role}"

    def settings(self, role: str, **changed: object) -> Settings:
        return self.world.settings(**{**self.secure.options(self.user(role)), **changed})

    def process(self, role: str) -> Process:
        return Process(self.world.pipeline, [role], self.settings(role))

    async def without(self, role: str, missing: Grant) -> str:
        """What a process of this role says that lacks this right, as it ends."""
        revoke(self.secure.admin, [missing])
        stop = asyncio.Event()
        try:
            async with asyncio.timeout(SECONDS):
                await self.process(role).run(stop, pages=False)
        except Exception as error:  # noqa: BLE001  whatever ended it
            return sentence(error) or repr(error)
        finally:
            grant(self.secure.admin, [missing])
        raise AssertionError("it went on")


@asynccontextmanager
async def guarded(secure: Secure, kind: str) -> AsyncIterator[Guarded]:
    async with world(secure.broker, kind) as it:
        rights = {
            role: [each for command in commands for each in grants(command)]
            for role, commands in (await asyncio.to_thread(printed, it.pipeline, kind)).items()
        }
        assert rights.keys() == ROLES.keys()
        for role, needed in rights.items():
            add_user(secure.admin, f"{it.pipeline.name}-{role}", PASSWORD)
            grant(secure.admin, needed)
        yield Guarded(secure, it, rights)


async def test_flights_flow_with_the_listed_rights_alone(secure: Secure) -> None:
    """Each agent a process with a user of its own, and so are who produces, who reads and who looks on."""
    async with guarded(secure, "flights") as it:
        world = it.world
        events = [Event(e.key, e.value) for e in islice(stream(rows()), EVENTS)]
        with processes() as replicas:
            replicas += [world.spawn([role], **environment(secure, it.user(role))) for role in NAMES]

            def watch() -> None:
                for replica in replicas:
                    replica.check()

            connection = Connection(secure.cluster.address, secure.options(it.user("producer")))
            producer = connection.producer(acks="all", enable_idempotence=True)
            await producer.start()
            try:
                topic = world.pipeline.topic("events")
                for e in events:
                    await producer.send(topic, e.value, key=e.key.encode())
            finally:
                await producer.stop()
            await finished(world, len(events), watch)
            await reads_as_reader(it)
            for words in (["status", REF], ["quarantine", f"{world.pipeline.name}/learned", "--reason", "x"]):
                role = "watcher" if words[0] == "status" else "operator"
                seen = environment(secure, it.user(role))
                done = await asyncio.to_thread(riverkeeper, words, world.pipeline, "flights", **seen)
                assert done.returncode == 0, done.stderr
            for replica in replicas:
                await replica.stop()
        await world.outside.read_up()
        account.adds_up(world.pipeline, world.outside)
        account.learned_once(world.outside, account.manifests(world.outside), to_the_end=True)


async def reads_as_reader(it: Guarded) -> None:
    connection = Connection(it.secure.cluster.address, it.secure.options(it.user("reader")))
    consumer = connection.consumer(
        group_id=it.user("reader").replace("-reader", ".reader"), auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        consumer.subscribe([it.world.pipeline.topic("predictions")])
        got = await asyncio.wait_for(consumer.getone(), SECONDS)
        assert got.value
        await consumer.commit()
    finally:
        await consumer.stop()


async def test_the_creator_makes_the_topics_and_compares_them(secure: Secure) -> None:
    pipeline = KINDS["levels"](f"made-{uuid.uuid4().hex[:8]}")
    needed = [g for command in printed(pipeline, "levels")["creator"] for g in grants(command)]
    add_user(secure.admin, needed[0].user, PASSWORD)
    grant(secure.admin, needed)
    seen = environment(secure, needed[0].user, replication="1", min_insync="1")
    for told in ("created", "ok"):
        done = await asyncio.to_thread(riverkeeper, ["topics", REF], pipeline, "levels", **seen)
        assert done.returncode == 0 and f"{pipeline.name}.events: {told}" in done.stdout, done


async def test_kafkas_own_tool_takes_the_commands(secure: Secure, tmp_path: Path) -> None:
    """And does what the tests do for it elsewhere."""
    (tmp_path / "admin.properties").write_text(secure.secured.tool_properties())
    async with world(secure.broker, "levels") as it:
        commands = (await asyncio.to_thread(printed, it.pipeline, "levels"))["score"]
        tool = ["java", "-cp", f"{jars()}/*", "org.apache.kafka.tools.AclCommand"]
        for command in commands:
            assert command[:2] == ["kafka-acls.sh", "--bootstrap-server"]
            words = [*tool, command[1], secure.cluster.address, *command[3:]]
            await asyncio.to_thread(
                subprocess.run, words, cwd=tmp_path, check=True, capture_output=True, timeout=SECONDS
            )
        expected = {each for command in commands for each in grants(command)}
        assert granted(secure.admin, f"{it.pipeline.name}-score") == expected


@pytest.mark.parametrize("role", NAMES)
async def test_each_right_that_is_missing_is_named(secure: Secure, role: str) -> None:
    """An agent that lacks any single one of its rights ends, and says which."""
    async with guarded(secure, "levels") as it:
        for missing in it.rights[role]:
            said = await it.without(role, missing)
            right = f"{missing.operation} on {missing.resource} {missing.name}"
            assert right in said and "riverkeeper acls" in said, f"without {missing}: {said}"


OUTSIDERS = {
    "wrong password": ({"sasl_password": "guessed"}, "RIVERKEEPER_SASL_PASSWORD"),
    "unknown user": ({"sasl_username": "nobody"}, "RIVERKEEPER_SASL_USERNAME"),
    "other mechanism": ({"sasl_mechanism": "SCRAM-SHA-256"}, "--sasl-mechanism"),
    "other authority": ({"ssl_cafile": "other"}, "--ssl-cafile"),
    "no encryption": ({"security_protocol": "PLAINTEXT"}, "--security-protocol"),
    "no user": ({"security_protocol": "SSL"}, "--security-protocol"),
}
COMMANDS = {
    "run": ["run", REF],
    "topics": ["topics", REF],
    "status": ["status", REF],
    "audit": ["audit", REF],
    "verdict": ["quarantine", "some/model", "--reason", "x"],
}


async def ended(secure: Secure, command: str, user: str, **changed: str) -> str:
    """What a command says that must not succeed."""
    seen = environment(secure, user, replication="1", min_insync="1", **changed)
    pipeline = KINDS["levels"]("some")
    done = await asyncio.to_thread(riverkeeper, COMMANDS[command], pipeline, "levels", **seen)
    lines = done.stderr.splitlines()
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert sum(line.startswith("Error: ") for line in lines) == 1, done.stderr
    return lines[-1]


@pytest.mark.parametrize(
    ("outsider", "command"),
    [*((outsider, "run") for outsider in OUTSIDERS), *(("wrong password", command) for command in COMMANDS)],
)
async def test_who_may_not_come_in_is_told_in_a_sentence(
    secure: Secure, tmp_path: Path, outsider: str, command: str
) -> None:
    changed, told = OUTSIDERS[outsider]
    if "ssl_cafile" in changed:
        changed = {"ssl_cafile": str(Authority.make(tmp_path).certificate)}
    add_user(secure.admin, "insider", PASSWORD)
    assert told in await ended(secure, command, "insider", **changed)


@pytest.mark.parametrize("command", COMMANDS)
async def test_who_may_do_nothing_is_told_what_is_missing(secure: Secure, command: str) -> None:
    """Known to the broker, and granted nothing."""
    add_user(secure.admin, "guest", PASSWORD)
    said = await ended(secure, command, "guest")
    assert "topic some." in said and "does not allow this user" in said and "riverkeeper acls" in said


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs" / "security.md").read_text() == document()
