"""The declaration: what follows from it, what it refuses; and what its task asks of an estimator."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from river import (
    anomaly,
    compose,
    dummy,
    ensemble,
    forest,
    linear_model,
    multiclass,
    naive_bayes,
    optim,
    preprocessing,
    stats,
    tree,
)

from riverkeeper import (
    Bounds,
    Canary,
    Dedupe,
    EventFields,
    Fact,
    Label,
    Model,
    Objectives,
    Pipeline,
    PipelineError,
    Publish,
    feature,
    fold,
)
from riverkeeper.models.pipeline import load, unseeded
from riverkeeper.models.quality import Task, learn, loss, metric_name, predict, residuals, wrongs
from riverkeeper.topics.messages import Answer


class Departure(Fact, frozen=True):
    flight: str
    origin: str
    delay: float


class Arrival(Fact, frozen=True):
    flight: str
    delay: float
    late: bool
    cause: str
    stops: int
    note: float | None = None


class Diversion(Fact, frozen=True):
    event_type = "departure"
    flight: str
    delay: float


class Numbered(Fact, frozen=True):
    flight: int
    delay: float


@feature
def late(delay: float) -> bool:
    return delay > 15


@fold(key="origin", start=0.0)
def level(state: float, f: Departure) -> float:
    return max(state, f.delay)


def learned() -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


def baseline() -> Any:
    return dummy.StatisticRegressor(stats.Mean())


def clf() -> Any:
    return linear_model.LogisticRegression()


def bayes() -> Any:
    return naive_bayes.GaussianNB()  # type: ignore[no-untyped-call]


def flights(**changed: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "flights",
        "facts": Departure,
        "outcomes": Arrival,
        "key": "origin",
        "join": "flight",
        "features": ["delay", late, level],
        "label": Label("delay", within=timedelta(hours=24)),
        "models": {"learned": learned, "baseline": baseline},
        "serve": "learned",
        "bounds": Bounds(-120, 1500),
        "fallback": "baseline",
    }
    return Pipeline(**(declared | changed))


def classes(**changed: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "label": Label("cause", within=timedelta(hours=1)),
        "models": {"bayes": bayes},
        "serve": "bayes",
        "fallback": "bayes",
        "bounds": None,
        "constant": {"weather": 0.5, "crew": 0.5},
    }
    return flights(**(declared | changed))


def binary(**changed: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "label": Label("late", within=timedelta(hours=1)),
        "models": {"clf": clf},
        "serve": "clf",
        "fallback": "clf",
        "bounds": None,
    }
    return flights(**(declared | changed))


# What follows from a declaration


def test_the_names_in_the_log() -> None:
    pipeline = flights()
    assert pipeline.topic("facts") == "flights.facts"
    assert pipeline.agent_group("score") == "flights.score"
    assert pipeline.transactional_id("score", 3) == "flights.score.3"
    assert pipeline.types == {"departure": Departure, "arrival": Arrival}


def test_a_pipeline_is_frozen() -> None:
    with pytest.raises(AttributeError, match="flights: a pipeline is frozen; 'key'"):
        flights().key = "flight"


def test_only_what_some_model_asks_for_is_in_the_graph() -> None:
    asked = {
        "learned": Model(learned, features=("level", "delay"), warmup=50),
        "baseline": Model(baseline, ()),
    }
    pipeline = flights(models=asked)
    assert pipeline.graph.wanted == ("delay", "level")
    assert pipeline.model_features == {"learned": ("delay", "level"), "baseline": ()}
    assert pipeline.models["learned"].warmup == 50
    assert flights(models=asked | {"baseline": baseline}).graph.wanted == ("delay", "late", "level")


def test_the_task_follows_from_the_estimators_and_the_label() -> None:
    assert flights().task == "regression"
    assert binary().task == "binary"
    assert classes().task == "multiclass"
    assert classes(label=Label("stops", timedelta(hours=1))).task == "multiclass"
    one_vs_rest = multiclass.OneVsRestClassifier(linear_model.LogisticRegression())
    assert (
        classes(models={"bayes": lambda: preprocessing.StandardScaler() | one_vs_rest}).task == "multiclass"
    )


def test_bounds_and_constant_have_defaults_that_hold() -> None:
    assert flights().constant == 0.0
    assert flights(bounds=Bounds(5, 9)).constant == 5.0
    assert binary().bounds == classes().bounds == Bounds(0.0, 1.0)
    assert binary().constant == 0.5
    assert binary(bounds=Bounds(0.6, 0.9)).constant == 0.6
    assert flights(constant=12).constant == 12.0


def test_the_label_is_read_from_the_outcome() -> None:
    outcome = Arrival(flight="UA1", delay=3.0, late=False, cause="crew", stops=0)
    assert flights().label_of(outcome) == 3.0
    assert binary().label_of(outcome) is False
    assert classes().label_of(outcome) == "crew"


@pytest.mark.parametrize(
    ("answer", "admitted"),
    [(-120.0, True), (1500.0, True), (1500.1, False), (-121.0, False), (math.nan, False), (math.inf, False)],
)
def test_bounds_admit_what_is_finite_and_inside(answer: float, admitted: bool) -> None:
    assert Bounds(-120, 1500).admits(answer) is admitted


def test_open_bounds_still_refuse_infinity() -> None:
    assert Bounds(0, math.inf).admits(1e300) and not Bounds(0, math.inf).admits(math.inf)


@pytest.mark.parametrize(
    ("answer", "admitted"),
    [
        ({"a": 0.0, "b": 1.0}, True),
        ({}, False),
        ({"a": math.nan}, False),
        ({"a": 1.1}, False),
        ({"a": -0.1}, False),
    ],
)
def test_bounds_admit_probabilities_by_class(answer: dict[str, float], admitted: bool) -> None:
    assert Bounds(0, 1).admits(answer) is admitted


# Traffic


def test_one_serving_model_gets_everything() -> None:
    assert flights().route_for(["a", "b"]) == ["learned", "learned"]


def test_shares_are_kept_by_the_id_alone() -> None:
    pipeline = flights(serve={"learned": 0.8, "baseline": 0.2})
    ids = [f"flight-{n}" for n in range(10_000)]
    routed = pipeline.route_for(ids)
    assert 0.78 < routed.count("learned") / len(ids) < 0.82
    assert set(routed) == {"learned", "baseline"}
    assert pipeline.route_for(ids[::-1])[::-1] == routed


def test_shares_that_miss_1_by_rounding_still_route_every_id() -> None:
    short = {"learned": 0.5, "baseline": 0.5 - 9e-10}
    highest = "0000001010000001000101111100011000000000"
    assert zlib.crc32(highest.encode()) == 2**32 - 1
    assert flights(serve=short).route_for([highest]) == ["baseline"]


def test_the_fallback_is_live_too_even_without_traffic() -> None:
    assert flights().serving == ("learned", "baseline")
    assert flights(serve="baseline").serving == ("baseline",)


# Faults

FAULTS: list[tuple[Callable[..., Pipeline], dict[str, Any], str]] = [
    (flights, {"name": "my flights"}, "'my flights' cannot name a pipeline"),
    (flights, {"name": "f" * 201}, "cannot name a pipeline"),
    (flights, {"name": ".."}, "cannot name a pipeline"),
    (flights, {"facts": dict}, "facts=.*dict.* is not a class derived from Fact"),
    (flights, {"outcomes": Diversion}, "Departure and Diversion both have the event type 'departure'; set"),
    (flights, {"key": "orgin"}, r"key 'orgin' is not a field of Departure \(did you mean 'origin'\?\)"),
    (flights, {"join": "origin"}, "join 'origin' is not a field of Arrival; it has cause, delay"),
    (flights, {"join": "cause"}, "join 'cause' is not a field of Departure"),
    (flights, {"outcomes": Numbered}, "join 'flight' is .*str.* but .*int.*; give both one type"),
    (flights, {"label": Label("dely", timedelta(1))}, r"label 'dely' .* \(did you mean 'delay'\?\)"),
    (flights, {"label": Label("delay", timedelta(0))}, "label within is 0:00:00; it must be more than 0"),
    (flights, {"dedupe": Dedupe(window=timedelta(0))}, "dedupe window"),
    (flights, {"dedupe": Dedupe(ids=0)}, "dedupe ids is 0"),
    (flights, {"partitions": 0}, "partitions is 0"),
    (flights, {"model_partitions": 0}, "model_partitions is 0"),
    (flights, {"max_pending": 0}, "max_pending is 0"),
    (flights, {"objectives": Objectives(max_staleness=timedelta(0))}, "max_staleness is 0:00:00"),
    (flights, {"objectives": {"eager": Objectives()}}, "objectives .eager. is not one of the models"),
    (flights, {"slices": ["orgin"]}, "slices names .orgin., which is no feature"),
    (flights, {"policies": [3]}, "policies holds 3"),
    (flights, {"canary": Canary("learnt")}, r"canary 'learnt' .*did you mean 'learned'"),
    (flights, {"canary": Canary("baseline")}, "canary 'baseline' has traffic already"),
    (
        flights,
        {
            "canary": Canary("new", steps=(0.5, 1.0)),
            "models": {"new": learned, "learned": learned, "baseline": baseline},
        },
        "canary 'new': steps are",
    ),
    (flights, {"publish": Publish(budget=1.5)}, "budget is 1.5; it is a share"),
    (flights, {"publish": Publish(keep=0)}, "publish keep is 0"),
    (flights, {"objectives": Objectives(margin=-1)}, "margin is -1"),
    (flights, {"objectives": Objectives(margin=math.nan)}, "margin is nan"),
    (flights, {"delivery": "once"}, "delivery is 'once'; choose one of origin, transactional"),
    (flights, {"models": {}}, "models is empty"),
    (flights, {"models": {"a/b": learned}}, "'a/b' cannot name a model"),
    (flights, {"models": {"": learned}}, "'' cannot name a model"),
    (flights, {"models": {"constant": learned}}, "'constant' cannot name a model"),
    (flights, {"fallback": "basline"}, r"fallback 'basline' is not .* \(did you mean 'baseline'\?\)"),
    (flights, {"serve": "eager"}, "serve 'eager' is not one of the models"),
    (flights, {"serve": {}}, "sum to 0; they must sum to 1"),
    (flights, {"serve": {"learned": 0.7, "baseline": 0.2}}, "sum to 0.8.*; they must sum to 1"),
    (flights, {"serve": {"learned": 1.0, "baseline": 0.0}}, "'baseline' the share 0.0; leave it out"),
    (flights, {"serve": {"learned": math.nan}}, "share nan"),
    (flights, {"bounds": None}, "a regression needs bounds; declare"),
    (flights, {"bounds": Bounds(3, 3)}, "bounds 3..3 admit nothing"),
    (flights, {"bounds": Bounds(math.nan, 3)}, "admit nothing"),
    (flights, {"constant": 2000.0}, r"constant 2000.0 lies outside -120..1500; .*move it inside"),
    (flights, {"constant": math.nan}, "constant nan lies outside"),
    (flights, {"constant": {"a": 1.0}}, "does not answer a regression"),
    (binary, {"bounds": Bounds(0, 2)}, "bounds 0..2 of a probability must lie in 0..1"),
    (binary, {"constant": {"True": 1.0}}, "does not answer a binary"),
    (classes, {"constant": None}, "constant is missing"),
    (classes, {"constant": {}}, "lies outside 0..1"),
    (classes, {"constant": {"a": 1.5}}, "lies outside 0..1"),
    (classes, {"bounds": Bounds(0, 0.5)}, "bounds do not apply"),
    (
        flights,
        {"label": Label("cause", timedelta(1))},
        "label 'cause' of Arrival is .*str.*annotate it as int or",
    ),
    (flights, {"label": Label("note", timedelta(1))}, "label 'note' of Arrival is float | None"),
    (flights, {"label": Label("late", timedelta(1))}, "label 'late' of Arrival is .*bool"),
    (classes, {"label": Label("delay", timedelta(1))}, "are for multiclass; annotate it as str or int"),
    (classes, {"models": {"bayes": clf}}, "LogisticRegression tells two classes apart, .*OneVsRest"),
    (
        classes,
        {"models": {"bayes": lambda: preprocessing.StandardScaler() | clf()}},
        "LogisticRegression tells two classes apart",
    ),
    (
        binary,
        {"models": {"clf": lambda: ensemble.VotingClassifier([clf(), tree.HoeffdingTreeClassifier()])}},
        "VotingClassifier gives no probabilities",
    ),
    (
        flights,
        {"models": {"learned": clf, "baseline": baseline}, "label": Label("late", timedelta(1))},
        "'learned' is for binary, but model 'baseline' for regression",
    ),
    (
        flights,
        {"models": {"baseline": lambda: anomaly.HalfSpaceTrees(seed=1)}, "serve": "baseline"},
        "anomaly detector, not supported yet",
    ),
    (
        flights,
        {"models": {"baseline": learned()}, "serve": "baseline"},
        "'baseline' is a Pipeline; give a function",
    ),
    (flights, {"models": {"baseline": dict}, "serve": "baseline"}, "makes a dict, not a River estimator"),
    (
        flights,
        {"models": {"baseline": preprocessing.StandardScaler}, "serve": "baseline"},
        "is a StandardScaler, neither a regressor nor a classifier",
    ),
    (
        flights,
        {"models": {"baseline": forest.ARFRegressor}, "serve": "baseline"},
        "model 'baseline': ARFRegressor.seed is not set.*give it a number",
    ),
    (
        flights,
        {"models": {"baseline": Model(baseline, ("lat",))}, "serve": "baseline"},
        r"model 'baseline' asks for 'lat', which nothing provides \(did you mean 'late'\?\)",
    ),
    (flights, {"features": [late]}, "feature 'late' asks for 'delay'.*add 'delay' to features"),
    (flights, {"features": [len]}, "built-in function len.*decorate it"),
]


@pytest.mark.parametrize(("declare", "changed", "message"), FAULTS, ids=[message for *_, message in FAULTS])
def test_a_fault_is_named_at_import(
    declare: Callable[..., Pipeline], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        declare(**changed)
    assert str(caught.value).startswith("flights: ") or "name" in changed


@pytest.mark.parametrize(
    ("estimator", "paths"),
    [
        (learned(), []),
        (forest.ARFRegressor(), ["ARFRegressor.seed"]),
        (forest.ARFRegressor(seed=0), []),
        (preprocessing.StandardScaler() | forest.ARFRegressor(), ["Pipeline.ARFRegressor.seed"]),
        (
            linear_model.LinearRegression(initializer=optim.initializers.Normal()),
            ["LinearRegression.initializer.seed"],
        ),
        (
            ensemble.BaggingRegressor(forest.ARFRegressor(), seed=1),
            ["BaggingRegressor.model.seed"],
        ),
        (ensemble.VotingClassifier([clf(), forest.ARFClassifier()]), ["VotingClassifier.models.seed"]),
        (
            compose.TransformerUnion(compose.Select("a"), preprocessing.GaussianRandomProjector())
            | learned(),
            ["Pipeline.TransformerUnion.GaussianRandomProjector.seed"],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_a_missing_seed_is_found_however_deep(estimator: Any, paths: list[str]) -> None:
    assert list(unseeded(estimator)) == paths


# The revision


@pytest.mark.parametrize(
    "changed",
    [
        {
            "outcomes": Numbered,
            "facts": type("Departure", (Departure,), {"__annotations__": {"flight": int}}),
        },
        {"event": EventFields(id="event_id")},
        {"partitions": 9},
        {"model_partitions": 2},
        {"dedupe": Dedupe(window=timedelta(hours=2))},
        {"label": Label("stops", timedelta(hours=24))},
        {"key": "flight", "features": ["delay"]},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_what_decides_the_outputs_changes_the_revision(changed: dict[str, Any]) -> None:
    assert flights(**changed).revision != flights().revision


def test_what_does_not_decide_the_outputs_keeps_the_revision() -> None:
    class Departure(Fact, frozen=True):
        """Off the block."""

        flight: str
        origin: str
        delay: float

    @feature
    def other(delay: float) -> float:
        return -delay

    changed = flights(
        facts=Departure,
        features=["delay", other],
        bounds=Bounds(0, 1),
        serve="baseline",
        delivery="transactional",
        publish=Publish(keep=3),
    )
    assert changed.revision == flights().revision
    assert changed.fingerprint != flights().fingerprint


# Loading

MODULE = """
from datetime import timedelta
from river import dummy, stats
from riverkeeper import Bounds, Fact, Label, Pipeline, feature

