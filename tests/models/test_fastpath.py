"""The fast path answers as River does, or leaves the row to River."""

import math
import numbers
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from river import compose, dummy, linear_model, multiclass, optim, preprocessing, stats, tree

from riverkeeper.models import fastpath
from riverkeeper.models.fastpath import MIN_ROWS, Raised, Scorer, compile
from riverkeeper.models.quality import Task, predict
from riverkeeper.topics.messages import Answer, Features

PARegressor: Any = linear_model.PARegressor  # River types it incompletely
NUMBERS = ["n0", "n1", "n2"]
TEXTS = ["c0", "c1", "c0_a"]  # the last one's names may be those of the first


def _generic(task: Task, estimator: Any, row: Features) -> Answer | Raised:
    try:
        return predict(task, estimator, row)
    except Exception as error:  # noqa: BLE001 compared with what the scorer caught
        return Raised(error)


def agree(task: Task, estimator: Any, rows: list[Features]) -> None:
    """Within 1e-9 of the largest term; the same errors; the same non-numbers."""
    compared(task, estimator, rows, compile(task, estimator)(rows))
    # Asked for the names that all rows hold, as score does: by columns where that is possible.
    common = tuple(name for name in rows[0] if all(name in row for row in rows))
    asked: list[Features] = [{name: row[name] for name in common} for row in rows]
    compared(task, estimator, asked, compile(task, estimator)(rows, common))


def compared(task: Task, estimator: Any, rows: list[Features], answers: list[Answer | Raised]) -> None:
    assert len(answers) == len(rows)
    for row, answer in zip(rows, answers, strict=True):
        expected = _generic(task, estimator, row)
        if isinstance(expected, Raised) or isinstance(answer, Raised):
            assert isinstance(expected, Raised) and isinstance(answer, Raised), row
            assert type(answer.error) is type(expected.error)
            # Which of two missing names a Select meets first hangs on the order of its set: a copy may differ.
            if not isinstance(expected.error, KeyError):
                assert repr(answer.error) == repr(expected.error)
        elif isinstance(expected, dict) or isinstance(answer, dict):
            assert answer == expected
        elif math.isnan(expected):
            assert math.isnan(answer)
        else:
            assert math.isclose(answer, expected, rel_tol=1e-9, abs_tol=1e-9), (row, answer, expected)


def linear(final: Any = None) -> Any:
    number = compose.SelectType(int, float) | preprocessing.StandardScaler()
    category = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return (number + category) | (final or linear_model.LinearRegression())


def row(r: random.Random) -> Features:
    return {
        "n0": r.gauss(1e6, 3.0),
        "n1": r.gauss(0.0, 1e-3),
        "n2": 7,
        "c0": r.choice("abcdef"),
        "c1": r.choice("xyz"),
    }


def taught(
    model: Any, count: int = 300, seed: int = 1, made: Callable[[random.Random], Features] = row
) -> Any:
    r = random.Random(seed)
    for _ in range(count):
        x = made(r)
        number = sum(float(v) for v in x.values() if isinstance(v, (int, float)))
        model.learn_one(
            x, number % 5 > 2 if isinstance(model[-1], linear_model.LogisticRegression) else number % 5
        )
    return model


def test_a_typical_pipeline_is_fast_and_right() -> None:
    r = random.Random(5)
    rows = [row(r) for _ in range(200)]
    agree("regression", taught(linear()), rows)
    assert compile("regression", taught(linear())).fast


# Random pipelines, taught and asked with random rows.


def steps(r: random.Random) -> Any:
    """A branch that begins with a choice of features."""
    chosen = r.choice(
        [
            compose.SelectType(numbers.Number),
            compose.SelectType(float),
            compose.SelectType(bool, int),
            compose.Select(*r.sample(NUMBERS, 2)),
            compose.Discard(*TEXTS),
        ]
    )
    scaler = r.choice(
        [
            preprocessing.StandardScaler(),
            preprocessing.StandardScaler(with_std=False),
            preprocessing.MinMaxScaler(),
            preprocessing.MaxAbsScaler(),
            preprocessing.StandardScaler() | preprocessing.MinMaxScaler(),
        ]
    )
    return chosen | scaler


