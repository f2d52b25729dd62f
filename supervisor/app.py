"""The supervisor as a service: a Faust app that holds health, and readers of what was decided.

The table holds health only. Routing, incidents and versions are what was read back from the log, so
a death between a table and a message loses nothing: the verdict is still due, and is issued again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import faust
import structlog
from aiokafka import AIOKafkaConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from mode import Service
from msgspec import structs
from pydantic import ValidationError

from ..models.canary import Canary
from ..models.routing import Routing
from ..topics import stray
from ..topics.connection import Connection
from ..topics.log import Out, Record, Writer
from ..topics.messages import Incident, Manifest, State, Verdict, Vitals
from ..topics.tail import Tail
from ..topics.vitals import unpack
from . import incidents as episodes
from .canary import steer
from .healths import Healths
from .lifecycle import IN_TRAFFIC, Book, KnownVersion, decide, obeyed, operator_verdict
from .policies import Finding, Limits, Policy, fold, look, of_models, of_pipelines

log = structlog.get_logger(__name__)

R = TypeVar("R", Verdict, Incident, Manifest)

TICK_S = 0.25  # between judgements: a quarter of the second in which a verdict is to be obeyed
REISSUE_MS = 2_000  # a verdict not read back by then is written again: twenty polls of the reader
SESSION_S = 6.0  # of the group; Faust's own 60 s would leave a dead supervisor's partition unheard
HEARTBEAT_S = 1.5  # four per session
# Nobody reads the table's changelog as a stream, nor vitals while there are none; Faust would call both
# hanging after 300 s, and say so for ever. A supervisor that hears nothing is noticed by its seat in the group.
IDLE_S = 10 * 365 * 86_400.0
REQUEST_S = 15.0  # of one request, for its connection may be dead; twice as long as a rebalance
COMMIT_S = 1.0  # between commits of vitals; what is repeated after a crash is known by its spans
FETCH_WAIT_MS = 250  # the embedded broker holds an empty fetch this long; Faust's own 1500 would show
LISTEN_S = 1.0  # between looks at whether Faust is in its group
DEAF_S = 45.0  # out of the group; a rebalance takes seconds, a changelog's recovery not many more
LEAVE_S = 2.0  # for what is starting to be up before it is stopped; Faust sleeps one second of that
CUTS = 3  # of Faust's connections when it does not leave: aiokafka connects anew for the next request
CUT_S = 0.3  # between two of them
OBEY_S = 10.0  # an operator's verdict is read back within this, or the broker is in trouble
HOLD = "hold"  # the policy of the alarm that shows it
LOG = ""  # stands for the model in incidents that concern no single one
ROUND_TICKS = 4  # ticks between looks at models without news
KEEP_S = (
    10.0  # between writes of health; a crash has as much read again, which takes a second with 100 models
)
MAX_UNKEPT = 20_000  # vitals folded and not kept; 40 MB, ten times what 100 models report in that time


class Pipeline(Protocol):
    """What the supervisor needs of a pipeline's declaration."""

    @property
    def name(self) -> str: ...
    @property
    def models(self) -> Collection[str]:
        """All models' names; a mapping by name will do."""

    @property
    def serving(self) -> Collection[str]:
        """The names of those with traffic."""

    @property
    def fallback(self) -> str:
        """The model that answers for others; "" if only the constant does."""


Clock = Callable[[], int]