class Departure(Fact):
    origin: str
    delay: float

class Arrival(Fact):
    origin: str
    delay: float

@feature
def known(f: Departure) -> bool:
    return f.origin in {"JFK", "LGA", "EWR"}

flights = Pipeline(
    name="flights", facts=Departure, outcomes=Arrival, key="origin", join="origin", features=[known],
    label=Label("delay", within=timedelta(hours=1)), serve="mean",
    models={"mean": lambda: dummy.StatisticRegressor(stats.Mean())},
    fallback="mean", bounds=Bounds(0, 1),
)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"declared_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_pipeline_is_loaded_from_the_working_directory(module: str) -> None:
    assert load(f"{module}:flights").name == "flights"


def test_a_reference_that_leads_nowhere_says_where_it_ends(module: str) -> None:
    for ref, message in [
        (module, "write module:attribute"),
        (f"{module}:", "write module:attribute"),
        (f"{module}:flihgts", f"module '{module}' has no 'flihgts' .did you mean 'flights'"),
        (
            f"{module}:Departure",
            f"{module}:Departure is a StructMeta, not a Pipeline; its pipelines are flights",
        ),
        (f"{module}x:flights", f"there is no module '{module}x' .*did you mean '{module}'"),
        ("nowhere.at.all:flights", "there is no module 'nowhere.at.all' in .*; run in its directory"),
    ]:
        with pytest.raises(PipelineError, match=message):
            load(ref)