def categories(r: random.Random) -> Any:
    chosen = r.choice(
        [
            compose.SelectType(str),
            compose.SelectType(str, type(None)),
            compose.SelectType(str, int, bool),
            compose.Select("c0", "c1"),
            compose.Select("c0"),
            compose.Discard(*NUMBERS),
        ]
    )
    encoder = r.choice(
        [
            preprocessing.OneHotEncoder(),
            preprocessing.OneHotEncoder(drop_zeros=True),
            preprocessing.OneHotEncoder(drop_first=True),
            preprocessing.OneHotEncoder(),
        ]
    )
    scaled = r.choice([None, None, preprocessing.StandardScaler(), preprocessing.MaxAbsScaler()])
    return chosen | encoder | scaled if scaled else chosen | encoder


def pipelines(r: random.Random) -> Any:
    final = r.choice(
        [
            linear_model.LinearRegression(optimizer=optim.SGD(0.003)),
            linear_model.LinearRegression(l2=0.1, intercept_lr=0.0),
            linear_model.LinearRegression(initializer=optim.initializers.Normal(seed=1)),
            linear_model.LinearRegression(loss=optim.losses.Huber(), optimizer=optim.Adam()),
            linear_model.LinearRegression(loss=optim.losses.Poisson(), optimizer=optim.SGD(1e-6)),
            PARegressor(C=0.01),
            linear_model.LogisticRegression(),
        ]
    )
    branches: list[Callable[[], Any]] = [
        lambda: steps(r),
        lambda: categories(r),
        lambda: steps(r) + categories(r),
        lambda: steps(r) + categories(r) + steps(r),
        lambda: categories(r) + categories(r),
        lambda: (steps(r) + categories(r)) | preprocessing.StandardScaler(),
        lambda: (compose.SelectType(float) + categories(r)) | preprocessing.StandardScaler(),
    ]
    return r.choice(branches)() | final


def strange_row(r: random.Random) -> Features:
    """Missing names, other types, other orders, new categories, None, huge and not finite numbers."""
    values: Features = {
        "n0": r.choice([r.gauss(1e3, 2), r.gauss(0, 1), r.randint(-5, 5), True, 0.0, -0.0, 2**60 + 1]),
        "n1": r.gauss(-3, 1),
        "n2": r.choice([7, 7, 7, False, r.random()]),
        "c0": r.choice(["a", "b", "a_b", "c", f"new{r.randrange(100)}"]),
        "c1": r.choice(["x", "y", "", "é", "None", "1"]),
        "c0_a": r.choice(["b", "c"]),
    }
    if r.random() < 0.4:
        odd = r.choice([*values])
        values[odd] = r.choice([None, 1, True, 1.5, "text", math.nan, math.inf, 10**400])
    names = [name for name in values if r.random() < r.choice([0.9, 1.0, 1.0])]
    if r.random() < 0.2:
        r.shuffle(names)
    chosen: Features = {name: values[name] for name in names}
    if r.random() < 0.1:
        chosen["extra"] = 1.5 if r.random() < 0.5 else "x"
    return chosen


@settings(max_examples=400)
@given(st.integers(0, 2**32))
@example(0)
def test_any_pipeline_answers_any_row_as_river_does(seed: int) -> None:
    r = random.Random(seed)
    model: Any = pipelines(r)
    task: Task = "binary" if isinstance(model[-1], linear_model.LogisticRegression) else "regression"
    for _ in range(r.choice([0, 1, 60])):
        x = {k: v for k, v in strange_row(r).items() if v is not None and v == v and abs(_size(v)) < 1e6}
        try:
            model.learn_one(x, r.random() < 0.5 if task == "binary" else r.gauss(5, 2))
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
            continue  # what River does not learn; it may stay half changed, as in a learner
    agree(task, model, [strange_row(r) for _ in range(12)] + [strange_row(r)] * MIN_ROWS)


