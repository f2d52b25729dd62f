"""A pipeline at work in simulated time: ingest, score, join, learn and the supervisor's own code, without a broker.

What one agent writes is handed to the next as records; clocks are the simulation's. The lease, which is about a
broker's answers, always holds, and Faust's table is a dict.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from aiokafka import TopicPartition
from river import compose, dummy, linear_model, optim, preprocessing, stats

from riverkeeper import Bounds, Dedupe, Fact, Label, Model, Objectives, Pipeline, Publish, feature
from riverkeeper.agents.agent import Runtime
from riverkeeper.agents.ingest import Ingest, IngestWork, RecentIds
from riverkeeper.agents.join import Join, JoinWork, Matcher
from riverkeeper.agents.learn import Learn, LearnWork
from riverkeeper.agents.score import Score, ScoreWork
from riverkeeper.models.features import FoldState
from riverkeeper.models.student import Student, start_line
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler
from riverkeeper.process import judgement_of, policies_of
from riverkeeper.supervisor.app import Supervisor
from riverkeeper.supervisor.healths import Healths
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import Example, Incident, Origin, Prediction, State, Verdict, Vitals
from riverkeeper.topics.store import ORIGIN, Progress
from tests.agents.tiny import Stored, runtime
from tests.judgement.town import START_MS, Town

T = TypeVar("T")

FACTS_PER_WINDOW = 500  # the unit of a delay
BATCH = 200  # records a step
KEPT_VITALS = 20  # between writes of health; three windows'


class Order(Fact):
    order: str
    region: str
    channel: str
    distance: float | None
    items: float
    hint: float
    time: datetime


class Arrived(Fact):
    order: str
    minutes: float


@feature
def hour(f: Order) -> int:
    return f.time.hour


@feature
def rush(hour: int) -> bool:
    return 17 <= hour < 21


@feature
def distance(f: Order) -> float | None:
    return f.distance


@feature
def items(f: Order) -> float:
    return f.items


ASKED = ("rush", "distance", "items", "region", "channel", "hint")


def learned(rate: float = 0.01) -> Any:
    words = compose.SelectType(str) | preprocessing.OneHotEncoder()
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return (words + numbers + compose.SelectType(bool)) | linear_model.LinearRegression(optim.SGD(rate))


def usual() -> Any:
    return dummy.StatisticRegressor(stats.Mean())


OBJECTIVES = Objectives(
    # Ten minutes are a window here, and a day's facts what others have in a minute.
    max_staleness=timedelta(days=1)
)


def pipeline(**changed: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "town",
        "facts": Order,
        "outcomes": Arrived,
        "key": "region",
        "join": "order",
        "features": [hour, rush, distance, items, "region", "channel", "hint"],
        "label": Label("minutes", within=timedelta(hours=6)),
        "models": {"learned": Model(learned, ASKED, warmup=500), "usual": Model(usual, ASKED, warmup=0)},
        "serve": "learned",
        "fallback": "usual",
        "bounds": Bounds(0.0, 120.0),
        "slices": ["region"],
        "partitions": 1,
        "publish": Publish(every_examples=200, every=timedelta(hours=6)),
        "objectives": OBJECTIVES,
    }
    return Pipeline(**{**declared, **changed})


@dataclass
class Clock:
    ms: float = START_MS

    def seconds(self) -> float:
        return self.ms / 1000


@dataclass(frozen=True)
class Told:
    """What the supervisor said, and when."""

    at_ms: int
    facts: int  # scored until then
    who: str  # a model, or "" for the pipeline
    policy: str
    reason: str
    action: str  # a verdict's state, "alarm" or "resolved"


@dataclass
class Served:
    """What readers of `predictions` got."""

    by: Counter[str] = field(default_factory=Counter)  # model → answers
    out_of_bounds: int = 0
    error: float = 0.0
    labelled: int = 0


class Writer:
    """Where the supervisor's verdicts and incidents are appended, and read back by all."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def write(self, outs: Sequence[Out]) -> None:
        for out in outs:
            self._world.decided(self._world.appended(out, int(self._world.clock.ms)))


class Seated(Supervisor):
    """A supervisor that owns the vitals without asking a group."""

    @property
    def judging(self) -> bool:
        return True


