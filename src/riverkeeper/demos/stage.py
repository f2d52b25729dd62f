"""What a demo stands on: a broker with its topics, a key, settings, an outside reader; and what it came to."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from aiokafka.admin import AIOKafkaAdminClient

from ..models.pipeline import Pipeline
from ..process import topics_of
from ..settings import Settings, SettingsError
from ..topics.catalog import Catalog, Replication, TopicSpec, create_embedded
from ..topics.connection import Connection
from ..topics.embedded import EmbeddedBroker
from .ledger import TOPICS, Incident, Ledger, Record, Summary
from .watcher import Watcher

Ending: TypeAlias = Literal["complete", "stopped", "stalled"]

DEMO_KEY = "demo.key"


@dataclass(frozen=True)
class Outcome:
    summary: Summary
    ending: Ending
    wrong: list[str]  # what does not add up, a sentence each
    incidents: list[Incident]
    began_ms: int  # when the first event was appended


def demo_settings(settings: Settings) -> Settings:
    """With reports often enough for what passes in a minute or so, unless the environment says more."""
    quick = {"vitals_seconds": 0.25, "session_timeout": 6.0}
    return settings.model_copy(update={n: v for n, v in quick.items() if n not in settings.model_fields_set})


def ledger_of(pipeline: Pipeline) -> Ledger:
    bounds = (pipeline.bounds.low, pipeline.bounds.high)
    live = {model: pipeline.shares.get(model, 0.0) for model in pipeline.serving}
    return Ledger(pipeline.name, tuple(pipeline.models), live, bounds)


def watcher_of(pipeline: Pipeline, connection: Connection, feed: Callable[[Record], None]) -> Watcher:
    partitions = {t.name: t.partitions for t in topics_of(pipeline)}
    topics = [pipeline.topic(suffix) for suffix in TOPICS]
    return Watcher(connection, {topic: partitions[topic] for topic in topics}, feed)


@asynccontextmanager
async def embedded(*pipelines: Pipeline) -> AsyncIterator[str]:
    """The address of a broker in this process that has these pipelines' topics."""
    with EmbeddedBroker() as broker:
        create_embedded(broker, _topics(pipelines))
        yield broker.address


async def create_topics(connection: Connection, *pipelines: Pipeline) -> None:
    """Creates what is missing; with one copy of each partition if the cluster has one broker."""
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        brokers = len((await admin.describe_cluster())["brokers"])
    finally:
        await admin.close()
    replication = Replication() if brokers >= Replication().factor else Replication(1, 1)
    async with Catalog(connection, replication) as catalog:
        if not await catalog.embedded():
            await catalog.create(_topics(pipelines))


def _topics(pipelines: Iterable[Pipeline]) -> list[TopicSpec]:
    return [spec for pipeline in pipelines for spec in topics_of(pipeline)]


def demo_key(settings: Settings) -> bytes:
    """The key that signs versions on a shared broker: the one that is set, else one of this user's own.

    It lives in a file so that a demo that is started again accepts its own versions. It is not derived
    from anything the broker shows, for then whoever can read there could sign.
    """
    if settings.signing_key is not None:
        return settings.required_signing_key()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "riverkeeper" / DEMO_KEY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _write_whole(path, secrets.token_hex(32))
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the demo cannot keep its key in {path} ({error.strerror}); set RIVERKEEPER_SIGNING_KEY"
        ) from error


def _write_whole(path: Path, text: str) -> None:
    """Creates the file with its text, readable by its owner; raises FileExistsError if it is there."""
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.touch(0o600)
    try:
        scratch.write_text(text)
        os.link(scratch, path)
    finally:
        scratch.unlink()