def wall_clock() -> int:
    """Epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Known:
    """What was read back: verdicts as routing and episodes, versions, incidents."""

    def __init__(self, models: Iterable[str], live: Iterable[str], limits: Limits) -> None:
        self.book = Book.declared(models, live)
        self.episodes: episodes.Episodes = {}
        self.incidents: dict[str, Incident] = {}
        self.versions: dict[str, dict[int, KnownVersion]] = {}
        self._limits = limits

    def verdict(self, record: Record) -> None:
        verdict = _read(Verdict, record)
        if verdict is None:
            return
        before = self.book.routing.routes.get(verdict.model)
        self.book = self.book.obey(record.offset, verdict, self._limits)
        if before is not None and obeyed(self.book.routing, record.offset, verdict):
            self.episodes = episodes.obey(self.episodes, verdict, before.line)

    def incident(self, record: Record) -> None:
        incident = _read(Incident, record)
        if incident is not None:
            self.incidents[incident.id] = episodes.folded(self.incidents.get(incident.id), incident)

    def model(self, record: Record) -> None:
        """A manifest adds a version; a tombstone on it or on a chunk ends what can be restored."""
        model, version, *chunk = _key_parts(record)
        if not version.isdecimal():
            return
        versions = self.versions.setdefault(model, {})
        if not chunk and record.value is not None:
            manifest = _read(Manifest, record)
            if manifest is not None:
                versions[manifest.version] = KnownVersion.of(manifest)
        elif record.value is None and (known := versions.get(int(version))):
            versions[int(version)] = replace(known, kept=False)

    def untold(self, written: Mapping[str, Incident]) -> list[Incident]:
        """Incidents that are not written as the verdicts tell them. A resolved one is final."""
        live = [e for id_, e in self.episodes.items() if id_ not in written or not written[id_].resolved]
        told = [episodes.told(e, self.versions.get(e.incident.model, {})) for e in live]
        told = [episodes.folded(written.get(i.id), i) for i in told]
        return [i for i in told if written.get(i.id) != i]


class Deaf(Exception):
    """Faust is in no group, and will not be: start another supervisor."""


class Supervisor(Service):
    """Watches one pipeline. Any number run at once; the owner of `vitals` judges.

    `start` returns once the log is read to its end; `ready` tells when Faust has joined its group, too.
    It needs the topics of `topics_needed`. What goes wrong for good crashes the service:
    `crash_reason` holds it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        connection: Connection,
        limits: Limits,
        *,
        clock: Clock = wall_clock,
        policies: Mapping[str, Sequence[Policy]] | None = None,
        canary: Canary | None = None,
        keep_s: float = KEEP_S,
    ) -> None:
        """`policies` are those of each model, and of the pipeline under ""; built-in ones by `limits` otherwise.

        Health is written every `keep_s` seconds; what is read again after a crash grows with it.
        """
        super().__init__()
        built_in = {LOG: of_pipelines(limits), **dict.fromkeys(pipeline.models, of_models(limits))}
        self._policies: Mapping[str, Sequence[Policy]] = {**built_in, **(policies or {})}
        self._pipeline = pipeline
        self._limits = limits
        self._canary = canary
        self._clock = clock
        self._connection = connection
        self._known = Known(pipeline.models, pipeline.serving, limits)
        self._writer = Writer(connection)
        self._tails = [
            Tail(connection, f"{pipeline.name}.verdicts", self._known.verdict),
            Tail(connection, f"{pipeline.name}.models", self._known.model),
            Tail(connection, f"{pipeline.name}.incidents", self._known.incident),
        ]
        self._issued: dict[str, tuple[Verdict, int]] = {}  # model → what awaits its reading back, when sent
        self._told: dict[str, tuple[Incident, int]] = {}  # the same for incidents, by id
        self._found: dict[str, list[Finding]] = {}  # of this tick
        self._news: set[str] = set()  # models with vitals since the last tick
        self._arriving_ms = 0  # when an example was last seen to arrive
        self._ticks = 0
        self._troubles: dict[str, Finding] = {}  # by agent/partition
        self._listening_ms = 0  # when this replica began to judge
        self._work: list[asyncio.Task[None]] = []
        self._joining: asyncio.Task[None] | None = None
        self._read = False
        self._app, table = self._build(pipeline.name)
        self._healths = Healths(table)
        self._keep_s = keep_s
        self._kept = time.monotonic()  # when health was written last
        self._unkept: list[Any] = []  # Faust's events since
        self._generation = -1  # of the group, at the last event

    @property
    def routing(self) -> Routing:
        """As read back from the verdicts."""
        return self._known.book.routing

    @property
    def incidents(self) -> Mapping[str, Incident]:
        """As read back, by id."""
        return dict(self._known.incidents)

    @property
    def ready(self) -> bool:
        """Whether everything decided before the start has been read, and Faust has joined its group."""
        app = self._app
        return self._read and self._is_joined() and not app.rebalancing and not app.in_recovery

    @property
    def judging(self) -> bool:
        """Whether this replica owns the vitals now."""
        return self.ready and self._vitals in self._app.consumer.assignment()

    async def on_start(self) -> None:
        reading = asyncio.create_task(self._read_back())
        try:
            # aiokafka leaves a connection open when it is cancelled while it connects.
            await asyncio.shield(reading)
        except BaseException:
            await asyncio.wait([reading], timeout=LEAVE_S)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            # A service that did not start is never stopped by its owner.
            await self.on_stop()
            raise

    async def on_stop(self) -> None:
        self._read = False
        await self._leave()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for tail in self._tails:
            await tail.stop()
        await self._writer.stop()

    async def _leave(self) -> None:
        """Stops Faust. Cancelled or stopped halfway through its start it would leave a thread behind."""
        if self._joining is None:
            return
        await _hold(lambda: self._app.tables.started or self._is_joined(), LEAVE_S)
        await self._app.stop()
        await asyncio.wait([self._joining], timeout=LEAVE_S)

    def _is_joined(self) -> bool:
        return self._joining is not None and self._joining.done()

    async def _read_back(self) -> None:
        await self._writer.start()
        for tail in self._tails:
            await tail.start()
            self._work.append(asyncio.create_task(self._guard(tail.run())))
        await asyncio.gather(*(tail.sync() for tail in self._tails))
        self._read = True
        self._joining = asyncio.create_task(self._guard(self._join()))
        self._work += [self._joining, asyncio.create_task(self._guard(self._listen()))]

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            with stray.named():
                await work
        except Exception as error:  # noqa: BLE001  the boundary of the task: it ends the service
            await self.crash(error)

    async def _join(self) -> None:
        await self.add_runtime_dependency(self._app)

    async def _listen(self) -> None:
        """Raises Deaf: Faust neither raises nor retries when its seat in the group is lost for good."""
        heard = time.monotonic()
        while not self.should_stop:
            await asyncio.sleep(LISTEN_S)
            heard = time.monotonic() if self.ready else heard
            if time.monotonic() - heard > DEAF_S:
                raise Deaf(f"{self._pipeline.name}: no seat in the supervisors' group for {DEAF_S:.0f} s")

    # --- Faust ---

    def _build(self, name: str) -> tuple[faust.App, Any]:
        app = _App(
            f"{name}.supervisor",
            **self._connection.faust_options(),
            web_enabled=False,
            autodiscover=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            broker_session_timeout=SESSION_S,
            broker_rebalance_timeout=SESSION_S,
            broker_heartbeat_interval=HEARTBEAT_S,
            broker_commit_interval=COMMIT_S,
            broker_request_timeout=REQUEST_S,
            stream_processing_timeout=IDLE_S,
            stream_wait_empty=False,  # for what is not acknowledged: that waits for health to be written
            store="memory://",
        )
        app.transport = _Transport(app.conf.broker_consumer, app)
        app.on_rebalance_complete.connect(_hold_flow)
        vitals = app.topic(
            f"{name}.vitals", key_serializer="raw", value_type=bytes, value_serializer="raw", partitions=1
        )
        # Faust writes a table's key as JSON; a changelog of one's own must be told to read it so.
        changes = app.topic(
            f"{name}.supervisor.store",
            key_type=str,
            key_serializer="json",
            value_type=bytes,
            value_serializer="raw",
            partitions=1,
        )
        table = app.Table("health", key_type=str, value_type=bytes, partitions=1, changelog_topic=changes)
        self._vitals = TP(f"{name}.vitals", 0)
        app.agent(vitals, name=f"{name}.supervisor.vitals")(self._watch)
        app.timer(TICK_S, traced=False)(self._tick)
        return app, table

    async def _watch(self, stream: Any) -> None:
        unacknowledged = stream.noack()
        self._unkept.clear()
        async for event in unacknowledged.events():
            if event.message.generation_id != self._generation:
                # After a rebalance all comes again that was not acknowledged.
                self._generation = event.message.generation_id
                self._unkept.clear()
                self._healths.forget()
            for vitals in self._told_by(event.value):
                self._note(vitals)
            self._unkept.append(event)
            if time.monotonic() - self._kept >= self._keep_s or len(self._unkept) >= MAX_UNKEPT:
                await self._keep(unacknowledged)

    async def _keep(self, stream: Any) -> None:
        """Writes health while a record is at hand: Faust takes no change of a table at other times."""
        await self._healths.keep()
        await self._app.producer.flush()
        unkept, self._unkept = self._unkept, []
        for event in unkept:
            await stream.ack(event)
        self._kept = time.monotonic()

    def _told_by(self, value: bytes) -> list[Vitals]:
        """None by what is no such record: one foreign record must not silence the supervisor."""
        try:
            return unpack(value)
        except ValidationError as error:
            log.warning("unreadable", where=f"{self._pipeline.name}.vitals", kind="Vitals", error=str(error))
            return []

    def _note(self, vitals: Vitals) -> None:
        if vitals.trouble:
            place, _, why = vitals.trouble.partition(": ")
            self._troubles[place] = Finding(place, why, vitals.to_ms)
        if vitals.labelled or (vitals.agent == "join" and vitals.counts.get("examples")):
            self._arriving_ms = max(self._arriving_ms, vitals.to_ms)
        if vitals.model in self._known.book.courses or vitals.model == LOG:
            self._fold(vitals)

    def _fold(self, vitals: Vitals) -> None:
        model, before = vitals.model, self._healths.of(vitals.model)
        course = self._known.book.courses.get(model)
        if course is not None and course.since_ms > before.judged_ms:
            before = structs.replace(before, judged_ms=course.since_ms)
        after = fold(before, vitals, self._policies[model], self._clock())
        if after is before:
            return
        self._healths.put(model, after)
        self._news.add(model)

    # --- judgement ---

    async def _tick(self) -> None:
        if not self.judging or self.should_stop:
            return
        now = self._clock()
        hold = self.routing.hold
        if hold is not None:
            self._issued.clear()  # what it was about to say is judged anew after it
        due = [v for model in self._to_judge() for v in self._judge(model, now)]
        written = self._written()
        changed = self._known.untold(written)
        for model, found in self._found.items():
            changed += episodes.alarms(written, model, self._alarming(model, found), now)
        self._found.clear()
        found = look(self._healths.of(LOG), self._policies[LOG], now)
        if hold is not None:
            found = [
                *found,
                Finding(HOLD, f"{hold.by} holds all automatic verdicts: {hold.reason}", hold.at_ms),
            ]
        changed += episodes.alarms(written, LOG, [*self._troubled(written, now), *found], now)
        await self._write(due if hold is None else [], changed, now)

    def _troubled(self, written: Mapping[str, Incident], now: int) -> list[Finding]:
        """Partitions that agents stopped at: told again with every vitals, so silence means they go on.

        Who has only begun to listen takes an alarm's word for it.
        """
        self._listening_ms = self._listening_ms or now
        self._troubles = {
            p: f for p, f in self._troubles.items() if now - f.onset_ms < self._limits.trouble_ms
        }
        found = list(self._troubles.values())
        if now - self._listening_ms < self._limits.trouble_ms:
            open_ = [i for i in written.values() if i.model == LOG and episodes.is_open_alarm(i)]
            found += [Finding(i.policy, "", now) for i in open_ if i.policy not in self._troubles]
        return found

    def _to_judge(self) -> list[str]:
        """Those with news or on their way back; all of them once in a while, for silence is no news."""
        self._ticks += 1
        if self._ticks % ROUND_TICKS == 0:
            return list(self._known.book.courses)
        routes = self.routing.routes
        news, self._news = self._news, set()
        return [m for m in routes if m in news or routes[m].state not in IN_TRAFFIC]

    def _judge(self, model: str, now: int) -> list[Verdict]:
        route, course = self.routing.routes[model], self._known.book.courses[model]
        health = self._healths.of(model)
        fresh = health.within(route.line, course.since_ms)
        fresh = structs.replace(fresh, arriving_ms=self._arriving_ms)
        found = self._found[model] = look(fresh, self._policies[model], now)
        issued = self._issued.get(model)
        if issued is not None and issued[0].follows == route.offset:
            return [issued[0]] if now - issued[1] >= REISSUE_MS else []
        versions = self._known.versions.get(model, {})
        is_fallback = model == self._pipeline.fallback
        verdict = decide(route, course, health, found, versions, self._limits, now, fallback=is_fallback)
        if verdict is None and self._canary is not None:
            verdict = steer(route, course, health, found, self._canary, now)
        return [] if verdict is None else [verdict]

    def _alarming(self, model: str, found: list[Finding]) -> list[Finding]:
        """What opens an alarm: for the fallback everything, and while the supervisor is held; for others what
        takes nothing out."""
        if self.routing.routes[model].state in (State.QUARANTINED, State.DESTROYED):
            return []
        all_ = model == self._pipeline.fallback or self.routing.hold is not None
        return [f for f in found if all_ or not f.grave]

    def _written(self) -> dict[str, Incident]:
        """Incidents as read back, or as written a moment ago."""
        known = self._known.incidents
        told = {i: episodes.folded(known.get(i), each) for i, (each, _) in self._told.items()}
        self._told = {i: each for i, each in self._told.items() if told[i] != known.get(i)}
        return known | {i: told[i] for i in self._told}

    async def _write(self, verdicts: list[Verdict], changed: list[Incident], now: int) -> None:
        again = [i for i, sent in self._told.values() if now - sent >= REISSUE_MS]
        tell = {i.id: i for i in [*again, *changed]}
        if not verdicts and not tell:
            return
        for verdict in verdicts:
            self._issued[verdict.model] = (verdict, now)
            log.info("verdict", model=verdict.model, state=verdict.state, reason=verdict.reason)
        self._told |= {i.id: (i, now) for i in tell.values()}
        name = self._pipeline.name
        await self._writer.write(
            [
                *[Out(f"{name}.verdicts", 0, v.model.encode(), v.encode()) for v in verdicts],
                *[Out(f"{name}.incidents", 0, i.id.encode(), i.encode()) for i in tell.values()],
            ]
        )


