"""A version's answers to a whole batch: by numpy where the estimator is one we know, else one by one.

Known: pipelines of `Select`, `SelectType`, `Discard`, unions, `OneHotEncoder`, `StandardScaler`,
`MinMaxScaler` and `MaxAbsScaler` that end in `LinearRegression`, `LogisticRegression` or
`PARegressor`, exactly these classes in the settings handled below. Such a pipeline is a sum of terms,
one per feature: a number's is `((x - centre) * scale + shift) * weight`, a category's is looked up by
its value. Which terms a row has depends on its names and types only, so they are worked out once for
each such shape and then evaluated column by column.

Whatever is not known (another class, a feature that River would raise at, two steps that may write
the same name) goes to the estimator's own `predict_one`, per estimator, per shape or per row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import compose, linear_model, optim, preprocessing

from ..topics.messages import Answer, Features, Scalar
from .quality import Task, predict

# shapes whose terms are held; a feature that is sometimes None doubles them. About 1 MB each for a
# pipeline with 10 000 categories; shapes beyond go one by one.
MAX_SHAPES = 64
# rows of one shape; a batch costs numpy about 30 µs before its first row, a row River about 10 µs.
MIN_ROWS = 4

Vector = NDArray[np.float64]
Shape = tuple[tuple[str, type], ...]


class Raised(NamedTuple):
    """The estimator raised for this row; the others have their answers."""

    error: BaseException


def compile(task: Task, estimator: object) -> Scorer:
    """A scorer of the estimator as it stands: what is learned later does not change its answers."""
    return Scorer(task, copy.deepcopy(estimator))


class Scorer:
    """Answers for rows of features. Owns its estimator: nobody else may learn with it."""

    def __init__(self, task: Task, estimator: object) -> None:
        self._task = task
        self._estimator = estimator
        self._linear = None if task == "multiclass" else _linear(task, estimator)
        self._terms: dict[Shape, _Terms | None] = {}

    @property
    def fast(self) -> bool:
        """Whether the estimator is one that is evaluated by numpy (single rows may still not be)."""
        return self._linear is not None

    def __call__(
        self, rows: Sequence[Features], names: tuple[str, ...] | None = None
    ) -> list[Answer | Raised]:
        """One answer per row, in order: the estimator's, not checked against any bounds.

        It is asked for `names`, which every row holds; None: for all that a row holds.
        Within 1e-9 of `quality.predict`, relative to the largest term. Raises nothing: an error of
        the estimator is its row's `Raised`.
        """
        if self._linear is not None and len(rows) >= MIN_ROWS:
            alike = names if names is not None else _names(rows)
            answers = self._at_once(rows, alike) if alike is not None else None
            if answers is not None:
                return answers
        if names is not None:
            rows = [{name: row[name] for name in names} for row in rows]
        if self._linear is None:
            return [self._one(row) for row in rows]
        return self._by_shape(rows)

    def _at_once(self, rows: Sequence[Features], names: tuple[str, ...]) -> list[Answer | Raised] | None:
        """The answers if all rows have one shape, and numpy can give them all; else None."""
        columns = _columns(rows, names)
        kinds = [set(map(type, column)) for column in columns]
        if any(len(each) != 1 for each in kinds):
            return None
        terms = self._known(tuple((name, each.pop()) for name, each in zip(names, kinds, strict=True)))
        if terms is None:
            return None
        try:
            with np.errstate(all="ignore"):
                sums = terms.sum(dict(zip(names, columns, strict=True)), len(rows))
        except OverflowError:
            return None
        return None if np.isnan(sums).any() else sums.tolist()

    def _by_shape(self, rows: Sequence[Features]) -> list[Answer | Raised]:
        answers: list[Answer | Raised] = [math.nan] * len(rows)
        for shape, where in _by_shape(rows).items():
            for i, answer in zip(where, self._alike(shape, [rows[i] for i in where]), strict=True):
                answers[i] = answer
        return answers

    def _alike(self, shape: Shape, rows: list[Features]) -> Iterable[Answer | Raised]:
        terms = self._known(shape) if len(rows) >= MIN_ROWS else None
        if terms is None:
            return map(self._one, rows)
        try:
            with np.errstate(all="ignore"):  # what is not finite is looked at by whoever serves it
                names = tuple(name for name, _ in shape)
                sums = terms.sum(dict(zip(names, _columns(rows, names), strict=True)), len(rows)).tolist()
        except OverflowError:  # an integer beyond a float: what then is River's affair
            return map(self._one, rows)
        return (self._one(row) if math.isnan(s) else s for s, row in zip(sums, rows, strict=True))

    def _known(self, shape: Shape) -> _Terms | None:
        if shape not in self._terms:
            if len(self._terms) >= MAX_SHAPES:
                return None
            self._terms[shape] = _terms(self._linear, shape)
        return self._terms[shape]

    def _one(self, row: Features) -> Answer | Raised:
        try:
            return predict(self._task, self._estimator, row)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 a panic in River's Rust is no Exception; it costs its row
            return Raised(error)


def _names(rows: Sequence[Features]) -> tuple[str, ...] | None:
    """The names that every row has, in the same order, and no other; None if rows differ."""
    names = tuple(rows[0])
    return names if all(tuple(row) == names for row in rows) else None


def _columns(rows: Sequence[Features], names: tuple[str, ...]) -> list[Sequence[Scalar]]:
    """The values of each name, in the order of the rows, of which there is at least one."""
    if len(names) == 1:
        return [[row[names[0]] for row in rows]]
    return list(zip(*map(itemgetter(*names), rows), strict=True)) if names else []


def _by_shape(rows: Sequence[Features]) -> dict[Shape, list[int]]:
    """The places of the rows that have the same names, in the same order, with values of the same types."""
    found: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault((tuple(row), tuple(map(type, row.values()))), []).append(i)
    return {tuple(zip(names, kinds, strict=True)): where for (names, kinds), where in found.items()}


# What a pipeline is.


class _Unknown(Exception):
    """The fast path does not know how River would answer; the estimator is to be asked."""


class _Linear(NamedTuple):
    """Steps, then weights: `link(intercept + sum of weight * value)`."""

    steps: tuple[object, ...]
    weights: dict[str, float]
    intercept: float
    link: Callable[[Vector], Vector]


def _linear(task: Task, estimator: object) -> _Linear | None:
    steps = tuple(estimator.steps.values()) if type(estimator) is compose.Pipeline else (estimator,)
    *before, last = steps
    known = type(last) in _LINKS and _LINKS[type(last)] == task and all(map(_recognised, before))
    if not known:
        return None
    mean_func = type(last.loss).mean_func
    if type(last) is linear_model.LinearRegression and mean_func is not optim.losses.RegressionLoss.mean_func:
        return None
    if type(last) is linear_model.LogisticRegression and mean_func is not optim.losses.BinaryLoss.mean_func:
        return None
    weights = dict(last.weights)
    if not all(map(math.isfinite, (*weights.values(), last.intercept))):
        return None
    return _Linear(tuple(before), weights, float(last.intercept), _sigmoid if task == "binary" else _same)


_LINKS: dict[type, Task] = {
    linear_model.LinearRegression: "regression",
    linear_model.PARegressor: "regression",
    linear_model.LogisticRegression: "binary",
}
_SCALERS = (preprocessing.StandardScaler, preprocessing.MinMaxScaler, preprocessing.MaxAbsScaler)


def _recognised(step: Any) -> bool:
    if type(step) is compose.Pipeline:
        return all(map(_recognised, step.steps.values()))
    if type(step) is compose.TransformerUnion:
        return all(map(_recognised, step.transformers.values()))
    if type(step) is preprocessing.OneHotEncoder:
        return step.categories is None and not step.drop_first
    if type(step) in _SCALERS:
        return step.window_size is None
    return type(step) in (compose.Select, compose.SelectType, compose.Discard)


def _same(sums: Vector) -> Vector:
    return sums


def _sigmoid(sums: Vector) -> Vector:
    """As river.utils.math.sigmoid: exactly 0 and 1 beyond 30 either way."""
    probabilities = 1.0 / (1.0 + np.exp(-sums))
    probabilities[sums < -30] = 0.0
    probabilities[sums > 30] = 1.0
    return probabilities


# What the steps make of one shape of rows.


class _Affine(NamedTuple):
    """value -> (value - centre) * scale + shift, centred first, as River does, to keep the digits."""

    centre: float = 0.0
    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, value: float) -> float:
        return (value - self.centre) * self.scale + self.shift if self.scale else self.shift

    def then(self, centre: float, scale: float) -> _Affine:
        """This, then (value - centre) * scale; a scale of 0 makes everything 0."""
        if not (math.isfinite(centre) and math.isfinite(scale)):
            raise _Unknown
        if not self.shift and self.scale and scale:
            return _Affine(self.centre + centre / self.scale, self.scale * scale, 0.0)
        return _Affine(self.centre, self.scale * scale, (self.shift - centre) * scale)


@dataclass(frozen=True)
class _Column:
    """A feature that is still one value under one name; `affine` is None if it is as it came."""

    feature: str
    kind: type
    affine: _Affine | None = None


@dataclass(frozen=True)
class _Encoded:
    """What one encoder wrote: `zeros` for all it has seen, and 1 for each of `features` as it stands."""

    features: tuple[_Column, ...]
    zeros: frozenset[str]
    scalers: tuple[object, ...] = ()

    def value(self, name: str, value: float) -> float:
        affine = _Affine()
        for scaler in self.scalers:
            affine = affine.then(*_scaling(scaler, name))
        return affine(value)


@dataclass(frozen=True)
class _Values:
    """The row between two steps."""

    columns: dict[str, _Column]
    encoded: tuple[_Encoded, ...] = ()


_TEXTABLE = (str, bool, int, type(None))  # equal values have one text; floats do not (0.0, -0.0)
_NUMERIC = (bool, int, float)


def _apply(step: Any, values: _Values) -> _Values:
    if type(step) is compose.Pipeline:
        for inner in step.steps.values():
            values = _apply(inner, values)
        return values
    if type(step) is compose.TransformerUnion:
        return _union([_apply(part, values) for part in step.transformers.values()])
    if type(step) is preprocessing.OneHotEncoder:
        return _encode(step, values)
    if type(step) in _SCALERS:
        return _scale(step, values)
    return _Values(_chosen(step, values))


def _chosen(step: Any, values: _Values) -> dict[str, _Column]:
    columns = values.columns
    if values.encoded:
        raise _Unknown
    if type(step) is compose.Discard:
        return {name: column for name, column in columns.items() if name not in step.keys}
    if type(step) is compose.SelectType:
        if any(column.affine is not None for column in columns.values()):
            raise _Unknown
        return {name: column for name, column in columns.items() if issubclass(column.kind, step.types)}
    if not step.keys <= columns.keys():
        raise _Unknown  # River raises KeyError
    return {name: columns[name] for name in step.keys}


def _encode(step: Any, values: _Values) -> _Values:
    columns = tuple(values.columns.values())
    if values.encoded or any(c.affine is not None or c.kind not in _TEXTABLE for c in columns):
        raise _Unknown
    zeros = frozenset() if step.drop_zeros else frozenset(step._zero_dict)
    return _Values({}, (_Encoded(columns, zeros),))


def _scale(step: Any, values: _Values) -> _Values:
    if any(column.kind not in _NUMERIC for column in values.columns.values()):
        raise _Unknown
    columns = {
        name: replace(column, affine=(column.affine or _Affine()).then(*_scaling(step, name)))
        for name, column in values.columns.items()
    }
    encoded = tuple(replace(e, scalers=(*e.scalers, step)) for e in values.encoded)
    return _Values(columns, encoded)


def _scaling(step: Any, name: str) -> tuple[float, float]:
    """Centre and scale of a name, read without leaving a trace in River's default dictionaries."""
    if type(step) is preprocessing.StandardScaler:
        mean = step.means.get(name, 0.0)
        if not step.with_std:
            return mean, 1.0
        variance = step.vars.get(name, 0.0)
        if variance < 0.0:
            raise _Unknown
        return (mean, 1.0 / variance**0.5) if variance else (0.0, 0.0)
    if type(step) is preprocessing.MinMaxScaler:
        if name not in step.min or name not in step.max:
            raise _Unknown
        low, width = step.min[name].get(), step.max[name].get() - step.min[name].get()
        return (low, 1.0 / width) if width else (0.0, 0.0)
    largest = step.abs_max[name].get() if name in step.abs_max else 0.0
    return 0.0, 1.0 / largest if largest else 0.0