def test_what_the_module_itself_lacks_is_not_blamed_on_the_reference(tmp_path: Path, module: str) -> None:
    (tmp_path / "broken_declaration.py").write_text("import not_installed_anywhere")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load("broken_declaration:flights")


def test_fingerprint_and_revision_are_the_same_in_every_process(tmp_path: Path, module: str) -> None:
    code = f"from {module} import flights as p; print(p.fingerprint, p.revision, p.route_for(['a']))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1 and len(seen.pop().split()[0]) == 16


# The task's questions


def test_a_regressor_learns_and_answers_in_numbers() -> None:
    estimator = baseline()
    learn("regression", estimator, {}, 4)
    answer = predict("regression", estimator, {})
    assert answer == 4.0 and type(answer) is float


def test_a_binary_classifier_answers_with_the_probability_of_true() -> None:
    estimator = dummy.PriorClassifier()
    unsure = predict("binary", estimator, {})
    assert isinstance(unsure, float) and math.isnan(unsure)
    learn("binary", estimator, {}, False)
    assert predict("binary", estimator, {}) == 0.0
    learn("binary", estimator, {}, True)
    assert predict("binary", estimator, {}) == 0.5


def test_a_multiclass_classifier_knows_its_classes_by_name() -> None:
    estimator = dummy.PriorClassifier()
    assert predict("multiclass", estimator, {}) == {}
    for label in (1, 2, 2, 2):
        learn("multiclass", estimator, {}, label)
    assert estimator.predict_one({}) == "2"
    assert predict("multiclass", estimator, {}) == {"1": 0.25, "2": 0.75}