class Overruled(Exception):
    """Another verdict on the model came first; what was asked for has not happened."""

    def __init__(self, first: Verdict) -> None:
        super().__init__(f"{first.model}: {first.by} decided {first.state} meanwhile: {first.reason}")
        self.first = first


async def issue(
    connection: Connection,
    pipeline: Pipeline,
    model: str,
    state: State,
    reason: str,
    *,
    by: str,
    clock: Clock = wall_clock,
    writer: Writer | None = None,
) -> Verdict:
    """An operator's verdict, written and read back in force.

    `writer` is started and stopped here. Raises KeyError for an undeclared model, Overruled if another
    verdict came first, and TimeoutError if the verdicts cannot be read or written in time: it may then
    be in force or not.
    """
    hand = _Hand(pipeline, model)
    tail = Tail(connection, hand.topic, hand.read)
    writer = writer or Writer(connection)
    try:
        async with asyncio.timeout(OBEY_S):
            await tail.start()
            await writer.start()
            return await _issue(hand, tail, writer, model, state, reason, by, clock)
    finally:
        await tail.stop()
        await writer.stop()


async def _issue(
    hand: _Hand, tail: Tail, writer: Writer, model: str, state: State, reason: str, by: str, clock: Clock
) -> Verdict:
    running = asyncio.create_task(tail.run())
    try:
        await tail.sync()
        verdict = operator_verdict(hand.routing, model, state, reason, clock(), by)
        await writer.write([Out(hand.topic, 0, model.encode(), verdict.encode())])
        await tail.sync()
    finally:
        running.cancel()
    first = next(v for v in hand.in_force if v.follows == verdict.follows)
    if first != verdict:
        raise Overruled(first)
    return verdict