def _union(parts: Sequence[_Values]) -> _Values:
    """All parts side by side, if no name can come from two of them (River takes the first)."""
    columns: dict[str, _Column] = {}
    encoded = tuple(e for part in parts for e in part.encoded)
    for part in parts:
        if columns.keys() & part.columns.keys():
            raise _Unknown
        columns |= part.columns
    if _clash(columns, encoded):
        raise _Unknown
    return _Values(columns, encoded)


def _clash(columns: Iterable[str], encoded: Sequence[_Encoded]) -> bool:
    """Whether two steps surely write the same name. Whether a row's category does, `_Lookup` tells."""
    features = [column.feature for e in encoded for column in e.features]
    names = [*columns, *(name for e in encoded for name in e.zeros)]
    return len(set(features)) < len(features) or len(set(names)) < len(names)


# What the weights make of it.


@dataclass(frozen=True)
class _Terms:
    """The sum for rows of one shape."""

    constant: float
    names: tuple[str, ...]
    centres: Vector
    factors: Vector
    lookups: tuple[tuple[str, _Lookup], ...]
    link: Callable[[Vector], Vector]

    def sum(self, columns: Mapping[str, Sequence[Any]], count: int) -> Vector:
        total = np.full(count, self.constant)
        for i, name in enumerate(self.names):
            # As floats first: River subtracts a mean, a float, from whatever number this is.
            column = np.array(columns[name], dtype=np.float64)
            total += (column - self.centres[i]) * self.factors[i]
        for name, lookup in self.lookups:
            total += np.array([lookup[value] for value in columns[name]])
        return self.link(total)


