"""A model in training: examples in, versions out, every span on record. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeGuard

import msgspec
import structlog

from ..topics.messages import (
    Answer,
    Example,
    Features,
    LabelValue,
    Manifest,
    Moments,
    Slice,
    Source,
    Span,
    Vitals,
)
from .fastpath import Scorer
from .pipeline import SHED_STRETCH, Pipeline
from .profile import MAX_SLICES
from .quality import Task, learn, learn_many, losses, moved, residuals, wrongs
from .routing import Route
from .sketch import merged, moments
from .slices import slices_of
from .unpickle import AllowList
from .version import (
    MAX_MANIFEST_BYTES,
    Assembler,
    BadVersion,
    Sealed,
    begin,
    dump,
    environment,
    extend,
    interned,
    interned_label,
    seal,
    tombstones,
)

log = structlog.get_logger(__name__)

PROBES = 8  # facts a version carries with its answers, so that the gate can compare
MAX_PROBE_BYTES = MAX_MANIFEST_BYTES // (4 * PROBES)  # of one, so that probes never make a manifest too large
MAX_SPANS = 5_000  # of one version, 100 kB of its manifest; then it is published early
MAX_LOSS = 1e100  # sums of what is greater would not stay finite, and JSON has no infinity
MAX_OPEN_SLICES = 1_000  # values of slices told apart in one window, 0.3 MB; the most frequent are told
RETRY_SECONDS = 5.0  # before a version that could not be sealed is tried again

Numbered = tuple[int, Example]  # an example and its offset


class Student:
    """One model in training: a fold of examples into an estimator, and versions of it.

    It never learns from the object it dumped, but from what the dump opens as, so that a restart
    goes on from the same bytes.
    """

    def __init__(self, name: str, pipeline: Pipeline, allow: AllowList) -> None:
        self.name = name
        self.fingerprint = pipeline.fingerprint
        self._pipeline = pipeline
        self._model = pipeline.models[name]
        self._allow = allow
        self.line = 0
        self.offsets: dict[int, int] = {}
        self._skip: tuple[Span, ...] = ()
        self._reset(None, None, 0)
        self._newest = 0  # greatest version number of any line
        self._kept: dict[int, Manifest] = {}  # versions whose bytes are in the log
        self._seen = _Seen()
        self._published_at = -math.inf  # monotonic seconds
        self._not_before = -math.inf  # the budget for snapshots allows no version sooner

    def _reset(self, manifest: Manifest | None, data: bytes | None, line: int) -> None:
        self.line = line
        self.estimator = begin(data, self._model.factory, self._allow)
        self.published: Manifest | None = manifest if manifest is not None and manifest.line == line else None
        self._parent = manifest.version if manifest is not None else 0
        self.learned = manifest.learned if manifest is not None else 0
        self.since = 0  # examples learned since the parent
        self._spans: tuple[Span, ...] = ()
        self._skipped: tuple[Span, ...] = ()
        self._probes: list[Features] = []
        # Facts that stay the same from version to version, and what the last one said of them.
        self._golden = list(self.published.probes) if self.published is not None else []
        self._error = _Paired()
        self._scorer: Scorer | None = None
        if self.published is not None:
            self._answer_with(data)

    def _answer_with(self, data: bytes | None) -> None:
        """What readers are served from now on: the error of this, not of the pupil, is the model's."""
        opened = begin(data, self._model.factory, self._allow)
        self._scorer = Scorer(self._pipeline.task, opened)

    def know(self, manifests: Sequence[Manifest], loadable: Sequence[int]) -> None:
        """What the log holds of this model."""
        self._newest = max([self._newest, *(m.version for m in manifests)])
        self._kept = {m.version: m for m in manifests if m.version in loadable}

    def resume(self, manifest: Manifest, data: bytes, skip: tuple[Span, ...]) -> None:
        """Goes on from the newest version of a line."""
        self._reset(manifest, data, manifest.line)
        self._skip = skip
        self.offsets = dict(manifest.offsets)

    def begin_line(
        self,
        route: Route,
        manifest: Manifest | None,
        data: bytes | None,
        beginnings: Mapping[int, int],
    ) -> None:
        """Starts over: from the version that the verdict restores, or from nothing."""
        self._reset(manifest, data, route.line)
        self._skip = route.skip
        self.offsets = dict(manifest.offsets) if manifest is not None else dict(beginnings)
        self._seen = _Seen()
        self._not_before = -math.inf

    def skip_to(self, partition: int, offset: int) -> None:
        """Marks examples that retention took before they were learned."""
        start = self.offsets.get(partition, 0)
        if start < offset:
            self._skipped = extend(self._skipped, partition, start, offset, False)
            self.offsets[partition] = offset

    def study(self, partition: int, batch: Sequence[Numbered], end: int, *, behind: bool = False) -> None:
        """Learns the examples of a partition up to `end`; those learned before are passed over.

        Of a learner that is behind only those that the pipeline does not allow to shed.
        """
        start = self.offsets.get(partition, 0)
        fresh = [(offset, example) for offset, example in batch if offset >= start]
        if not fresh:
            return
        ours = self.fingerprint
        shed = self._to_shed(partition, start, end) if behind else []
        kept = [(o, e) for o, e in fresh if not any(s.start <= o < s.end for s in shed)] if shed else fresh
        self._seen.shed += len(fresh) - len(kept)
        self._examine([example for _, example in kept if example.fingerprint == ours])
        # Features that other code made are not what this version would be served with.
        foreign = [Span(partition, o, o + 1) for o, example in fresh if example.fingerprint != ours]
        for span, skipped in _segments(partition, start, end, (*self._skip, *_joined(foreign), *shed)):
            if skipped:
                self._skipped = extend(self._skipped, partition, span.start, span.end, False)
                continue
            self._learn([example for offset, example in fresh if span.start <= offset < span.end])
            self._spans = extend(self._spans, partition, span.start, span.end, self._model.mini_batch)
        self.offsets[partition] = end
        self._seen.spans = extend(self._seen.spans, partition, start, end, False)

    def _to_shed(self, partition: int, start: int, end: int) -> list[Span]:
        """By whole stretches of offsets, whatever the batches: how many spans that makes is bounded."""
        first = start - start % SHED_STRETCH
        stretches = (Span(partition, o, o + SHED_STRETCH) for o in range(first, end, SHED_STRETCH))
        return _joined([s for s in stretches if not self._pipeline.taught(partition, s.start)])

    def _learn(self, examples: Sequence[Example]) -> None:
        rows = [interned(self._own(example.features)) for example in examples]
        labels = [interned_label(example.label) for example in examples]
        for error in teach(self._pipeline.task, self._model.mini_batch, self.estimator, rows, labels):
            if not self._seen.raised:  # the first of a window; vitals count them all
                log.warning("learning failed", model=self.name, error=repr(error))
            self._seen.raised += 1
        self.learned += len(rows)
        self.since += len(rows)
        self._seen.learned += len(rows)
        fits = (row for row in rows if len(msgspec.json.encode(row)) <= MAX_PROBE_BYTES)
        self._probes += islice(fits, PROBES - len(self._probes))

    def _own(self, features: Features) -> Features:
        return part(features, self._pipeline.model_features[self.name])

    def _examine(self, examples: Sequence[Example]) -> None:
        """Compares what this model answered for each example with what came true, and the baseline.

        Where it was served, that is its answer; elsewhere it is what its published version says.
        """
        if self.published is None or self._scorer is None or self.published.learned < self._model.warmup:
            return
        held = [example for example in examples if example.baseline is not None]
        own = self._scorer([self._own(example.features) for example in held])
        answered = [
            (e, e.served if e.source is Source.MODEL and e.model == self.name else answer)
            for e, answer in zip(held, own, strict=True)
        ]
        compared = self._compared([(e, a) for e, a in answered if _finite(a)])
        self._error.add(compared)
        others = [
            each
            for each in compared
            if each.example.source is Source.MODEL and each.example.model != self.name
        ]
        task, labels = self._pipeline.task, [each.example.label for each in others]
        beside = losses(task, [each.example.served for each in others], labels)
        self._seen.judge(self._pipeline.slices, compared)
        self._seen.beside([each.error for each in others], beside)

    def _compared(self, answered: Sequence[tuple[Example, Answer]]) -> list[_Compared]:
        """By columns: all of it is done for each example and model."""
        task = self._pipeline.task
        examples, answers = [each for each, _ in answered], [answer for _, answer in answered]
        labels = [example.label for example in examples]
        baselines = [example.baseline for example in examples if example.baseline is not None]
        found = zip(
            examples,
            losses(task, answers, labels),
            losses(task, baselines, labels),
            residuals(answers, labels),
            wrongs(task, answers, labels),
            strict=True,
        )
        return [_Compared(*each) for each in found if each[1] < MAX_LOSS and each[2] < MAX_LOSS]

    def due(self, now: float) -> bool:
        """Whether a version should be published; `now` is monotonic seconds."""
        if now < self._not_before:
            return False
        if self.published is None:
            return True
        every = self._pipeline.publish
        return (
            self.since >= every.every_examples
            or len(self._spans) >= MAX_SPANS
            or (self.ahead and now - self._published_at >= every.every.total_seconds())
        )

    @property
    def ahead(self) -> bool:
        """Whether it stands where no version says: it has learned since, or passed over what it must not learn."""
        return self.since > 0 or bool(self._skipped)

    def publish(self, now: float, now_ms: int, key: bytes) -> Sealed:
        """Seals a version and goes on from its bytes. Raises BadVersion; learning is not lost then."""
        self._not_before = now + RETRY_SECONDS
        data = dump(self.estimator)
        opened = begin(data, self._model.factory, self._allow)
        self._answer_with(data)
        self._regild()
        sealed = seal(
            model=self.name,
            version=self._newest + 1,
            line=self.line,
            parent=self._parent,
            fingerprint=self._pipeline.fingerprint,
            environment=environment(),
            spans=self._spans,
            skipped=self._skipped,
            offsets=self.offsets,
            learned=self.learned,
            error=self._error.mean,
            baseline_error=self._error.baseline_mean,
            probes=self._answered_probes(),
            data=data,
            published_ms=now_ms,
            key=key,
        )
        self.estimator, self.published = opened, sealed.manifest
        self._newest = self._parent = sealed.manifest.version
        self._kept[self._newest] = sealed.manifest
        self._spans, self._skipped, self._probes, self.since = (), (), [], 0
        self._error = _Paired()
        self._published_at = now
        return sealed

    def _regild(self) -> None:
        """Asks the version that is about to be published for the golden facts, and notes what moved."""
        if not self._golden:
            self._golden = self._answered_probes()
            return
        assert self._scorer is not None
        answers = self._scorer([features for features, _ in self._golden])
        known = [
            (features, before, after)
            for (features, before), after in zip(self._golden, answers, strict=True)
            if _finite(after)
        ]
        if known and self.since:
            self._seen.golden.append(sum(moved(before, after) for _, before, after in known) / len(known))
        self._golden = [(features, after) for features, _, after in known]

    def spent(self, now: float, seconds: float) -> None:
        """What the last version cost; its share of the learner's time is bounded."""
        self._not_before = now + seconds / self._pipeline.publish.budget

    def _answered_probes(self) -> list[tuple[Features, Answer]]:
        assert self._scorer is not None
        answers = self._scorer(self._probes)
        pairs = zip(self._probes, answers, strict=True)
        return [(f, a) for f, a in pairs if _finite(a)]

    def expired(self) -> list[bytes]:
        """Keys of the chunks to delete: beyond the newest versions, and the newest good ones."""
        keep = self._pipeline.publish.keep
        numbers = sorted(self._kept, reverse=True)
        good = [v for v in numbers if self._good(self._kept[v])]
        retained = {*numbers[:keep], *good[:keep]}
        return [key for v in numbers if v not in retained for key in tombstones(self._kept.pop(v))]

    def _good(self, manifest: Manifest) -> bool:
        if manifest.error is None or manifest.baseline_error is None:
            return False
        return manifest.error <= manifest.baseline_error * (1 + self._pipeline.objectives(self.name).margin)

    def vitals(self, replica: str, from_ms: int, to_ms: int) -> Vitals:
        seen, self._seen = self._seen, _Seen()
        return Vitals(
            agent="learn",
            replica=replica,
            model=self.name,
            version=self.published.version if self.published else 0,
            line=self.line,
            spans=seen.spans,
            from_ms=from_ms,
            to_ms=to_ms,
            raised=seen.raised,
            learned=seen.learned,
            labelled=seen.error.count,
            error=seen.error.total,
            baseline_error=seen.error.baseline_total,
            counts={"examples_shed": seen.shed} if seen.shed else {},
            errors=seen.errors,
            baselines=seen.baselines,
            products=min(seen.products, MAX_LOSS),
            wrong=seen.wrong,
            against=moments(seen.against),
            against_error=min(sum(seen.against_errors), MAX_LOSS),
            residuals=seen.residuals,
            slices=seen.told(),
            golden=moments(seen.golden),
        )


