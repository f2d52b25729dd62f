"""Sketches of columns: histograms over bins that are fixed once and for all, so that they merge by addition.

Numbers fall into logarithmic bins, as in DDSketch (Masson, Rim and Lee 2019, "DDSketch: A Fast and
Fully-Mergeable Quantile Sketch with Relative-Error Guarantees"), of base sqrt(2): coarse, for what is asked is
whether a distribution moved, not where its quantiles lie. Texts and truth values are bins by themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..topics.messages import Moments, Scalar, Sketch

PER_OCTAVE = 2  # bins per doubling
LEAST, MOST = 2.0**-20, 2.0**40  # magnitudes told apart; 1e-6 to 1e12
MAX_BINS = 48  # of one sketch; the rarest beyond are one
MAX_TEXT = 40  # characters of a category's name; a name is a category only if it is short
OTHERS = "*"  # the bin of what has none of its own
MOST_SQUARES = 1e300  # JSON has no infinity
SMOOTHING = 0.5  # of a value, added to each bin: an empty one has no logarithm


def sketch(column: Sequence[Scalar]) -> Sketch:
    """Of a column's values, whatever their types."""
    numbers = [v for v in column if type(v) is float or type(v) is int]
    counts = Counter(_name(v) for v in column if isinstance(v, bool | str))
    bins = _numbers(numbers)
    finite = sum(bins.values())
    counts.update(bins)
    return Sketch(
        count=len(column), nulls=len(column) - finite - _texts(counts, bins), bins=_bounded(dict(counts))
    )


def _texts(counts: Mapping[str, int], bins: Mapping[str, int]) -> int:
    return sum(counts.values()) - sum(bins.values())


def _name(value: bool | str) -> str:
    return f"={str(value)[:MAX_TEXT]}"


def _numbers(numbers: Sequence[float | int]) -> dict[str, int]:
    """Bin → count: "0", or the sign and the number of the magnitude's bin. What is not finite has none."""
    try:
        values = np.asarray(numbers, dtype=np.float64)
    except OverflowError:  # an integer beyond a float
        values = np.asarray([v for v in numbers if abs(v) < 1e300], dtype=np.float64)
    values = values[np.isfinite(values)]
    size = np.abs(values)
    with np.errstate(divide="ignore"):
        power = np.floor(np.log2(np.clip(size, LEAST, MOST)) * PER_OCTAVE).astype(np.int64)
    codes = np.where(size < LEAST, 0, np.sign(values).astype(np.int64) * (power + 1_000))
    found, counts = np.unique(codes, return_counts=True)
    return {_code(int(c)): int(n) for c, n in zip(found, counts, strict=True)}


def _code(code: int) -> str:
    return "0" if code == 0 else f"{'-' if code < 0 else '+'}{abs(code) - 1_000}"


def _bounded(bins: dict[str, int], limit: int = MAX_BINS) -> dict[str, int]:
    if len(bins) <= limit:
        return bins
    kept = sorted((b for b in bins if b != OTHERS), key=lambda b: (-bins[b], b))[: limit - 1]
    return {**{b: bins[b] for b in kept}, OTHERS: sum(bins.values()) - sum(bins[b] for b in kept)}


def added(a: Sketch, b: Sketch) -> Sketch:
    bins = dict(a.bins)
    for name, n in b.bins.items():
        bins[name] = bins.get(name, 0) + n
    return Sketch(count=a.count + b.count, nulls=a.nulls + b.nulls, bins=_bounded(bins))


def psi(reference: Mapping[str, float], current: Mapping[str, float]) -> float:
    """The population stability index, sum of (q - p) * ln(q / p) over the bins: the symmetric form of the
    Kullback-Leibler divergence, as credit scoring uses it (Siddiqi 2006, "Credit Risk Scorecards").

    Bins are smoothed and those that are rare on both sides are taken together: an empty bin of a small
    sample would count for more than a shift. 0 where either side is empty.
    """
    n, m = sum(reference.values()), sum(current.values())
    if not n or not m:
        return 0.0
    own = [b for b in {*reference, *current} if reference.get(b, 0) / n + current.get(b, 0) / m >= 0.04]
    pairs = [(reference.get(b, 0.0), current.get(b, 0.0)) for b in own]
    pairs.append((n - sum(p for p, _ in pairs), m - sum(q for _, q in pairs)))
    extra = SMOOTHING * len(pairs)
    shares = (((p + SMOOTHING) / (n + extra), (q + SMOOTHING) / (m + extra)) for p, q in pairs)
    return sum((q - p) * math.log(q / p) for p, q in shares)


def moments(numbers: Sequence[float]) -> Moments:
    """Of finite numbers; those that are not are left out."""
    values = np.asarray(numbers, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Moments()
    with np.errstate(over="ignore"):
        squares = float(values @ values)
    return Moments(
        count=len(values),
        total=float(values.sum()),
        squares=min(squares, MOST_SQUARES),
        low=float(values.min()),
        high=float(values.max()),
    )


def merged(a: Moments, b: Moments) -> Moments:
    if not a.count or not b.count:
        return a if a.count else b
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    return Moments(
        count=a.count + b.count,
        total=a.total + b.total,
        squares=min(a.squares + b.squares, MOST_SQUARES),
        low=min(a.low, b.low),
        high=max(a.high, b.high),
    )