class _Lookup(dict[Scalar, float]):
    """A category's term by its value. Fills itself; holds no more than the names that have weights.

    nan for a value whose name, `<feature>_<value>`, may be one that another step writes: `a` with the
    value "b_c" beside a feature `a_b`.
    """

    def __init__(self, linear: _Linear, values: _Values, encoded: _Encoded, feature: str) -> None:
        super().__init__()
        self._weights = linear.weights
        self._encoded = encoded
        self._feature = feature
        others = [e for e in values.encoded if e is not encoded]
        self._taken = values.columns.keys() | {name for e in others for name in e.zeros}
        siblings = (column.feature for e in values.encoded for column in e.features)
        self._prefixes = tuple(f"{other}_" for other in siblings if other.startswith(f"{feature}_"))

    def __missing__(self, value: Scalar) -> float:
        name = f"{self._feature}_{value}"
        if name in self._taken or name.startswith(self._prefixes):
            return math.nan
        if name not in self._weights:
            return 0.0
        term = self._encoded.value(name, 1.0)
        if name in self._encoded.zeros:  # whose term as a zero is in the constant
            term -= self._encoded.value(name, 0.0)
        self[value] = term * self._weights[name]
        return self[value]


def _terms(linear: _Linear | None, shape: Shape) -> _Terms | None:
    try:
        return None if linear is None else _weighed(linear, shape)
    except _Unknown:
        return None