class World:
    def __init__(self, town: Town, declared: Pipeline | None = None) -> None:
        self.town = town
        self.pipeline = declared or pipeline()
        self.clock = Clock(float(town.now_ms))
        self.facts = 0  # scored
        self.told: list[Told] = []
        self.served = Served()
        self.learning = True  # whether learn is at work
        self.publishing = True  # whether new versions reach score
        self.answers: dict[str, float] = {}  # by order, as served; of the last ones
        self.report: Callable[[Vitals], Vitals] = lambda vitals: vitals  # what agents' reports become
        self._ends: Counter[str] = Counter()
        self._examples: deque[Stored] = deque(maxlen=20_000)  # what retention leaves
        self._models: deque[Stored] = deque(maxlen=400)
        self._verdicts: list[Stored] = []
        self._decode = msgspec.json.Decoder(Prediction).decode
        self._example = msgspec.json.Decoder(Example).decode
        self._loop = asyncio.new_event_loop()
        self.table: dict[str, bytes] = {}  # what Faust would keep of health
        self._unkept: list[bytes] = []  # vitals since it was written
        self._runtime = self._runtime_of(self.pipeline)
        self.supervisor = self._run(self._supervised())
        self.ingest = IngestWork(
            Ingest(self._runtime), self._progress("events"), RecentIds(Dedupe()), fresh=True
        )
        matcher = Matcher(self.pipeline.label.within, self.pipeline.max_pending)
        places = self._progress("predictions", "outcomes")
        self.join = JoinWork(Join(self._runtime), 0, places, matcher, fresh=True)
        self._learner = Learn(self._runtime)
        students = [Student(m, self.pipeline, AllowList(self.pipeline.trusted)) for m in self.pipeline.models]
        self.students = {student.name: student for student in students}
        for student in students:
            self._begin(student)
        self.learn = LearnWork(self._learner, 0, students)
        self.serve_with(self.pipeline)

    def _runtime_of(self, declared: Pipeline) -> Runtime:
        seconds = self.clock.seconds
        return replace(runtime(declared), now=seconds, monotonic=seconds)

    async def _supervised(self) -> Seated:
        made = Seated(
            self.pipeline,
            self._runtime.connection,
            judgement_of(self.pipeline),
            clock=lambda: int(self.clock.ms),
            policies=policies_of(self.pipeline),
            canary=self.pipeline.canary,
        )
        made._healths = Healths(self.table)
        made._writer = Writer(self)  # type: ignore[assignment]
        return made

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self._loop.close()

    def _progress(self, *suffixes: str) -> Progress:
        topics = [self.pipeline.topic(suffix) for suffix in suffixes]
        return Progress({TopicPartition(topic, 0): self._ends[topic] for topic in topics})

    def serve_with(self, declared: Pipeline, models: Sequence[Stored] | None = None) -> None:
        """Another process scores from now on, with a declaration of its own, or with these versions only."""
        self._scorer = Score(self._runtime_of(declared))
        self._scorer.verdicts._known_at = float("inf")
        self.score = ScoreWork(self._scorer, self._progress("facts"), FoldState(), fresh=True)
        for record in self._verdicts:
            self._scorer.verdicts._apply(record)
        for record in self._models if models is None else models:
            self._scorer.versions._apply(record)

    @property
    def versions(self) -> list[Stored]:
        """The records of versions, oldest first, of which the log keeps the newer ones."""
        return list(self._models)

    def restart_supervisor(self) -> None:
        """Another process takes over after a crash: of health it has what the table holds, the rest it reads
        from the log, and vitals from the first that was not acknowledged."""
        before, self.supervisor = self.supervisor, self._run(self._supervised())
        self._read_back(before)
        for value in self._unkept:
            self.supervisor._note(Vitals.model_validate_json(value))

    def _read_back(self, before: Supervisor) -> None:
        for record in self._verdicts:
            self.supervisor._known.verdict(record)
        for record in self._models:
            self.supervisor._known.model(record)
        self.supervisor._known.incidents.update(before.incidents)

    def again(self) -> World:
        """Everything stopped and started anew from its stores: what another process would go on from."""
        other = World(copy.deepcopy(self.town), self.pipeline)
        other.clock.ms, other.facts, other._ends = self.clock.ms, self.facts, Counter(self._ends)
        for theirs, ours in (
            (self._examples, other._examples),
            (self._models, other._models),
            (self._verdicts, other._verdicts),
        ):
            ours.extend(theirs)
        for record in other._verdicts:
            other._learner.verdicts._apply(record)
        for student in other.students.values():
            other._begin(student)
        other.join._matcher = copy.deepcopy(self.join._matcher)
        other.join._packing = self.join._packing  # by which what waits is unpacked
        other.serve_with(other.pipeline)
        other._run(self.supervisor._healths.keep())
        self._unkept.clear()
        other.table.update(self.table)
        other._read_back(self.supervisor)
        for work in (other.ingest, other.join, other.learn, other.score):
            work._since_ms = int(self.clock.ms)
        other._scorer._since_ms = int(self.clock.ms)
        other._run(other._scorer.versions._look())
        return other

    # --- the log ---

    def appended(self, out: Out, at_ms: int) -> Stored:
        offset, self._ends[out.topic] = self._ends[out.topic], self._ends[out.topic] + 1
        return Stored(offset, out.value, out.key, out.headers, out.topic, 0, at_ms)

    def decided(self, record: Stored) -> None:
        now = int(self.clock.ms)
        if record.topic.endswith(".incidents"):
            self.supervisor._known.incident(record)
            incident = Incident.model_validate_json(record.value or b"")
            if any(step.state == "alarm" for step in incident.timeline):
                reason = incident.timeline[0].reason
                action = "resolved" if incident.resolved else "alarm"
                self.told.append(Told(now, self.facts, incident.model, incident.policy, reason, action))
            return
        self._verdicts.append(record)
        self.supervisor._known.verdict(record)
        self._scorer.verdicts._apply(record)
        self._learner.verdicts._apply(record)
        verdict = Verdict.model_validate_json(record.value or b"")
        self.told.append(
            Told(now, self.facts, verdict.model, verdict.policy, verdict.reason, verdict.state.value)
        )

    def _append(self, outs: Iterable[Out], times: Mapping[int, int]) -> dict[str, list[Stored]]:
        """By the topic's suffix; the append time is that of the cause."""
        found: dict[str, list[Stored]] = defaultdict(list)
        for out in outs:
            cause = Origin.parse(dict(out.headers)[ORIGIN])
            record = self.appended(out, times.get(cause.offset, int(self.clock.ms)))
            found[out.topic.rpartition(".")[2]].append(record)
        return found

    # --- a window ---

    def window(self) -> None:
        """Ten minutes: events come, all agents work, vitals are told, the supervisor judges."""
        came = self.town.window()
        self.clock.ms = float(self.town.now_ms)
        topic = self.pipeline.topic("events")
        events = [self.appended(Out(topic, 0, b"k", value), at_ms) for at_ms, value in came]
        for at in range(0, len(events), BATCH):
            self._step(events[at : at + BATCH])
        if self.learning:
            self._learn()
        self._run(self._scorer.versions._look())
        self._judge()

    def _step(self, events: Sequence[Stored]) -> None:
        made = self._append(self._run(self.ingest.step(self._tp("events"), events)), _times(events))
        if facts := made["facts"]:
            self.facts += len(facts)
            outs = self._run(self.score.step(self._tp("facts"), facts))
            self.score.delivered()
            predictions = self._append(outs, _times(facts))["predictions"]
            self._note(predictions)
            self._joined("predictions", predictions)
        self._joined("outcomes", made["outcomes"])

    def _tp(self, suffix: str) -> TopicPartition:
        return TopicPartition(self.pipeline.topic(suffix), 0)

    def _note(self, predictions: Sequence[Stored]) -> None:
        for record in predictions:
            said = self._decode(record.value or b"")
            self.served.by[said.model] += 1
            if isinstance(said.value, float):
                self.answers[said.key] = said.value
            self.served.out_of_bounds += not self.pipeline.bounds.admits(said.value)

    def _joined(self, side: str, records: Sequence[Stored]) -> None:
        if records:
            outs = self._run(self.join.step(self._tp(side), records))
            examples = self._append(outs, _times(records))["examples"]
            self._examples += examples
            for record in examples:
                example = self._example(record.value or b"")
                if isinstance(example.served, float):
                    self.served.error += abs(example.served - float(example.label))
                    self.served.labelled += 1

    def _learn(self) -> None:
        routes = self._learner.verdicts.routing.routes
        for student in self.students.values():
            if routes[student.name].line > student.line:
                self._begin(student)
        self.learn._working = self.learn._wanted_at_work()
        tp = self._tp("examples")
        at = self.learn.positions.get(tp, 0)
        waiting = [r for r in self._examples if r.offset >= at]
        for start in range(0, len(waiting), BATCH):
            self._run(self.learn.process({tp: waiting[start : start + BATCH]}))
        self._run(self.learn.prepare(self.clock.seconds()))
        for key, value in self.learn.snapshot(self.clock.seconds()):
            record = self.appended(Out(self.pipeline.topic("models"), 0, key, value), int(self.clock.ms))
            self._models.append(record)
            if self.publishing:
                self._scorer.versions._apply(record)
            self.supervisor._known.model(record)

    def _begin(self, student: Student) -> None:
        library = Assembler(keep=100)
        for record in self._models:
            library.feed(record.key or b"", record.value)
        first = self._examples[0].offset if self._examples else 0
        start_line(student, self._learner.verdicts.routing.routes[student.name], library, {0: first})

    def _judge(self) -> None:
        vitals = [*self.ingest.vitals(), *self.score.vitals(), *self._scorer.own_vitals()]
        vitals += [*self.join.vitals(), *(self.learn.vitals() if self.learning else [])]
        if len(self._unkept) >= KEPT_VITALS:
            self._keep()
        for each in vitals:
            self._unkept.append(self.report(each).encode())
            self.supervisor._note(Vitals.model_validate_json(self._unkept[-1]))
        self._run(self.supervisor._tick())

    def _keep(self) -> None:
        self._run(self.supervisor._healths.keep())
        self._unkept.clear()

    def state(self, model: str = "learned") -> State:
        return self.supervisor.routing.routes[model].state


def _times(records: Sequence[Stored]) -> dict[int, int]:
    return {record.offset: record.timestamp for record in records}
