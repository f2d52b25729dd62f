"""What other models would have answered over a stretch of the log, and how wrong they would have been. Pure.

A world is one candidate lived through the stretch: it answers each prediction's features when that prediction was
made, with what it had learned until then, and learns each example when its outcome came. So labels come as late
for it as they came in life (prequential evaluation with delayed labels; Grzenda, Gomes and Bifet 2020). It is
compared with what was served, pair by pair, over the same examples.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from ..models import quality
from ..models.fastpath import Raised, Scorer
from ..models.pipeline import Bounds
from ..models.quality import Task, loss
from ..models.version import interned, interned_label
from ..topics.messages import Answer, Example, Features, Prediction

MAX_LOSS = 1e100  # sums of what is greater would not stay finite, and JSON has no infinity
NORMAL_95 = 1.959964  # of the standard normal distribution, two-sided
MAX_HELD = 1_000_000  # answers that wait for their outcome, over all worlds; some 150 MB


@dataclass(frozen=True)
class Candidate:
    """A model to try: an estimator as it stands at the beginning of the stretch.

    `warmup` is how many examples it has to have learned before its answers count; `learns` False
    keeps it as it is.
    """

    name: str
    estimator: object
    features: tuple[str, ...]
    warmup: int = 0
    mini_batch: bool = False
    learns: bool = True


class Pairs:
    """Differences of two errors over the same examples."""

    def __init__(self) -> None:
        self.count, self.error, self.served = 0, 0.0, 0.0
        self._mean, self._squares = 0.0, 0.0

    def add(self, error: float, served: float) -> None:
        """Welford's update: sums of squares of large errors would cancel."""
        self.count += 1
        self.error += error
        self.served += served
        difference = error - served
        step = difference - self._mean
        self._mean += step / self.count
        self._squares += step * (difference - self._mean)

    @property
    def difference(self) -> float | None:
        """Mean of error minus served error; less than 0 is better than what was served."""
        return self._mean if self.count else None

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the difference, as if the examples were independent; None below two."""
        if self.count < 2:
            return None
        return NORMAL_95 * math.sqrt(self._squares / (self.count - 1) / self.count)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one candidate. Errors are means over the `compared` examples; None if there are none."""

    candidate: str
    answered: int
    out_of_bounds: int  # not finite among them
    raised: int
    without_features: int  # predictions whose record lacks a feature that the candidate asks for
    learned: int
    failed_to_learn: int
    compared: int
    error: float | None
    served_error: float | None
    difference: float | None
    interval: tuple[float, float] | None  # of the difference, 95 %
    us_per_answer: float | None


class World:
    """One candidate, lived through a stretch."""

    def __init__(self, candidate: Candidate, task: Task, bounds: Bounds, *, held: int = MAX_HELD) -> None:
        self._candidate = candidate
        self._task, self._bounds = task, bounds
        self._scorer: Scorer | None = None  # of the estimator as it stands; made anew once it has learned
        self._held = held
        self._waiting: OrderedDict[str, Answer] = OrderedDict()  # by id of the fact
        self._pairs = Pairs()
        self._answered = self._out = self._raised = self._lacking = 0
        self._learned = self._failed = 0
        self._seconds = 0.0

    def predicted(self, predictions: Sequence[Prediction]) -> None:
        """Predictions were made: the candidate answers for the same features."""
        own = self._candidate.features
        asked = [p for p in predictions if all(name in p.features for name in own)]
        self._lacking += len(predictions) - len(asked)
        if not asked:
            return
        scorer = self._scorer = self._scorer or Scorer(self._task, self._candidate.estimator)
        rows = [self._own(p.features) for p in asked]
        began = time.perf_counter()
        answers = scorer(rows)
        self._seconds += time.perf_counter() - began
        self._answered += len(asked)
        counts = self._learned >= self._candidate.warmup
        for prediction, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Raised):
                self._raised += 1
            elif not self._bounds.admits(answer):
                self._out += 1
            elif counts:
                self._waiting[prediction.id] = answer
        while len(self._waiting) > self._held:
            self._waiting.popitem(last=False)

    def came_true(self, examples: Sequence[Example], *, learn: bool = True) -> None:
        """Outcomes came: the candidate's answers are compared with those served, and it learns from them."""
        for example in examples:
            answer = self._waiting.pop(example.id, None)
            if answer is not None:
                own = loss(self._task, answer, example.label)
                served = loss(self._task, example.served, example.label)
                if own < MAX_LOSS and served < MAX_LOSS:
                    self._pairs.add(own, served)
        if learn and self._candidate.learns:
            self._learn([e for e in examples if all(n in e.features for n in self._candidate.features)])

    def _learn(self, examples: Sequence[Example]) -> None:
        if not examples:
            return
        rows = [interned(self._own(example.features)) for example in examples]
        labels = [interned_label(example.label) for example in examples]
        if self._candidate.mini_batch:
            self._contained(quality.learn_many, rows, labels)
        else:
            for row, label in zip(rows, labels, strict=True):
                self._contained(quality.learn, row, label)
        self._learned += len(rows)
        self._scorer = None

    def _contained(self, teach: Callable[..., None], features: object, label: object) -> None:
        """An estimator is the user's code, and Rust below it panics: its failure costs its own row only."""
        try:
            teach(self._task, self._candidate.estimator, features, label)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001  see above
            self._failed += 1

    def _own(self, features: Features) -> Features:
        own = self._candidate.features
        return features if len(own) == len(features) else {name: features[name] for name in own}

    def row(self) -> Row:
        pairs, count = self._pairs, self._pairs.count
        difference, half = pairs.difference, pairs.half_width
        return Row(
            candidate=self._candidate.name,
            answered=self._answered,
            out_of_bounds=self._out,
            raised=self._raised,
            without_features=self._lacking,
            learned=self._learned,
            failed_to_learn=self._failed,
            compared=count,
            error=pairs.error / count if count else None,
            served_error=pairs.served / count if count else None,
            difference=difference,
            interval=None if difference is None or half is None else (difference - half, difference + half),
            us_per_answer=self._seconds / self._answered * 1e6 if self._answered else None,
        )