class _Hand:
    """The verdicts in force on one model, as an operator's command reads them."""

    def __init__(self, pipeline: Pipeline, model: str) -> None:
        self.topic = f"{pipeline.name}.verdicts"
        self.routing = Routing.declared(pipeline.models, pipeline.serving)
        self.in_force: list[Verdict] = []
        self._model = model

    def read(self, record: Record) -> None:
        verdict = _read(Verdict, record)
        if verdict is None:
            return
        self.routing = self.routing.obey(record.offset, verdict)
        if verdict.model == self._model and obeyed(self.routing, record.offset, verdict):
            self.in_force.append(verdict)


def topics_needed(pipeline_name: str) -> dict[str, int]:
    """Partitions of the topics that Faust needs before the start; the store is compacted."""
    return {f"{pipeline_name}.vitals": 1, f"{pipeline_name}.supervisor.store": 1}


def _read(kind: type[R], record: Record) -> R | None:
    return None if record.value is None else _parse(kind, record.value, f"{record.topic}/{record.offset}")


def _parse(kind: type[R], value: bytes, where: str) -> R | None:
    """None for what is no such record: one foreign record must not silence the supervisor."""
    try:
        return kind.model_validate_json(value)
    except ValidationError as error:
        log.warning("unreadable", where=where, kind=kind.__name__, error=str(error))
        return None