def _size(value: Any) -> float:
    return 0 if isinstance(value, str) else value


def test_the_random_rows_do_reach_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above would hold for a fast path that is never taken."""
    taken = []
    plain = fastpath._Terms.sum

    def counted(
        terms: fastpath._Terms, columns: Mapping[str, Sequence[object]], count: int
    ) -> fastpath.Vector:
        taken.append(count)
        return plain(terms, columns, count)

    monkeypatch.setattr(fastpath._Terms, "sum", counted)
    r = random.Random(1)
    for _ in range(100):
        model = pipelines(r)
        task: Task = "binary" if isinstance(model[-1], linear_model.LogisticRegression) else "regression"
        row = strange_row(r)
        Scorer(task, model)([row] * MIN_ROWS)
        Scorer(task, model)([row] * MIN_ROWS, tuple(row))
    assert len(taken) > 50


# The traps, one by one.


def test_scaled_categories_count_where_they_are_absent() -> None:
    """After an encoder a scaler sees a 0 for each category but one, and moves it."""
    model = compose.Select("c0", "c1") | preprocessing.OneHotEncoder()
    model = model | preprocessing.StandardScaler() | linear_model.LinearRegression()
    taught(model)
    r = random.Random(2)
    agree("regression", model, [row(r) for _ in range(50)] + [row(r) | {"c0": "unseen"} for _ in range(5)])
    assert compile("regression", model).fast


def test_names_written_twice_are_left_to_river() -> None:
    encoders = compose.Select("c0") | preprocessing.OneHotEncoder()
    encoders = encoders + (compose.Select("c0_a") | preprocessing.OneHotEncoder())
    model: Any = encoders | linear_model.LinearRegression()
    rows: list[Features] = [{"c0": a, "c0_a": b} for a in ("a", "a_b", "c") for b in ("b", "c")]
    for i, x in enumerate(rows * 5):
        model.learn_one(x, float(i % 6))
    agree("regression", model, rows * 4)


def test_true_one_and_1_0_are_not_one_category() -> None:
    model: Any = preprocessing.OneHotEncoder() | linear_model.LinearRegression()
    rows: list[Features] = [{"c": value} for value in (True, 1, 1.0, "1", "True", None, 0.0, -0.0)]
    for i, x in enumerate(rows * 9):
        model.learn_one(x, float(i % 8))
    agree("regression", model, rows * 4)


def test_digits_are_kept_far_from_zero() -> None:
    r = random.Random(3)
    model = taught(linear(), made=lambda r: row(r) | {"n0": 1e12 + r.random()})
    agree("regression", model, [row(r) | {"n0": 1e12 + r.random()} for _ in range(50)])


def test_one_row_that_raises_costs_its_own_answer() -> None:
    r = random.Random(4)
    model = compose.Select("n0", "n1") | preprocessing.StandardScaler() | linear_model.LinearRegression()
    taught(model)
    rows = [row(r) for _ in range(50)]
    rows[7] = {"n0": 1.0}
    rows[9] = rows[9] | {"n1": None}
    answers = compile("regression", model)(rows)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Raised)] == [7, 9]
    assert isinstance(answers[7], Raised) and isinstance(answers[7].error, KeyError)
    assert isinstance(answers[9], Raised) and isinstance(answers[9].error, TypeError)


def test_a_panic_in_rust_costs_its_row_and_an_interrupt_is_none_of_ours() -> None:
    class Panic(BaseException):
        """As pyo3's PanicException, which is no Exception either."""

    class Sick(dummy.StatisticRegressor):
        def predict_one(self, x: Any) -> float:
            raise x["error"]

    def asked(error: BaseException) -> list[Any]:
        row: Any = {"error": error}
        return Scorer("regression", Sick(stats.Mean()))([row])

    assert isinstance(asked(Panic())[0], Raised)
    with pytest.raises(KeyboardInterrupt):
        asked(KeyboardInterrupt())


