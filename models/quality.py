"""What a task asks of an estimator, and how wrong its answer was.

A multiclass estimator knows its classes by their names only: `str(label)`, as JSON does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from ..topics.messages import Answer, Features, LabelValue

Task: TypeAlias = Literal["regression", "binary", "multiclass"]

# Keeps a log loss finite; the value of river.metrics.LogLoss and CrossEntropy, so that they compare.
LEAST_PROBABILITY = 1e-15


def metric_name(task: Task) -> Literal["MAE", "log loss"]:
    """The mean of `loss`; less is better."""
    return "MAE" if task == "regression" else "log loss"


def losses(task: Task, answers: Sequence[Answer], labels: Sequence[LabelValue]) -> list[float]:
    """Of each pair: absolute error, or minus the log of the probability that was given to what came true.

    Finite and not negative if the answer is admitted by its bounds.
    Raises TypeError if an answer is not of the task's form.
    """
    pairs = zip(answers, labels, strict=True)
    if task == "multiclass":
        given = [_by_class(answer).get(str(label), 0.0) for answer, label in pairs]
    elif task == "regression":
        return [abs(_number(answer) - float(label)) for answer, label in pairs]
    else:
        given = [_number(answer) if label else 1.0 - _number(answer) for answer, label in pairs]
    log, least = math.log, LEAST_PROBABILITY
    return [0.0 if p >= 1.0 else -log(least if p < least else p) for p in given]


def loss(task: Task, answer: Answer, label: LabelValue) -> float:
    """As `losses`, of one pair."""
    return losses(task, [answer], [label])[0]


def residuals(answers: Sequence[Answer], labels: Sequence[LabelValue]) -> list[float | None]:
    """Label minus answer, truth as 1; None where neither has a sign: an answer by class."""
    return [
        None if isinstance(answer, dict) or isinstance(label, str) else float(label) - answer
        for answer, label in zip(answers, labels, strict=True)
    ]


def wrongs(task: Task, answers: Sequence[Answer], labels: Sequence[LabelValue]) -> list[bool | None]:
    """Whether another class was held for likelier than what came true; None of numbers, which have no classes.

    Bounded, unlike the log loss: a few sure and wrong answers do not hide how many are wrong.
    """
    if task == "regression":
        return [None] * len(answers)
    return [
        max(answer, key=answer.__getitem__) != str(label)
        if isinstance(answer, dict)
        else (answer > 0.5) is not bool(label)
        for answer, label in zip(answers, labels, strict=True)
    ]


def moved(before: Answer, after: Answer) -> float:
    """How far an answer moved: the difference of numbers, the greatest of a class's probabilities."""
    if isinstance(before, dict) and isinstance(after, dict):
        return max(abs(before.get(c, 0.0) - after.get(c, 0.0)) for c in {*before, *after})
    return abs(_number(before) - _number(after))


def _by_class(answer: Answer) -> dict[str, float]:
    if isinstance(answer, dict):
        return answer
    raise TypeError(f"a multiclass answer gives each class its probability; {answer!r} does not")


def _number(answer: Answer) -> float:
    if isinstance(answer, dict):
        raise TypeError(f"the answer to a regression or a binary question is one number, not {answer!r}")
    return answer


def predict(task: Task, estimator: Any, features: Features) -> Answer:
    """The estimator's answer; nan, or no classes, if it has learned too little to have one.

    The answer is the estimator's own: it may lie outside the bounds. Raises what the estimator raises.
    """
    if task == "regression":
        number = estimator.predict_one(features)
        return math.nan if number is None else float(number)
    probabilities = estimator.predict_proba_one(features)
    if task == "multiclass":
        return {str(name): float(probability) for name, probability in probabilities.items()}
    return float(probabilities.get(True, 0.0)) if probabilities else math.nan


def learn(task: Task, estimator: Any, features: Features, label: LabelValue) -> None:
    """Changes the estimator in place. Raises what the estimator raises, which may leave it half changed."""
    estimator.learn_one(features, _target(task, label))


def learn_many(task: Task, estimator: Any, rows: Sequence[Features], labels: Sequence[LabelValue]) -> None:
    """As `learn`, of a mini-batch in one call. Needs the extra `riverkeeper[minibatch]`."""
    import polars  # an extra: only pipelines that declare mini-batches need a data frame

    frame = polars.DataFrame(rows, infer_schema_length=None)
    estimator.learn_many(frame, polars.Series("label", [_target(task, label) for label in labels]))


def _target(task: Task, label: LabelValue) -> float | bool | str:
    if task == "regression":
        return float(label)
    return bool(label) if task == "binary" else str(label)
