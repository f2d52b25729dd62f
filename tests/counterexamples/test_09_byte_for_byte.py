"""A learner that died and came back publishes, byte for byte, what it would have published anyway.

Learning through, and restoring halfway, pickle differently; an unseeded forest differs in one process;
a one-hot encoder across hash seeds.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from river import compose, forest, linear_model, preprocessing, tree

from riverkeeper import Bounds, Fact, Label, Pipeline
from riverkeeper.models.features import PipelineError
from riverkeeper.models.routing import Route
from riverkeeper.models.student import Numbered, Student, start_line
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler
from riverkeeper.topics.messages import Example, Source, State
from tests.agents.tiny import Paid
from tests.counterexamples.without import ROOT, Remedy

REMEDIES = [
    Remedy(
        "models/student.py",
        "        self.estimator, self.published = opened, sealed.manifest\n",
        "        self.published = sealed.manifest\n",
        what="it goes on from the published bytes",
    ),
    Remedy(
        "models/version.py",
        "    return sys.intern(value) if isinstance(value, str) else value\n",
        "    return value\n",
        what="equal texts are one object",
    ),
    Remedy(
        "models/pipeline.py",
        "        for path in unseeded(estimator):\n",
        "        for path in ():\n",
        what="an estimator without a seed is refused",
    ),
    Remedy(
        "src/riverkeeper/cli.py",
        '    if "PYTHONHASHSEED" not in os.environ:\n',
        '    if "PYTHONHASHSEED" in os.environ:\n',
        what="the program fixes its hash seed",
    ),
]
KEY = b"k" * 32
TIME = datetime(2024, 1, 1, tzinfo=UTC)
EXAMPLES, EVERY = 240, 40


def _numbers() -> Any:
    return compose.Select("amount", "hours")


def _linear() -> Any:
    numbers = _numbers() | preprocessing.StandardScaler()
    texts = compose.Select("shop", "weather") | preprocessing.OneHotEncoder()
    return (numbers + texts) | linear_model.LinearRegression()


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "linear": _linear,
    "tree": lambda: tree.SGTRegressor(grace_period=20),
    "forest": lambda: _numbers() | forest.ARFRegressor(n_models=3, seed=7, grace_period=20),
    "passive": lambda: preprocessing.OneHotEncoder() | linear_model.PARegressor(),  # type: ignore[no-untyped-call]
}


class Ride(Fact):
    basket: str
    shop: str
    amount: float
    hours: float
    weather: str


def learning(factory: Callable[[], Any]) -> Pipeline:
    return Pipeline(
        name="p",
        facts=Ride,
        outcomes=Paid,
        key="shop",
        join="basket",
        features=["amount", "hours", "shop", "weather"],
        label=Label("amount", within=timedelta(hours=1)),
        models={"main": factory, "fall": linear_model.LinearRegression},
        serve="main",
        fallback="fall",
        bounds=Bounds(-1e6, 1e6),
    )


def _text(*parts: object) -> str:
    """An object of its own, as a decoder makes one for each record."""
    return "".join(map(str, parts))


def example(n: int, fingerprint: str, *, shared: bool = False) -> Example:
    weather = "rain" if shared else _text("ra", "in")
    return Example(
        id=f"e{n}",
        key=f"e{n}",
        time=TIME,
        features={
            "amount": n % 13 / 3,
            "hours": n * 7 % 31 / 5,
            "shop": _text("shop ", n * 5 % 11),
            "weather": weather if n % 3 else "sun",
        },
        label=n % 13 + n * 7 % 31 / 2,
        served=0.0,
        source=Source.FALLBACK,
        model="fall",
        version=1,
        fingerprint=fingerprint,
        baseline=0.0,
    )


def versions(factory: Callable[[], Any], dies_after: frozenset[int], *, shared: bool = False) -> list[str]:
    """The hashes of a learner's versions, which dies after some of them and comes back."""
    pipeline, library, hashes = learning(factory), Assembler(keep=100), list[str]()

    def started() -> Student:
        student = Student("main", pipeline, AllowList(pipeline.trusted))
        start_line(student, Route("main", State.LIVE), library, {0: 0})
        return student

    student = started()
    for start in range(0, EXAMPLES, EVERY):
        end = start + EVERY
        batch: list[Numbered] = [
            (n, example(n, pipeline.fingerprint, shared=shared)) for n in range(start, end)
        ]
        student.study(0, batch, end)
        sealed = student.publish(0.0, 0, KEY)
        for key, value in sealed.records():
            library.feed(key, value)
        hashes.append(sealed.manifest.sha256)
        if len(hashes) in dies_after:
            student = started()
    assert student.learned == EXAMPLES
    return hashes


NEVER, OFTEN = frozenset[int](), frozenset({1, 2, 4})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_restored_halfway_it_publishes_the_same_bytes(name: str) -> None:
    through = versions(ESTIMATORS[name], NEVER)
    assert len(set(through)) == len(through)
    assert versions(ESTIMATORS[name], OFTEN) == through


def test_it_does_not_matter_which_texts_a_decoder_shares() -> None:
    """A tree keeps the texts it was given; its bytes show which of them are one object."""
    factory = ESTIMATORS["tree"]
    assert versions(factory, NEVER, shared=True) == versions(factory, OFTEN, shared=False)


@pytest.mark.parametrize(
    "factory",
    [lambda: forest.ARFRegressor(n_models=3), lambda: preprocessing.StandardScaler() | forest.ARFRegressor()],
)
def test_an_estimator_without_a_seed_is_an_error_at_import(factory: Callable[[], Any]) -> None:
    with pytest.raises(PipelineError, match="seed is not set"):
        learning(factory)


def digest(name: str) -> str:
    return hashlib.sha256("".join(versions(ESTIMATORS[name], OFTEN)).encode()).hexdigest()


A_PIPELINE = """
import sys
from tests.counterexamples.test_09_byte_for_byte import digest

sys.stdout.write(digest("linear"))
raise SystemExit(0)
"""


def learned_by_the_program(folder: Path) -> str:
    """What `riverkeeper run` would learn, as the module of its pipeline tells; then it ends."""
    (folder / "told.py").write_text(A_PIPELINE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    path = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "riverkeeper", "run", "told:pipeline"],
        cwd=folder,
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert len(done.stdout) == 64, done.stderr
    return done.stdout


def test_every_start_of_the_program_publishes_the_same_bytes(tmp_path: Path) -> None:
    """Sets iterate by hash: without a fixed seed a one-hot encoder's bytes differ between processes."""
    assert learned_by_the_program(tmp_path) == learned_by_the_program(tmp_path)
