"""One process: some agents of one pipeline, what they share, and the pages that show them."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import sys
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from .acls import topic_rights
from .agents import hang
from .agents.agent import Agent, Limits, PartitionsDiffer, Runtime
from .agents.ingest import Ingest
from .agents.join import Join
from .agents.learn import Learn
from .agents.score import Score
from .models.pipeline import Pipeline
from .settings import Settings
from .supervisor.policies import Limits as JudgementLimits
from .supervisor.policies import Policy, of_models, of_pipelines
from .topics import stray
from .topics.catalog import Catalog, TopicSpec, family
from .topics.seat import Seat
from .topics.telemetry import Observatory, Telemetry

if TYPE_CHECKING:
    from .supervisor.app import Supervisor

log = structlog.get_logger(__name__)

AGENTS: Mapping[str, type[Agent]] = {a.name: a for a in (Ingest, Score, Join, Learn)}
SUPERVISOR = "supervisor"
NAMES = (*AGENTS, SUPERVISOR)


# Objects made, and not gone again, between two looks of the collector at the youngest. A batch of 2 000 facts
# makes some 50 000 that reference counts free when it is done; at Python's 700 they would be looked at dozens
# of times meanwhile. One look at this many takes about 2 ms.
YOUNG_OBJECTS = 50_000
# Seconds that a thread at work keeps the interpreter from the event loop. While a version is opened each system
# call of a batch costs the loop that much; at Python's 0.005 a forest of 7 MB kept facts waiting 0.5 to 0.9 s.
SWITCH_SECONDS = 0.0001


def answer_promptly() -> None:
    """For a process that does nothing else: what was imported and declared lives until its end, and is not
    looked at again by the collector. A full look at it takes 0.1 s, in which no fact is answered. And other
    threads hand the interpreter over as soon as the event loop wants it."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_SECONDS)


def topics_of(pipeline: Pipeline) -> list[TopicSpec]:
    return family(pipeline.name, partitions=pipeline.partitions, model_partitions=pipeline.model_partitions)


def judgement_of(pipeline: Pipeline, model: str = "") -> JudgementLimits:
    """What the supervisor holds a model to, as the pipeline declares it; "" is the pipeline as a whole."""
    objectives = pipeline.objectives(model or pipeline.fallback)
    return JudgementLimits(
        margin=objectives.margin,
        min_examples=objectives.min_examples,
        max_staleness_ms=_ms(objectives.max_staleness),
        max_us=objectives.max_us,
        max_bias=objectives.max_bias,
        out_share=objectives.out_share,
        season_ms=_ms(objectives.season),
        max_wait_ms=_ms(pipeline.deadline) if pipeline.deadline is not None else 0,
    )


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def policies_of(pipeline: Pipeline, limits: JudgementLimits | None = None) -> dict[str, Sequence[Policy]]:
    """The policies of each model, and of the pipeline under "": built-in ones, and those that it declares.

    `limits` hold for all of them in place of what is declared.
    """
    own = tuple(pipeline.policies)
    by_model: dict[str, Sequence[Policy]] = {
        model: (*of_models(limits or judgement_of(pipeline, model)), *own) for model in pipeline.models
    }
    return by_model | {"": of_pipelines(limits or judgement_of(pipeline))}


