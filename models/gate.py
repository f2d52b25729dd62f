"""The gate before a version serves: is it ours, is it whole, does it fit, and does it behave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..topics.messages import Answer, Features, Manifest
from .fastpath import Raised, Scorer
from .quality import Task
from .unpickle import AllowList, UntrustedVersion
from .version import BadVersion, check, verify

# relative; the fast path agrees within 1e-9, another machine's libm within 1e-12 or so, while any
# wrong weight shows at once. The absolute part is for answers about zero.
PROBE_TOLERANCE = 1e-6
PROBE_ABSOLUTE = 1e-9
# share of recent facts; bounds exist for the odd fact, so one in fifty may fall outside and get the
# fallback. Of fewer than 50 facts one may: a single outlier says nothing about a version.
MAX_SHARE = 0.02
# microseconds per fact; at 2 ms one process answers 500 facts/s, the least a pipeline is worth serving at.
LIMIT_US = 2_000.0
# facts; timing fewer measures the clock.
TIMED_FACTS = 32


class Code(StrEnum):
    """Why a version was refused. Stable: it stands in vitals and on dashboards."""

    BAD_SIGNATURE = "bad_signature"
    BAD_BYTES = "bad_bytes"
    WRONG_FINGERPRINT = "wrong_fingerprint"
    DOES_NOT_OPEN = "does_not_open"
    RAISES = "raises"
    NOT_FINITE = "not_finite"
    PROBE_DIFFERS = "probe_differs"
    OUT_OF_BOUNDS = "out_of_bounds"
    TOO_SLOW = "too_slow"


class Refused(Exception):
    """The version does not serve."""

    def __init__(self, code: Code, manifest: Manifest, why: str) -> None:
        super().__init__(f"{manifest.model} v{manifest.version} refused, {code}: {why}")
        self.code = code
        self.why = why


@dataclass(frozen=True)
class Admitted:
    """A version that may serve, and its answers."""

    scorer: Scorer
    manifest: Manifest
    us_per_fact: float | None  # as measured; None without facts to measure on


def examine(
    manifest: Manifest,
    blob: bytes,
    *,
    key: bytes,
    fingerprint: str,
    allow: AllowList,
    task: Task,
    bounds: tuple[float, float] | None,
    recent: Sequence[Features],
    clock: Callable[[], float],
    limit_us: float = LIMIT_US,
) -> Admitted:
    """The version, opened and tried; or `Refused`, at the first check it fails. The bytes are opened
    only once signature, hash and fingerprint are right.

    `fingerprint` is the serving code's. `bounds` (ends included) concern answers that are one
    number; None leaves them free. `recent` are features of facts lately served: a few hundred. `clock` gives
    seconds and may start anywhere. Blocks for as long as opening takes, up to 0.7 s per MB: call it in a
    thread.
    """
    _belongs(manifest, blob, key, fingerprint)
    try:
        scorer = Scorer(task, allow.opens(blob))
    except UntrustedVersion as error:
        raise Refused(Code.DOES_NOT_OPEN, manifest, str(error)) from error
    _answers_probes(manifest, scorer)
    _behaves(manifest, scorer(recent), bounds)
    facts = list(recent) or [features for features, _ in manifest.probes]
    us = _us_per_fact(scorer, facts, clock) if facts else None
    if us is not None and not us <= limit_us:
        raise Refused(Code.TOO_SLOW, manifest, f"{us:.0f} µs per fact; at most {limit_us:.0f} are allowed")
    return Admitted(scorer, manifest, us)


def _belongs(manifest: Manifest, blob: bytes, key: bytes, fingerprint: str) -> None:
    try:
        verify(manifest, key)
    except BadVersion as error:
        raise Refused(Code.BAD_SIGNATURE, manifest, str(error)) from error
    try:
        check(manifest, blob)
    except BadVersion as error:
        raise Refused(Code.BAD_BYTES, manifest, str(error)) from error
    if manifest.fingerprint != fingerprint:
        why = f"learned with features {manifest.fingerprint}, served with {fingerprint}"
        raise Refused(Code.WRONG_FINGERPRINT, manifest, why)


def _answers_probes(manifest: Manifest, scorer: Scorer) -> None:
    answers = scorer([features for features, _ in manifest.probes])
    for (features, expected), answer in zip(manifest.probes, answers, strict=True):
        if isinstance(answer, Raised):
            raise Refused(Code.RAISES, manifest, f"{answer.error!r} for the probe {features}")
        if not _finite(answer):
            raise Refused(Code.NOT_FINITE, manifest, f"{answer} for the probe {features}")
        if not _close(answer, expected):
            why = f"{answer} for the probe {features}, {expected} when it was published"
            raise Refused(Code.PROBE_DIFFERS, manifest, why)


def _behaves(
    manifest: Manifest, answers: Sequence[Answer | Raised], bounds: tuple[float, float] | None
) -> None:
    allowed = max(1, int(MAX_SHARE * len(answers)))
    raised = [answer for answer in answers if isinstance(answer, Raised)]
    if len(raised) > allowed:
        why = f"for {len(raised)} of {len(answers)} recent facts, such as {raised[0].error!r}"
        raise Refused(Code.RAISES, manifest, why)
    given = [answer for answer in answers if not isinstance(answer, Raised)]
    wild = [answer for answer in given if not _finite(answer)]
    if wild:  # a weight that is not finite does not come back
        raise Refused(Code.NOT_FINITE, manifest, f"{len(wild)} of {len(answers)} recent facts")
    outside = [answer for answer in given if not _inside(answer, bounds)]
    if len(outside) > allowed:
        why = f"{len(outside)} of {len(answers)} recent facts outside {bounds}, such as {outside[0]}"
        raise Refused(Code.OUT_OF_BOUNDS, manifest, why)


def _numbers(answer: Answer) -> Iterator[float]:
    yield from answer.values() if isinstance(answer, dict) else (answer,)


def _finite(answer: Answer) -> bool:
    """Whether there is an answer at all: no class has no probability."""
    return answer != {} and all(map(math.isfinite, _numbers(answer)))


def _inside(answer: Answer, bounds: tuple[float, float] | None) -> bool:
    low, high = (0.0, 1.0) if isinstance(answer, dict) else bounds or (-math.inf, math.inf)
    return all(low <= number <= high for number in _numbers(answer))


def _close(answer: Answer, expected: Answer) -> bool:
    if isinstance(answer, dict) or isinstance(expected, dict):
        if not (isinstance(answer, dict) and isinstance(expected, dict)) or answer.keys() != expected.keys():
            return False
        return all(_close(answer[name], expected[name]) for name in answer)
    return math.isclose(answer, expected, rel_tol=PROBE_TOLERANCE, abs_tol=PROBE_ABSOLUTE)


def _us_per_fact(scorer: Scorer, facts: Sequence[Features], clock: Callable[[], float]) -> float:
    """Of one batch; the answers above have warmed up what warms up."""
    batch = [*facts] * -(-TIMED_FACTS // len(facts))
    start = clock()
    scorer(batch)
    return (clock() - start) / len(batch) * 1e6