def _weighed(linear: _Linear, shape: Shape) -> _Terms:
    values = _Values({name: _Column(name, kind) for name, kind in shape})
    for step in linear.steps:
        values = _apply(step, values)
    if _clash(values.columns, values.encoded) or any(
        column.kind not in _NUMERIC for column in values.columns.values()
    ):
        raise _Unknown
    constant = linear.intercept + sum(_constants(linear, values))
    columns = [
        (column.feature, column.affine or _Affine(), linear.weights.get(name, 0.0))
        for name, column in values.columns.items()
    ]
    # With a factor of 0, for a row at which River may raise wherever it meets the number: inf and nan
    # make the sum nan, an integer beyond a float does not convert.
    met = {feature for feature, _, _ in columns}
    columns += [(name, _Affine(), 0.0) for name, kind in shape if kind in (int, float) and name not in met]
    return _Terms(
        constant,
        tuple(feature for feature, _, _ in columns),
        np.array([affine.centre for _, affine, _ in columns]),
        np.array([affine.scale * weight for _, affine, weight in columns]),
        tuple(_lookups(linear, values)),
        linear.link,
    )


def _constants(linear: _Linear, values: _Values) -> Iterator[float]:
    for name, column in values.columns.items():
        if column.affine is not None and name in linear.weights:
            yield column.affine.shift * linear.weights[name]
    for encoded in values.encoded:
        if encoded.scalers:
            for name in sorted(encoded.zeros & linear.weights.keys()):
                yield encoded.value(name, 0.0) * linear.weights[name]


def _lookups(linear: _Linear, values: _Values) -> Iterator[tuple[str, _Lookup]]:
    for encoded in values.encoded:
        for column in encoded.features:
            yield column.feature, _Lookup(linear, values, encoded, column.feature)
