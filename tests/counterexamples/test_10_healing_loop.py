"""A model that is healed learns the log again without the spans that spoiled it.

v9 is quarantined, restored to v5, and relearned over the same log: without skipping, it is v9 again.
"""

from __future__ import annotations

from typing import Any

from riverkeeper import Pipeline
from riverkeeper.models.routing import Routing
from riverkeeper.models.student import Numbered, Student, start_line
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler
from riverkeeper.supervisor.lifecycle import Course, KnownVersion, decide
from riverkeeper.supervisor.policies import BOUNDS, Finding, Health, Limits, Tally
from riverkeeper.topics.messages import Example, Manifest, Source, State, Verdict
from tests.agents.test_join import TIME
from tests.agents.tiny import tiny
from tests.counterexamples.without import Remedy

REMEDIES = [
    Remedy(
        "supervisor/lifecycle.py",
        "        skip=skipped(route, health, versions, good, NEVER if relapses else finding.onset_ms),\n",
        "        skip=(),\n",
        what="the verdict names the spans to skip",
    ),
    Remedy(
        "models/student.py",
        "(*self._skip, *_joined(foreign), *shed)",
        "(*_joined(foreign), *shed)",
        what="the learner skips them",
    ),
]
KEY = b"k" * 32
END = 90  # examples in the log
BAD = range(50, 60)  # their labels are what nobody measured
SPOILED = 1e3  # an answer that only the bad examples can teach


def log(fingerprint: str) -> list[Numbered]:
    return [(n, _example(n, 1e6 if n in BAD else 2.0, fingerprint)) for n in range(END)]


def _example(n: int, label: float, fingerprint: str) -> Example:
    return Example(
        id=f"e{n}",
        key=f"e{n}",
        time=TIME,
        features={"amount": 1.0},
        label=label,
        served=0.0,
        source=Source.FALLBACK,
        model="fall",
        version=1,
        fingerprint=fingerprint,
        baseline=0.0,
    )


class Run:
    """A learner, its versions and the verdicts on it, over one log."""

    def __init__(self) -> None:
        self.pipeline: Pipeline = tiny()
        self.library = Assembler(keep=100)
        self.routing = Routing.declared(["line"], ["line"])
        self.course = Course(State.LIVE)
        self.manifests: dict[int, Manifest] = {}
        self.tallies: dict[int, Tally] = {}
        self.now = 0

    def learn(self, end: int) -> list[bool]:
        """Learns the log in the line in force, a version every 10 examples: which were spoiled."""
        student = Student("line", self.pipeline, AllowList(self.pipeline.trusted))
        start_line(student, self.routing.routes["line"], self.library, {0: 0})
        spoiled = []
        for start in range(student.offsets[0], end, 10):
            self.now += 1_000
            batch = [each for each in log(student.fingerprint) if start <= each[0] < start + 10]
            student.study(0, batch, start + 10)
            sealed = student.publish(0.0, self.now, KEY)
            for key, value in sealed.records():
                self.library.feed(key, value)
            spoiled.append(self._watch(student, sealed.manifest))
        return spoiled

    def _watch(self, student: Student, manifest: Manifest) -> bool:
        estimator: Any = student.estimator
        spoiled = bool(abs(estimator.predict_one({"amount": 1.0})) > SPOILED)
        self.manifests[manifest.version] = manifest
        self.tallies[manifest.version] = Tally(asked=100, bad=100 if spoiled else 0)
        return spoiled

    def of_line(self, line: int) -> list[Manifest]:
        return [m for m in self.manifests.values() if m.line == line]

    def quarantine(self, onset: int) -> Verdict:
        """What the supervisor decides when the version that began it is found out."""
        route = self.routing.routes["line"]
        finding = Finding(BOUNDS, "wild", self.manifests[onset].published_ms + 1, {"share": 1.0}, grave=True)
        health = Health(model="line", line=route.line, versions=self.tallies)
        known = {v: KnownVersion.of(m) for v, m in self.manifests.items()}
        verdict = decide(route, self.course, health, [finding], known, Limits(), self.now + 1)
        assert verdict is not None and verdict.state is State.QUARANTINED
        self.routing = self.routing.obey(self.routing.offset + 1, verdict)
        self.course = self.course.after(verdict, Limits())
        return verdict


def test_it_is_not_spoiled_by_the_same_examples_again() -> None:
    run = Run()
    assert run.learn(70) == [False] * 5 + [True] * 2
    verdict = run.quarantine(onset=6)
    assert (verdict.line, verdict.restore) == (1, 5)

    assert not any(run.learn(END)), "the healed model is what it was"
    healed = run.manifests[max(run.manifests)]
    assert (healed.line, healed.offsets) == (1, {0: END})
    learned = sum(span.end - span.start for m in run.of_line(1) for span in m.spans)
    assert learned == END - 70, "what came after is learned, and nothing else"