def teach(
    task: Task, mini_batch: bool, estimator: object, rows: Sequence[Features], labels: Sequence[LabelValue]
) -> Iterator[BaseException]:
    """Has the estimator learn the rows, all at once if in mini-batches; what it raises meanwhile."""
    if not mini_batch:
        outcomes = (contained(learn, task, estimator, *each) for each in zip(rows, labels, strict=True))
        yield from (error for error in outcomes if error is not None)
    elif rows and (error := contained(learn_many, task, estimator, rows, labels)) is not None:
        yield error


def contained(call: Callable[..., None], *words: object) -> BaseException | None:
    """An estimator is the user's code, and Rust below it panics: its failure costs its own model only."""
    try:
        call(*words)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  see above
        return error
    return None


def part(features: Features, names: Sequence[str]) -> Features:
    """Those of the names that there are; the same object if a model asks for all."""
    return (
        features
        if len(names) == len(features)
        else {name: features[name] for name in names if name in features}
    )


class _Paired:
    """Sums of a model's errors and of the baseline's over the same examples."""

    def __init__(self) -> None:
        self.count, self.total, self.baseline_total = 0, 0.0, 0.0

    def add(self, compared: Sequence[_Compared]) -> None:
        self.count += len(compared)
        self.total += sum(each.error for each in compared)
        self.baseline_total += sum(each.baseline for each in compared)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def baseline_mean(self) -> float | None:
        return self.baseline_total / self.count if self.count else None


