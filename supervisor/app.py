"""The supervisor as a service: a Faust app that holds health, and readers of what was decided.

The table holds health only. Routing, incidents and versions are what was read back from the log, so
a death between a table and a message loses nothing: the verdict is still due, and is issued again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import faust
import structlog
from faust.types import TP
from mode import Service
from msgspec import structs
from pydantic import ValidationError

from ..models.canary import Canary
from ..models.routing import Routing
from ..topics import stray
from ..topics.connection import Connection
from ..topics.log import Out, Writer
from ..topics.messages import Incident, State, Verdict, Vitals
from ..topics.seat import Seat
from ..topics.tail import Tail
from ..topics.vitals import unpack
from . import incidents as episodes
from .canary import steer
from .faust_app import LEAVE_S, application, holds
from .healths import Healths
from .known import Clock, Known, Pipeline, wall_clock
from .lifecycle import IN_TRAFFIC, decide
from .policies import Finding, Limits, Policy, fold, look, of_models, of_pipelines
from .slices import mend

log = structlog.get_logger(__name__)

TICK_S = 0.25  # between judgements: a quarter of the second in which a verdict is to be obeyed
REISSUE_MS = 2_000  # a verdict not read back by then is written again: twenty polls of the reader
LISTEN_S = 1.0  # between looks at whether Faust is in its group
DEAF_S = 45.0  # out of the group; a rebalance takes seconds, a changelog's recovery not many more
HOLD = "hold"  # the policy of the alarm that shows it
LOG = ""  # stands for the model in incidents that concern no single one
ROUND_TICKS = 4  # ticks between looks at models without news
KEEP_S = (
    10.0  # between writes of health; a crash has as much read again, which takes a second with 100 models
)
MAX_UNKEPT = 20_000  # vitals folded and not kept; 40 MB, ten times what 100 models report in that time


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
        seat: Callable[[str], Seat] | None = None,
    ) -> None:
        """`policies` are those of each model, and of the pipeline under ""; built-in ones by `limits` otherwise.

        `seat` takes a place in a group that a next process finds again. Health is written every `keep_s` seconds;
        what is read again after a crash grows with it.
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
        self._seat = None if seat is None else seat(f"{pipeline.name}.supervisor")
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
        if self._seat is not None:
            self._seat.leave()

    async def _leave(self) -> None:
        """Stops Faust. Cancelled or stopped halfway through its start it would leave a thread behind."""
        if self._joining is None:
            return
        await holds(lambda: self._app.tables.started or self._is_joined(), LEAVE_S)
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
        app = application(f"{name}.supervisor", self._connection, self._seat.name if self._seat else None)
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
        if verdict is None and not is_fallback:
            verdict = mend(route, fresh, found, self._limits, now)
        return [] if verdict is None else [verdict]

    def _alarming(self, model: str, found: list[Finding]) -> list[Finding]:
        """What opens an alarm: for the fallback everything, and while the supervisor is held; for others what
        takes nothing out."""
        if self.routing.routes[model].state in (State.QUARANTINED, State.DESTROYED):
            return []
        all_ = model == self._pipeline.fallback or self.routing.hold is not None
        barred = self.routing.routes[model].barred
        return [f for f in found if all_ or not (f.grave or f.slice in barred)]

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


def topics_needed(pipeline_name: str) -> dict[str, int]:
    """Partitions of the topics that Faust needs before the start; the store is compacted."""
    return {f"{pipeline_name}.vitals": 1, f"{pipeline_name}.supervisor.store": 1}