def test_classes_are_named_in_the_answer_whatever_the_estimator_calls_them() -> None:
    estimator = dummy.PriorClassifier()
    estimator.learn_one({}, True)
    assert predict("multiclass", estimator, {}) == {"True": 1.0}


def test_an_answer_that_is_missing_is_never_admitted() -> None:
    class Silent:
        def predict_one(self, features: object) -> None:
            return None

    assert not Bounds(-1, 1).admits(predict("regression", Silent(), {}))


@pytest.mark.parametrize(
    ("task", "answer", "label", "expected"),
    [
        ("regression", 3.0, -1, 4.0),
        ("binary", 0.25, True, math.log(4)),
        ("binary", 0.25, False, math.log(4 / 3)),
        ("binary", 0.0, True, -math.log(1e-15)),
        ("binary", 1.0, False, -math.log(1e-15)),
        ("binary", 1.0, True, 0.0),
        ("multiclass", {"1": 0.25, "2": 0.75}, 1, math.log(4)),
        ("multiclass", {"1": 1.0}, "2", -math.log(1e-15)),
    ],
)
def test_loss(task: Task, answer: Any, label: Any, expected: float) -> None:
    assert loss(task, answer, label) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("task", "answer", "label", "expected"),
    [
        ("binary", 0.51, True, False),
        ("binary", 0.51, False, True),
        ("binary", 0.5, False, False),
        ("multiclass", {"a": 0.4, "b": 0.6}, "b", False),
        ("multiclass", {"1": 0.7, "2": 0.3}, 2, True),
        ("multiclass", {"a": 1.0}, "c", True),
        ("regression", 3.0, 4.0, None),
    ],
)
def test_wrong(task: Task, answer: Any, label: Any, expected: bool | None) -> None:
    assert wrongs(task, [answer, answer], [label, label]) == [expected, expected]


def test_what_is_no_number_has_no_loss_that_one_could_take_for_a_small_one() -> None:
    assert math.isnan(loss("regression", math.nan, 1.0))
    assert math.isnan(loss("binary", math.nan, True))
    assert math.isnan(loss("multiclass", {"a": math.nan}, "a"))


def test_a_residual_has_the_sign_of_what_was_missing() -> None:
    answers: list[Answer] = [0.25, 0.25, 3.0, {"a": 1.0}]
    assert residuals(answers, [True, False, 5, "a"]) == [0.75, -0.25, 2.0, None]


@pytest.mark.parametrize(
    ("task", "answer"), [("regression", {"a": 1.0}), ("binary", {}), ("multiclass", 0.5)]
)
def test_an_answer_of_another_task_has_no_loss(task: Task, answer: Any) -> None:
    with pytest.raises(TypeError):
        loss(task, answer, 1)


def test_the_metric_has_a_name() -> None:
    assert [metric_name(task) for task in ("regression", "binary", "multiclass")] == [
        "MAE",
        "log loss",
        "log loss",
    ]
