"""A version serves only if it passes every check; each check has a subject that it refuses."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from river import compose, dummy, linear_model, preprocessing

from riverkeeper.models.fastpath import Raised
from riverkeeper.models.gate import Admitted, Code, Refused, examine
from riverkeeper.models.quality import Task, predict
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import dump, environment, seal
from riverkeeper.topics.messages import Answer, Features, Manifest, Span

KEY = b"a key for tests"
ROWS: list[Features] = [{"a": i / 7, "b": float(i % 5)} for i in range(200)]


class Stranger(linear_model.LinearRegression):
    """Not of River and not trusted."""


def model(final: Any = None) -> Any:
    estimator = compose.Select("a", "b") | preprocessing.StandardScaler()
    estimator = estimator | (final or linear_model.LinearRegression(intercept_lr=0.1))
    for i, x in enumerate(ROWS):
        estimator.learn_one(x, i / 20)
    return estimator


def sealed(
    estimator: Any, task: Task = "regression", probes: list[tuple[Features, Answer]] | None = None
) -> tuple[Manifest, bytes]:
    data = dump(estimator)
    if probes is None:
        probes = [(x, predict(task, estimator, x)) for x in ROWS[:5]]
    manifest, _ = seal(
        model="learned",
        version=3,
        line=0,
        parent=2,
        fingerprint="abc",
        environment=environment(),
        spans=(Span(0, 0, 200),),
        offsets={0: 200},
        learned=200,
        data=data,
        published_ms=1,
        key=KEY,
        probes=probes,
    )
    return manifest, data


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that moves by that much each time it is read."""
    return itertools.count(0.0, seconds).__next__


def tried(version: tuple[Manifest, bytes], **changes: Any) -> Admitted:
    manifest, blob = version
    settings: dict[str, Any] = {
        "key": KEY,
        "fingerprint": "abc",
        "allow": AllowList(),
        "task": "regression",
        "bounds": (-100.0, 100.0),
        "recent": ROWS,
        "clock": ticking(0.001),
    }
    return examine(manifest, blob, **(settings | changes))


def refusal(version: tuple[Manifest, bytes], **changes: Any) -> Code:
    with pytest.raises(Refused) as refused:
        tried(version, **changes)
    assert str(refused.value).startswith(f"learned v3 refused, {refused.value.code}: ")
    return refused.value.code


def test_a_good_version_is_admitted_and_answers_as_its_estimator() -> None:
    estimator = model()
    version = sealed(estimator)
    admitted = tried(version)
    assert admitted.manifest == version[0]
    assert admitted.us_per_fact == pytest.approx(5.0)  # 1 ms for 200 facts
    expected = [estimator.predict_one(x) for x in ROWS]
    assert admitted.scorer(ROWS) == pytest.approx(expected)


def test_a_version_without_probes_and_before_any_fact_is_admitted_unmeasured() -> None:
    assert tried(sealed(model(), probes=[]), recent=[]).us_per_fact is None


def test_a_signature_of_another_key() -> None:
    assert refusal(sealed(model()), key=b"another") is Code.BAD_SIGNATURE


def test_bytes_of_another_version() -> None:
    manifest, blob = sealed(model())
    assert refusal((manifest, blob + b".")) is Code.BAD_BYTES
    assert refusal((manifest, blob[:-2] + b"x.")) is Code.BAD_BYTES


def test_features_of_another_code() -> None:
    assert refusal(sealed(model()), fingerprint="abd") is Code.WRONG_FINGERPRINT


def test_an_estimator_that_is_not_admitted() -> None:
    assert refusal(sealed(model(Stranger()))) is Code.DOES_NOT_OPEN
    assert tried(sealed(model(Stranger())), allow=AllowList(frozenset({__name__})))


