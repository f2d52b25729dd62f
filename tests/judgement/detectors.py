"""A stream before the judgement, by the agents' own code, and before the detectors of `river.drift`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from river import drift, dummy, stats, tree

from riverkeeper import Fact, Label, Model, Objectives, Pipeline, Publish
from riverkeeper.models.quality import Task
from tests.judgement.story import NOTICED
from tests.judgement.streams import FACTS, ONSET, Row, Stream
from tests.judgement.town import Town, stamp
from tests.judgement.world import FACTS_PER_WINDOW, World

OURS = "riverkeeper"
EXAMPLES_PER_VERSION = 2_500  # five windows
ERROR_DIGITS = 4  # of what is kept of errors


class Alarm(msgspec.Struct, frozen=True):
    facts: int  # seen when it was given
    by: str  # policy, and the model if it is about one
    grave: bool
    reason: str


class Run(msgspec.Struct, frozen=True):
    """What was said of one stream. Places are numbers of facts seen."""

    stream: str
    seed: int
    onset: int | None  # None: a clean twin
    facts: int
    alarms: dict[str, list[int]]  # by detector
    ours: list[Alarm]
    errors: list[float]  # mean of the model's, by window


def learned(task: Task) -> Any:
    """A Hoeffding tree (Domingos and Hulten 2000), which goes on learning, but forgets nothing and detects nothing."""
    return tree.HoeffdingTreeRegressor() if task == "regression" else tree.HoeffdingTreeClassifier()


def usual(task: Task) -> Any:
    return dummy.StatisticRegressor(stats.Mean()) if task == "regression" else dummy.PriorClassifier()


@dataclass
class Feed(Town):
    """A stream's rows as facts and outcomes: 500 a second, each outcome a millisecond after its fact."""

    rows: Sequence[Row] = ()

    def window(self) -> list[tuple[int, bytes]]:
        start, self.now_ms = self.now_ms, self.now_ms + self.step_ms
        came, self.rows = self.rows[:FACTS_PER_WINDOW], self.rows[FACTS_PER_WINDOW:]
        events = []
        for i, (x, y) in enumerate(came):
            at_ms = start + i * self.step_ms // FACTS_PER_WINDOW
            row = f"{start}/{i}"
            fact = {"id": row, "type": "measured", "time": stamp(at_ms), "row": row, **x}
            came_true = {"id": f"{row}/y", "type": "came", "time": stamp(at_ms + 1), "row": row, "label": y}
            events += [(at_ms, msgspec.json.encode(fact)), (at_ms + 1, msgspec.json.encode(came_true))]
        return events


def pipeline(stream: Stream, rows: Sequence[Row]) -> Pipeline:
    """All by default but the season, for these streams have none, and what a version is published for: growing
    trees are not sealed, opened and examined every second window."""
    (x, y), task = rows[0], stream.task
    columns: list[Any] = [("row", str), ("time", datetime), *((name, float) for name in x)]
    outcome: list[Any] = [("row", str), ("label", type(y))]
    defined: Any = partial(msgspec.defstruct, bases=(Fact,), frozen=True, kw_only=True)
    classes = sorted({str(label) for _, label in rows})
    return Pipeline(
        name="streams",
        facts=defined("Measured", columns),
        outcomes=defined("Came", outcome),
        key="row",
        join="row",
        features=list(x),
        label=Label("label", within=timedelta(hours=1)),
        models={
            "learned": Model(lambda: learned(task), warmup=500),
            "usual": Model(lambda: usual(task), warmup=0),
        },
        serve="learned",
        fallback="usual",
        bounds=stream.bounds,
        constant={name: 1 / len(classes) for name in classes} if task == "multiclass" else None,
        partitions=1,
        publish=Publish(every_examples=EXAMPLES_PER_VERSION),
        objectives=Objectives(season=timedelta(0)),
    )


def judged(stream: Stream, rows: Sequence[Row]) -> list[Alarm]:
    """Every alarm and quarantine, whatever it was about."""
    world = World(Feed(0, step_ms=1_000, rows=rows), pipeline(stream, rows))
    try:
        for _ in range(len(rows) // FACTS_PER_WINDOW):
            world.window()
    finally:
        world.close()
    return [
        Alarm(t.facts, f"{t.policy} of {t.who}" if t.who else t.policy, t.action != "alarm", t.reason)
        for t in world.told
        if t.action in NOTICED
    ]


def bare(task: Task) -> dict[str, Any]:
    """Detectors with their default settings. Those for numbers take classification errors, too."""
    make: Any = drift  # without type information
    numbers = {"ADWIN": make.ADWIN(), "PageHinkley": make.PageHinkley(), "KSWIN": make.KSWIN(seed=1)}
    bits = {
        "DDM": make.binary.DDM(),
        "EDDM": make.binary.EDDM(),
        "HDDM_A": make.binary.HDDMA(),
        "HDDM_W": make.binary.HDDMW(),
    }
    return numbers if task == "regression" else numbers | bits


def prequential(task: Task, rows: Sequence[Row]) -> list[float]:
    """The model's error at each row before it learns it: absolute, or 1 for the wrong class."""
    model, errors = learned(task), []
    for x, y in rows:
        said = model.predict_one(x)
        errors.append(abs(said - float(y)) if task == "regression" else float(said != y))
        model.learn_one(x, y)
    return errors


def detected(task: Task, errors: Sequence[float]) -> dict[str, list[int]]:
    """By detector, the number of errors it had seen when it detected drift."""
    found: dict[str, list[int]] = {}
    for name, detector in bare(task).items():
        places = found[name] = []
        for seen, error in enumerate(errors, start=1):
            detector.update(error if task == "regression" else int(error))
            if detector.drift_detected:
                places.append(seen)
    return found


def measured(stream: Stream, seed: int, facts: int = FACTS) -> Run:
    rows = stream.rows(seed, facts)
    ours, errors = judged(stream, rows), prequential(stream.task, rows)
    parts = [errors[i : i + FACTS_PER_WINDOW] for i in range(0, facts, FACTS_PER_WINDOW)]
    return Run(
        stream=stream.name,
        seed=seed,
        onset=ONSET if stream.drifts else None,
        facts=facts,
        alarms={OURS: [each.facts for each in ours], **detected(stream.task, errors)},
        ours=ours,
        errors=[round(sum(part) / len(part), ERROR_DIGITS) for part in parts],
    )