class _Compared(NamedTuple):
    example: Example
    error: float
    baseline: float
    residual: float | None
    wrong: bool | None


class _Seen:
    """What happened since the last vitals."""

    def __init__(self) -> None:
        self.errors, self.baselines, self.residuals = Moments(), Moments(), Moments()
        self.products = 0.0
        self.wrong: int | None = None
        self.against: list[float] = []  # own error minus that of what another model served
        self.against_errors: list[float] = []  # the latter
        self.golden: list[float] = []  # by version, how far the answers to the golden facts moved
        self._slices: dict[str, Slice] = {}
        self.error = _Paired()
        self.learned = 0
        self.raised = 0
        self.shed = 0
        self.spans: tuple[Span, ...] = ()

    def judge(self, slices: Sequence[str], compared: Sequence[_Compared]) -> None:
        """Takes up a batch of answers that were held against what came true."""
        self.error.add(compared)
        self.errors = merged(self.errors, moments([each.error for each in compared]))
        self.baselines = merged(self.baselines, moments([each.baseline for each in compared]))
        self.products += sum(each.error * each.baseline for each in compared)
        if any(each.wrong is not None for each in compared):
            self.wrong = (self.wrong or 0) + sum(each.wrong is True for each in compared)
        self.residuals = merged(self.residuals, _residuals(compared))
        parts: dict[str, list[_Compared]] = {}
        for each in compared if slices else ():
            for name in slices_of(slices, each.example.features):
                parts.setdefault(name, []).append(each)
        for name, part in parts.items():
            if name in self._slices or len(self._slices) < MAX_OPEN_SLICES:
                self._slices[name] = _plus(self._slices.get(name, Slice()), part)

    def beside(self, own: Sequence[float], served: Sequence[float]) -> None:
        """Takes up the losses of examples for which another model's answer was served, and of that answer."""
        known = [(mine, theirs) for mine, theirs in zip(own, served, strict=True) if theirs < MAX_LOSS]
        self.against += [mine - theirs for mine, theirs in known]
        self.against_errors += [theirs for _, theirs in known]

    def told(self) -> dict[str, Slice]:
        largest = sorted(self._slices.items(), key=lambda each: (-each[1].labelled, each[0]))
        return dict(largest[:MAX_SLICES])