class Process:
    """Runs agents until told to stop. `run` raises what ends them for good."""

    def __init__(
        self,
        pipeline: Pipeline,
        names: Sequence[str],
        settings: Settings,
        *,
        telemetry: Telemetry | None = None,
        judgement: JudgementLimits | None = None,
        signing_key: bytes | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._names = list(names)
        self._settings = settings
        self._signing_key = signing_key
        self._judgement = judgement or judgement_of(pipeline)
        self._policies = policies_of(pipeline, judgement)
        self.telemetry = telemetry or Telemetry()
        self.agents: list[Agent] = []
        self.supervisor: Supervisor | None = None
        self._failed: dict[str, str] = {}
        self._waiting = "checking topics"

    def unready(self) -> dict[str, str]:
        """By agent, why it is not at work; "" if it is."""
        if self._waiting:
            return dict.fromkeys(self._names, self._waiting)
        found = {agent.name: agent.unready for agent in self.agents}
        if SUPERVISOR in self._names:
            ready = self.supervisor is not None and self.supervisor.ready
            found[SUPERVISOR] = "" if ready else "reading the log"
        return found

    async def run(self, stop: asyncio.Event, *, pages: bool = True) -> None:
        """Works until `stop`, and stops in order."""
        async with AsyncExitStack() as stack:
            stack.enter_context(hang.ended())
            if pages:
                observatory = Observatory(
                    self.telemetry,
                    self._settings.port,
                    self._settings.host,
                    self.unready,
                    lambda: self._failed,
                )
                stack.push_async_callback(observatory.stop)
                await observatory.start()
                log.info("pages", address=f"http://{self._settings.host}:{observatory.port}")
            runtime = await self._runtime()
            self.agents = [AGENTS[name](runtime) for name in self._names if name in AGENTS]
            self._waiting = ""
            async with asyncio.TaskGroup() as group:
                for agent in self.agents:
                    group.create_task(self._watched(agent.name, agent.run(stop)))
                if SUPERVISOR in self._names:
                    group.create_task(self._watched(SUPERVISOR, self._supervise(runtime, stop)))

    async def _watched(self, name: str, work: Awaitable[None]) -> None:
        try:
            with stray.named():
                await work
        except Exception as error:
            self._failed[name] = str(error)
            raise

    async def _runtime(self) -> Runtime:
        settings = self._settings
        connection = settings.connection()
        async with Catalog(connection) as catalog:
            embedded = await catalog.embedded()
            await check_topics(catalog, self._pipeline, self._names)
            if SUPERVISOR in self._names and not embedded:
                # Faust would log that it is refused, and wait.
                await catalog.check_group(self._pipeline.agent_group(SUPERVISOR))
        if embedded:
            log.warning("embedded broker: no transactions; nothing outlives its process")
        return Runtime(
            connection=connection,
            pipeline=self._pipeline,
            telemetry=self.telemetry,
            replica=settings.replica,
            transactions=not embedded,
            limits=Limits(
                max_batch=settings.max_batch,
                checkpoint_seconds=settings.checkpoint_seconds,
                checkpoint_records=settings.checkpoint_records,
                vitals_seconds=settings.vitals_seconds,
                session_timeout_ms=int(settings.session_timeout * 1000),
                lease_seconds=settings.lease_ms / 1000,
            ),
            signing_key=self._signing_key or self._key(embedded),
            seat=None if embedded else Seat,
        )

    def _key(self, embedded: bool) -> bytes:
        if embedded and self._settings.signing_key is None:
            # Its log is memory on loopback and ends with its process: any common key will do.
            log.warning(
                "no RIVERKEEPER_SIGNING_KEY: versions are signed with this embedded broker's common key"
            )
            return hashlib.sha256(f"embedded {self._settings.broker}".encode()).digest()
        return self._settings.required_signing_key()

    def _made(self, runtime: Runtime) -> Supervisor:
        from .supervisor.app import Supervisor

        return Supervisor(
            self._pipeline,
            runtime.connection,
            self._judgement,
            policies=self._policies,
            canary=self._pipeline.canary,
            seat=runtime.seat,
        )

    async def _supervise(self, runtime: Runtime, stop: asyncio.Event) -> None:
        # Faust takes 0.3 s to load and to look at who calls it: half of a lease, in which score answers nothing.
        self.supervisor = supervisor = await asyncio.to_thread(self._made, runtime)
        await supervisor.start()
        waiting = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await asyncio.wait([waiting], timeout=0.5)
                if supervisor.crash_reason is not None:
                    raise supervisor.crash_reason
        finally:
            waiting.cancel()
            await supervisor.stop()


async def check_topics(catalog: Catalog, pipeline: Pipeline, roles: Sequence[str]) -> None:
    """Looks at the topics of these roles only: others may be none of this user's business.

    Raises TopicMissing, NotAllowed, or PartitionsDiffer for a topic whose count is not the declared one.
    """
    needed = topic_rights(pipeline, roles)
    await catalog.check_rights(needed)
    specs = [spec for spec in topics_of(pipeline) if spec.name in needed]
    counts = await catalog.partition_counts([spec.name for spec in specs])
    for spec in specs:
        if counts[spec.name] != spec.partitions:
            raise PartitionsDiffer(
                f"topic {spec.name} has {counts[spec.name]} partitions, {spec.partitions} are declared; "
                "declare what is there, or drain the agents and make the topic anew"
            )