def _key_parts(record: Record) -> list[str]:
    """[model, version] of a manifest, with hash and number of a chunk; a foreign key has no version."""
    parts = (record.key or b"").decode(errors="replace").split("/")
    return parts if len(parts) > 1 else [*parts, ""]


class _App(faust.App):
    def _create_directories(self) -> None:
        """None: the table is in memory, and the directory that a supervisor runs in may not be written."""


async def _hold_flow(app: Any, /, *_: Any, **__: Any) -> None:
    """Lets nothing through until Faust has sought what is committed, and resumes the flow itself.

    It lets partitions go on before it seeks. What is fetched in between is known as read by the time that
    the seek has it fetched again, and thrown out of the agent's queue at the resumption: lost.
    """
    app.consumer.stop_flow()


class _Thread(AIOKafkaConsumerThread):
    """Faust's consumer with a shorter wait: the embedded broker holds an empty fetch to its end."""

    def _create_worker_consumer(self, transport: Transport) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        assert hasattr(consumer, "_fetch_max_wait_ms"), "aiokafka keeps it elsewhere now"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def stop(self) -> None:
        """Returns once the thread has ended: mode ignores a stop that comes while it starts."""
        worker = self._thread
        if worker is not None:
            await _hold(lambda: self.started or not worker.is_alive(), LEAVE_S)
        await super().stop()
        if worker is not None:
            await asyncio.to_thread(worker.join, LEAVE_S)

    async def on_thread_stop(self) -> None:
        """Leaves the group; cuts the connections if that takes longer than LEAVE_S.

        aiokafka's consumer does not stop before its JoinGroup is answered, for which a broker may
        take a session's time and more.
        """
        leaving = asyncio.create_task(super().on_thread_stop())
        done, _ = await asyncio.wait([leaving], timeout=LEAVE_S)
        for _cut in range(CUTS):
            if not done and self._consumer is not None:
                await self._consumer._client.close()
                done, _ = await asyncio.wait([leaving], timeout=CUT_S)
        if not done:
            leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer._client.close()


async def _hold(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for what another library's state says, as long as that."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110  Faust tells nobody
        await asyncio.sleep(0.02)


class _Consumer(Consumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class _Transport(Transport):
    Consumer = _Consumer