def test_signed_bytes_are_not_opened_before_all_else_is_right() -> None:
    class Watched(AllowList):
        def opens(self, data: bytes) -> object:
            raise AssertionError("opened")

    version = sealed(model())
    assert refusal(version, key=b"another", allow=Watched()) is Code.BAD_SIGNATURE
    assert refusal((version[0], b"x"), allow=Watched()) is Code.BAD_BYTES
    assert refusal(version, fingerprint="abd", allow=Watched()) is Code.WRONG_FINGERPRINT


def test_an_answer_that_is_not_the_published_one() -> None:
    estimator = model()
    right = estimator.predict_one(ROWS[3])
    assert refusal(sealed(estimator, probes=[(ROWS[3], right * (1 + 1e-5))])) is Code.PROBE_DIFFERS
    assert tried(sealed(estimator, probes=[(ROWS[3], right * (1 + 1e-8))]))


def test_an_answer_of_another_form() -> None:
    assert refusal(sealed(model(), probes=[(ROWS[0], {"a": 1.0})])) is Code.PROBE_DIFFERS


def test_a_model_that_raises() -> None:
    assert refusal(sealed(model(), probes=[({"a": 1.0}, 0.5)])) is Code.RAISES
    version = sealed(model())
    broken: Features = {"a": 1.0}
    assert refusal(version, recent=[*ROWS[:95], *[broken] * 5]) is Code.RAISES
    assert tried(version, recent=[*ROWS[:98], *[broken] * 2])


def test_an_answer_that_is_not_finite() -> None:
    version = sealed(model(), probes=[])
    assert refusal(version, recent=[*ROWS, {"a": float("inf"), "b": 1.0}]) is Code.NOT_FINITE
    diverged = model()
    diverged["LinearRegression"].intercept = float("nan")
    assert refusal(sealed(diverged, probes=[(ROWS[0], 1.0)])) is Code.NOT_FINITE


def test_a_classifier_that_knows_no_class_has_no_answer() -> None:
    version = sealed(dummy.NoChangeClassifier(), "multiclass", [])
    assert refusal(version, task="multiclass") is Code.NOT_FINITE


def test_too_many_answers_out_of_bounds() -> None:
    version = sealed(model())
    far: Features = {"a": 1e6, "b": 0.0}
    assert refusal(version, recent=[*ROWS[:97], *[far] * 3]) is Code.OUT_OF_BOUNDS
    assert tried(version, recent=[*ROWS[:98], *[far] * 2])
    assert tried(version, recent=[far])
    assert refusal(version, recent=[far, far]) is Code.OUT_OF_BOUNDS
    assert tried(version, recent=[far, far], bounds=None)


def test_a_model_that_is_too_slow() -> None:
    assert refusal(sealed(model()), clock=ticking(0.41)) is Code.TOO_SLOW
    assert tried(sealed(model()), clock=ticking(0.39))
    assert refusal(sealed(model()), clock=ticking(0.39), limit_us=1_000.0) is Code.TOO_SLOW


def test_few_facts_are_repeated_until_there_is_something_to_time() -> None:
    assert tried(sealed(model()), recent=ROWS[:1], clock=ticking(0.032)).us_per_fact == pytest.approx(1000.0)
    assert tried(sealed(model()), recent=[], clock=ticking(0.035)).us_per_fact == pytest.approx(1000.0)


def test_other_tasks_pass_the_same_gate() -> None:
    binary: Any = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    classes: Any = preprocessing.StandardScaler() | linear_model.SoftmaxRegression()
    for i, x in enumerate(ROWS):
        binary.learn_one(x, i > 100)
        classes.learn_one(x, "abc"[i % 3])
    assert tried(sealed(binary, "binary"), task="binary", bounds=(0.0, 1.0))
    admitted = tried(sealed(classes, "multiclass"), task="multiclass", bounds=None)
    (answer,) = admitted.scorer(ROWS[:1])
    assert not isinstance(answer, Raised) and isinstance(answer, dict) and set(answer) == set("abc")


def test_numbers_of_numpy_pass() -> None:
    version = sealed(model(), probes=[(ROWS[0], float(np.float64(model().predict_one(ROWS[0]))))])
    assert tried(version)
