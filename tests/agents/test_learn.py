"""A student's versions carry all it has learned and where to go on; a line starts where its verdict says."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from msgspec.structs import replace
from river import linear_model, preprocessing

from riverkeeper import Bounds, Fact, Label, Model, Pipeline, Publish
from riverkeeper.agents.agent import Runtime
from riverkeeper.agents.learn import Learn, LearnWork
from riverkeeper.models.quality import learn, learn_many
from riverkeeper.models.routing import Route
from riverkeeper.models.student import Student, start_line
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler, Sealed, interned, rebuild
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.messages import Example, Manifest, Source, Span, State, Verdict
from riverkeeper.topics.telemetry import Telemetry
from tests.agents.tiny import Stored

KEY = b"k" * 32
ALLOW = AllowList(frozenset({__name__}))


class Ask(Fact):
    id: str
    zone: str
    x: float


class Came(Fact):
    id: str
    y: float


class Stubborn(linear_model.LinearRegression):
    """Raises at every negative feature."""

    def learn_one(self, x: dict[Any, Any], y: float, w: float = 1.0) -> None:
        if x["x"] < 0:
            raise ValueError("negative")
        super().learn_one(x, y, w)


def linear() -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


def pipeline(factory: Any = linear, *, mini_batch: bool = False, warmup: int = 0, keep: int = 3) -> Pipeline:
    return Pipeline(
        name="p",
        facts=Ask,
        outcomes=Came,
        key="zone",
        join="id",
        features=["x"],
        label=Label("y", within=timedelta(hours=1)),
        models={
            "main": Model(factory, mini_batch=mini_batch, warmup=warmup),
            "fall": linear_model.LinearRegression,
        },
        serve="main",
        fallback="fall",
        bounds=Bounds(-1e6, 1e6),
        publish=Publish(every_examples=10, every=timedelta(seconds=60), keep=keep),
    )


def example(
    n: int, *, x: float | None = None, served: float = 0.0, model: str = "fall", fingerprint: str = ""
) -> Example:
    value = float(n % 7) if x is None else x
    return Example(
        id=f"e{n}",
        key=f"e{n}",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        features={"x": value},
        label=3 * value + 1,
        served=served,
        source=Source.MODEL if model == "main" else Source.FALLBACK,
        model=model,
        version=1,
        fingerprint=fingerprint or FINGERPRINT,
        baseline=0.0,
    )


FINGERPRINT = pipeline().fingerprint


def numbered(start: int, end: int) -> list[tuple[int, Example]]:
    return [(n, example(n)) for n in range(start, end)]


class Log:
    """What stands on a partition of `models`."""

    def __init__(self) -> None:
        self.library = Assembler(keep=100)
        self.manifests: list[Manifest] = []

    def take(self, sealed: Sealed, expired: Sequence[bytes] = ()) -> Manifest:
        for key, value in sealed.records():
            self.library.feed(key, value)
        for key in expired:
            self.library.feed(key, None)
        self.manifests.append(sealed.manifest)
        return sealed.manifest


def started(p: Pipeline, log: Log, route: Route | None = None) -> Student:
    student = Student("main", p, ALLOW)
    start_line(student, route or Route("main", State.LIVE), log.library, {0: 0, 1: 0})
    return student


def published(student: Student, log: Log, now: float = 0.0) -> Manifest:
    sealed = student.publish(now, 1_000, KEY)
    return log.take(sealed, student.expired())


def test_a_restart_goes_on_from_the_same_bytes() -> None:
    p, through, log = pipeline(), Log(), Log()
    one = started(p, through)
    two = started(p, log)
    for start in range(0, 100, 10):
        one.study(0, numbered(start, start + 10), start + 10)
        two.study(0, numbered(start, start + 10), start + 10)
        published(one, through)
        published(two, log)
        two = started(p, log)  # died and came back
    assert [m.sha256 for m in through.manifests] == [m.sha256 for m in log.manifests]
    assert two.learned == 100 and two.offsets == {0: 100, 1: 0}


def test_an_example_is_learned_once_however_often_it_comes() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    student.study(0, numbered(0, 10), 10)
    student.study(0, numbered(5, 15), 15)
    student.study(0, numbered(0, 15), 15)
    manifest = published(student, log)
    assert student.learned == 15
    assert manifest.spans == (Span(0, 0, 15),)


@pytest.mark.parametrize("mini_batch", [False, True])
def test_the_spans_rebuild_the_version_byte_for_byte(mini_batch: bool) -> None:
    p, log = pipeline(mini_batch=mini_batch), Log()
    student = started(p, log)
    parts = [(0, 0, 7), (1, 0, 5), (0, 7, 20), (1, 5, 9)]
    for partition, start, end in parts:
        student.study(partition, numbered(start, end), end)
    manifest = published(student, log)
    assert len(manifest.spans) == 4

    def teach(estimator: object, examples: Sequence[Example]) -> None:
        rows = [interned(e.features) for e in examples]
        if mini_batch:
            learn_many("regression", estimator, rows, [e.label for e in examples])
            return
        for row, each in zip(rows, examples, strict=True):
            learn("regression", estimator, row, each.label)

    spans = [[example(n) for n in range(span.start, span.end)] for span in manifest.spans]
    factory = p.models["main"].factory
    assert rebuild(None, factory, spans, teach, ALLOW) == log.library.blob("main", manifest.version)
    reordered = rebuild(None, factory, spans[::-1], teach, ALLOW)
    assert reordered != log.library.blob("main", manifest.version)


def test_a_new_line_starts_from_the_restored_version_without_the_skipped_spans() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    student.study(0, numbered(0, 10), 10)
    good = published(student, log)
    student.study(0, numbered(10, 40), 40)
    published(student, log)
    route = Route(
        "main", State.QUARANTINED, line=1, restore=good.version, skip=(Span(0, 10, 30), Span(1, 0, 5))
    )
    start_line(student, route, log.library, {0: 0, 1: 0})
    assert (student.line, student.learned, student.offsets) == (1, 10, {0: 10, 1: 0})
    assert student.due(0.0)  # its first version is what tells that the line has begun
    student.study(0, numbered(10, 40), 40)
    student.study(1, numbered(0, 8), 8)
    healed = published(student, log)
    assert healed.spans == (Span(0, 30, 40), Span(1, 5, 8))
    assert healed.skipped == (Span(0, 10, 30), Span(1, 0, 5))
    assert (healed.parent, healed.line, healed.version, healed.learned) == (good.version, 1, 3, 23)


def test_what_was_only_passed_over_is_published_too() -> None:
    """Else nobody could tell from the log that the line has come that far."""
    p, log = pipeline(), Log()
    student = started(p, log)
    student.study(0, numbered(0, 10), 10)
    good = published(student, log)
    route = Route("main", State.QUARANTINED, line=1, restore=good.version, skip=(Span(0, 10, 40),))
    start_line(student, route, log.library, {0: 0})
    published(student, log)
    ahead = [student.ahead]
    student.study(0, numbered(10, 40), 40)
    ahead += [student.ahead, student.due(1e9)]
    last = published(student, log)
    assert (last.spans, last.skipped, last.offsets[0]) == ((), (Span(0, 10, 40),), 40)
    assert [*ahead, student.ahead] == [False, True, True, False]


def test_without_the_version_to_restore_it_relearns_from_nothing() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    student.study(0, numbered(0, 10), 10)
    published(student, log)
    start_line(student, Route("main", State.QUARANTINED, line=1, restore=9), log.library, {0: 4, 1: 0})
    assert (student.learned, student.offsets) == (0, {0: 4, 1: 0})


def test_a_restart_within_a_line_ignores_newer_versions_of_an_older_line() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    published(student, log)
    start_line(student, Route("main", State.QUARANTINED, line=1), log.library, {0: 0})
    student.study(0, numbered(0, 10), 10)
    published(student, log)
    stale = started(p, log)  # a deposed learner that knows no verdict
    again = started(p, log, Route("main", State.PROBATION, line=1))
    assert (stale.line, stale.learned) == (0, 0)
    assert (again.line, again.learned) == (1, 10)


def test_what_retention_took_is_a_marked_span() -> None:
    p, log = pipeline(), Log()
    student = Student("main", p, ALLOW)
    start_line(student, Route("main", State.LIVE), log.library, {0: 0})
    student.study(0, numbered(0, 10), 10)
    published(student, log)
    late = Student("main", p, ALLOW)
    start_line(late, Route("main", State.LIVE), log.library, {0: 50})
    late.study(0, numbered(50, 55), 55)
    manifest = published(late, log)
    assert manifest.skipped == (Span(0, 10, 50),)
    assert manifest.spans == (Span(0, 50, 55),)


def test_old_versions_expire_but_good_ones_stay_restorable() -> None:
    p, log = pipeline(keep=2), Log()
    student = started(p, log)
    for n in range(8):
        batch = numbered(10 * n, 10 * n + 10)
        if n > 3:  # what was served goes wrong: these versions are not good
            batch = [(o, example(o, served=1e5, model="main")) for o, _ in batch]
        student.study(0, batch, 10 * n + 10)
        published(student, log, now=100.0 * n)
    held = {m.version for m in log.manifests if _loads(log, m.version)}
    good = {m.version for m in log.manifests if m.error is not None and m.error < (m.baseline_error or 0)}
    assert max(good) < 7
    assert held == {7, 8} | set(sorted(good)[-2:])


def _loads(log: Log, version: int) -> bool:
    try:
        log.library.blob("main", version)
    except ValueError:
        return False
    return True


def test_the_error_is_of_what_was_served_and_waits_for_the_warm_up() -> None:
    p, log = pipeline(warmup=10), Log()
    student = started(p, log)
    published(student, log)
    student.study(0, numbered(0, 10), 10)
    assert student.vitals("r", 0, 1).labelled == 0
    published(student, log)
    served = [(n, example(n, served=5.0, model="main")) for n in range(10, 20)]
    student.study(0, served, 20)
    vitals = student.vitals("r", 0, 1)
    assert vitals.labelled == 10 and vitals.learned == 10 and vitals.spans == (Span(0, 10, 20),)
    assert vitals.error == pytest.approx(sum(abs(5.0 - float(e.label)) for _, e in served))
    assert vitals.baseline_error == pytest.approx(sum(abs(float(e.label)) for _, e in served))
    assert vitals.wrong is None


def test_an_estimator_that_raises_costs_its_own_examples_only() -> None:
    p, log = pipeline(Stubborn), Log()
    student = started(p, log)
    batch = [(n, example(n, x=-1.0 if n % 2 else 1.0)) for n in range(10)]
    student.study(0, batch, 10)
    assert student.vitals("r", 0, 1).raised == 5
    assert published(student, log).spans == (Span(0, 0, 10),)


def test_versions_are_due_by_count_and_by_time_within_their_budget() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    assert student.due(0.0)  # the first, so that there is one to serve
    published(student, log, now=0.0)
    student.spent(0.0, 1.0)  # a second of snapshot at a budget of 10 %
    student.study(0, numbered(0, 10), 10)
    assert not student.due(9.9)
    assert student.due(10.1)
    published(student, log, now=10.1)
    student.spent(10.1, 0.0)
    student.study(0, numbered(10, 11), 11)
    assert not student.due(70.0)
    assert student.due(70.2)


def test_examples_of_other_features_are_marked_and_not_learned() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    mixed = [(n, example(n, fingerprint="other" if n in (3, 4, 5) else "")) for n in range(10)]
    student.study(0, mixed, 10)
    manifest = published(student, log)
    assert (student.learned, manifest.skipped) == (7, (Span(0, 3, 6),))
    assert manifest.spans == (Span(0, 0, 3), Span(0, 6, 10))


def test_a_version_of_other_features_is_neither_continued_nor_restored() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    student.study(0, numbered(0, 10), 10)
    published(student, log)
    changed = Student("main", p, ALLOW)
    changed.fingerprint = "new"
    for route in (Route("main", State.LIVE), Route("main", State.QUARANTINED, line=1, restore=1)):
        start_line(changed, route, log.library, {0: 0})
        assert (changed.learned, changed.published) == (0, None)


def test_an_example_of_any_size_lets_versions_be_published() -> None:
    p, log = pipeline(), Log()
    student = started(p, log)
    huge = replace(example(0), features={"x": 1.0, "text": "a" * 600_000})
    student.study(0, [(0, huge), *numbered(1, 10)], 10)
    assert len(published(student, log).probes) == 8


def at_work(p: Pipeline, log: Log) -> tuple[Learn, LearnWork]:
    agent = Learn(Runtime(Connection("127.0.0.1:1"), p, Telemetry(), "r", transactions=True, signing_key=KEY))
    students = [Student(name, p, ALLOW) for name in p.models]
    for student in students:
        start_line(student, agent.verdicts.routing.routes[student.name], log.library, {0: 0})
    return agent, LearnWork(agent, 0, students)


def decide(agent: Learn, state: State) -> None:
    routing = agent.verdicts.routing
    verdict = Verdict(
        model="main", state=state, follows=routing.routes["main"].offset, policy="t", reason="t", at_ms=0
    )
    agent.verdicts.routing = routing.obey(routing.offset + 1, verdict)


def records(tp: TopicPartition, start: int, end: int) -> list[Any]:
    return [
        Stored(n, msgspec.json.encode(example(n)), topic=tp.topic, partition=tp.partition)
        for n in range(start, end)
    ]


async def test_a_model_that_comes_back_learns_from_where_it_stopped() -> None:
    p = pipeline()
    agent, work = at_work(p, Log())
    tp = TopicPartition("p.examples", 0)
    await work.process({tp: records(tp, 0, 10)})
    decide(agent, State.DESTROYED)
    assert work.outdated()
    await work.refresh()
    await work.process({tp: records(tp, 10, 50)})
    assert work.positions[tp] == 50
    decide(agent, State.SHADOW)
    await work.process({tp: records(tp, 50, 60)})  # what was fetched before anyone looked
    assert work.outdated()
    await work.refresh()
    assert work.positions[tp] == 10
    assert not work.outdated()


def test_the_learner_finds_every_version_that_the_log_keeps() -> None:
    p, log = pipeline(keep=2), Log()
    agent, _ = at_work(p, log)
    student = started(p, log)
    table: dict[bytes, bytes] = {}
    for n in range(12):
        student.study(0, numbered(10 * n, 10 * n + 10), 10 * n + 10)
        sealed = student.publish(0.0, 0, KEY)
        table |= dict(sealed.records())
    del student
    library = agent.library(table)
    assert library.blob("main", 1)
    again = Student("main", p, ALLOW)
    start_line(again, Route("main", State.QUARANTINED, line=1, restore=1), library, {0: 0})
    assert again.learned == 10