def _residuals(compared: Sequence[_Compared]) -> Moments:
    return moments([each.residual for each in compared if each.residual is not None])


def _plus(known: Slice, part: Sequence[_Compared]) -> Slice:
    return Slice(
        labelled=known.labelled + len(part),
        error=known.error + sum(each.error for each in part),
        baseline_error=known.baseline_error + sum(each.baseline for each in part),
        worse=merged(known.worse, moments([each.error - each.baseline for each in part])),
        residuals=merged(known.residuals, _residuals(part)),
    )


def _finite(answer: object) -> TypeGuard[Answer]:
    """Whether there is an answer that can be held against what came true; an estimator that raised has none."""
    return bool(answer) if isinstance(answer, dict) else isinstance(answer, float) and math.isfinite(answer)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Neighbours made one; in order, of one partition."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].end == span.start:
            joined[-1] = Span(span.partition, joined[-1].start, span.end)
        else:
            joined.append(span)
    return joined


def _segments(partition: int, start: int, end: int, skip: Sequence[Span]) -> Iterator[tuple[Span, bool]]:
    """[start, end) cut where the skipped spans begin and end: (part, whether it is skipped)."""
    ours = [span for span in skip if span.partition == partition and span.end > start and span.start < end]
    cuts = sorted({start, end, *(c for s in ours for c in (s.start, s.end) if start < c < end)})
    for low, high in zip(cuts, cuts[1:], strict=False):
        yield Span(partition, low, high), any(s.start <= low and high <= s.end for s in ours)


def start_line(student: Student, route: Route, library: Assembler, beginnings: Mapping[int, int]) -> None:
    """Goes on from the newest version of the route's line, else starts it from what it restores."""
    manifests = library.manifests(student.name)
    student.know(manifests, [m.version for m in manifests if _held(library, m)])
    # A version of other features cannot be served, so it cannot be learned on from either.
    ours = [m for m in manifests if m.fingerprint == student.fingerprint and _held(library, m)]
    of_line = [m for m in ours if m.line == route.line]
    if of_line:
        newest = of_line[-1]
        student.resume(newest, library.blob(student.name, newest.version), route.skip)
    else:
        restored = next((m for m in ours if m.version == route.restore), None)
        data = library.blob(student.name, restored.version) if restored is not None else None
        if route.restore and restored is None:
            log.warning("relearning from nothing", model=student.name, missing_version=route.restore)
        student.begin_line(route, restored, data, beginnings)
    for partition, beginning in beginnings.items():
        student.skip_to(partition, beginning)


def _held(library: Assembler, manifest: Manifest) -> bool:
    try:
        library.blob(manifest.model, manifest.version)
    except BadVersion:
        return False
    return True