@pytest.mark.parametrize("model", [linear(), tree.HoeffdingTreeRegressor()], ids=["fast", "generic"])
def test_a_scorer_is_a_snapshot(model: Any) -> None:
    r = random.Random(6)
    rows: list[Features] = [{"n0": r.random(), "n1": r.random()} for _ in range(20)]
    for x in rows:
        model.learn_one(x, 1.0)
    scorer = compile("regression", model)
    before = scorer(rows[:5])
    for x in rows:
        model.learn_one(x, 1000.0)
    assert scorer(rows[:5]) == before != compile("regression", model)(rows[:5])


def test_asking_leaves_no_trace() -> None:
    model = taught(linear())
    scorer = Scorer("regression", model)
    scaler = model["TransformerUnion"][0]["StandardScaler"]
    known = set(scaler.means)
    for i in range(50):
        scorer([row(random.Random(i)) | {f"unseen{i}": 1.0}] * MIN_ROWS)
    assert set(scaler.means) == known


def test_the_shapes_held_are_bounded() -> None:
    r = random.Random(8)
    scorer = compile("regression", taught(linear()))
    rows = [row(r) | {f"extra{i}": 1.0} for i in range(2 * fastpath.MAX_SHAPES) for _ in range(MIN_ROWS)]
    assert all(isinstance(answer, float) for answer in scorer(rows))
    assert len(scorer._terms) == fastpath.MAX_SHAPES


def test_new_categories_are_not_held() -> None:
    scorer = compile("regression", taught(linear()))
    r = random.Random(9)
    scorer([row(r) | {"c0": f"new{i}"} for i in range(1000)])
    (terms,) = scorer._terms.values()
    assert terms is not None
    assert all(len(lookup) <= 6 for _, lookup in terms.lookups)


@pytest.mark.parametrize(
    "estimator",
    [
        tree.HoeffdingTreeRegressor(),
        dummy.StatisticRegressor(stats.Mean()),
        compose.FuncTransformer(lambda x: x) | linear_model.LinearRegression(),
        preprocessing.StandardScaler(window_size=5) | linear_model.LinearRegression(),
        preprocessing.TargetStandardScaler(linear_model.LinearRegression()),
        type("Own", (linear_model.LinearRegression,), {})(),
    ],
    ids=lambda estimator: str(estimator)[:40],
)
def test_what_is_not_known_exactly_is_asked_itself(estimator: Any) -> None:
    scorer = Scorer("regression", estimator)
    assert not scorer.fast
    assert len(scorer([{"a": 1.0}] * 5)) == 5


def test_classes_get_their_probabilities_by_name() -> None:
    model: Any = preprocessing.StandardScaler() | multiclass.OneVsRestClassifier(
        linear_model.LogisticRegression()
    )
    rows: list[Features] = [{"a": float(i % 3), "b": float(i % 5)} for i in range(60)]
    for i, x in enumerate(rows):
        model.learn_one(x, "red green blue".split()[i % 3])
    agree("multiclass", model, rows)
    (answer,) = compile("multiclass", model)(rows[:1])
    assert isinstance(answer, dict) and set(answer) == {"red", "green", "blue"}


def test_a_classifier_that_knows_nothing_and_extremes_of_the_sigmoid() -> None:
    agree("binary", linear(linear_model.LogisticRegression()), [row(random.Random(1))] * 5)
    model: Any = linear_model.LogisticRegression()
    model.learn_one({"a": 1.0}, True)
    agree("binary", model, [{"a": value} for value in (1e5, -1e5, 6000.0, -6000.0, 0.0, math.inf, math.nan)])


def test_no_rows_have_no_answers() -> None:
    assert compile("regression", linear())([]) == []
