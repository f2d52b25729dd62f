"""Versions as they stand in `models`: each signed, whole, and learned from where its parent stopped."""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version as release
from itertools import groupby

import msgspec
import numpy as np

from ..models.fastpath import Raised, Scorer
from ..models.pipeline import Pipeline
from ..models.unpickle import AllowList, UntrustedVersion
from ..models.version import BadVersion, ChunkKey, check, parse_key, verify
from ..topics.log import Record
from ..topics.messages import Answer, Features, Manifest, Span
from .obedience import Verdicts
from .report import Notebook, Place, Topic
from .rule import Horizon
from .scratch import Scratch, SpanRow

OPEN_VERSIONS = 8  # opened at once for recomputing; of 64 MB at most each
PROBE_TOLERANCE = 1e-6  # relative; of an answer computed in another environment, as at the gate
PROBE_ABSOLUTE = 1e-9
LEAST_BATCH = 4  # rows: a scorer adds up a batch of fewer in River's own order


class Known(msgspec.Struct, frozen=True):
    """What is held of one version; some 500 bytes."""

    place: Place
    model: str
    version: int
    line: int
    parent: int
    learned: int
    offsets: dict[int, int]
    print: int  # hash of the fingerprint
    sha256: str
    chunks: int
    ours: bool  # made in an environment like this one


class Versions:
    """Reads `models`, a partition at a time."""

    def __init__(self, pipeline: Pipeline, scratch: Scratch, notes: Notebook, key: bytes | None) -> None:
        self._pipeline = pipeline
        self._scratch = scratch
        self._notes = notes
        self._key = key
        self._known: dict[str, dict[int, Known]] = {}
        self._ordered: list[Known] = []
        self.prints = {hash(pipeline.fingerprint)}  # of all code that ever made features
        self._bytes: dict[tuple[str, int], Manifest] = {}  # probes and spans left out

    def read(self, record: Record) -> None:
        place = Place(Topic.MODELS, record.partition, record.offset)
        try:
            key = parse_key(record.key or b"")
        except BadVersion as error:
            self._notes.find("altered", place, str(error))
            return
        if isinstance(key, ChunkKey):
            self._notes.counts["chunks"] += record.value is not None
            self._scratch.put_chunk(key.model, key.version, key.hash8, key.i, record.value)
        elif record.value is not None:
            self._manifest(place, record.value, f"{key.model}/{key.version}")

    def _manifest(self, place: Place, value: bytes, name: str) -> None:
        try:
            manifest = Manifest.model_validate_json(value)
            if f"{manifest.model}/{manifest.version}" != name:
                raise BadVersion(f"stands under the key {name}")
            if self._key is not None:
                verify(manifest, self._key)
        except ValueError as error:
            self._notes.find("altered", place, f"is no manifest of ours: {error}", hash(name), id=name)
            return
        known = self._noted(place, manifest)
        before = self._known.setdefault(manifest.model, {}).get(manifest.version)
        if before is not None:
            if before.sha256 == known.sha256 and before.offsets == known.offsets:
                self._notes.repeats[Topic.MODELS.suffix] += 1
                return
            self._notes.find("doubled", place, f"forks the version at {before.place}", hash(name), id=name)
            return
        self._notes.counts["versions"] += 1
        self._known[manifest.model][manifest.version] = known
        self.prints.add(known.print)
        number = len(self._ordered)
        self._ordered.append(known)
        spans = [(s, False) for s in manifest.spans] + [(s, True) for s in manifest.skipped]
        self._scratch.add_spans((number, *Span(*span), skipped) for span, skipped in spans)
        bare = {"spans": (), "skipped": (), "probes": ()}
        self._bytes[manifest.model, manifest.version] = manifest.model_copy(update=bare)

    @staticmethod
    def _noted(place: Place, manifest: Manifest) -> Known:
        return Known(
            place=place,
            model=manifest.model,
            version=manifest.version,
            line=manifest.line,
            parent=manifest.parent,
            learned=manifest.learned,
            offsets={p: o for p, o in manifest.offsets.items() if o},
            print=hash(manifest.fingerprint),
            sha256=manifest.sha256,
            chunks=manifest.chunks,
            ours=_like_here(manifest.environment),
        )

    def get(self, model: str, version: int) -> Known | None:
        return self._known.get(model, {}).get(version)

    def newest(self, model: str) -> Known | None:
        versions = self._known.get(model)
        return versions[max(versions)] if versions else None

    def check_bytes(self) -> None:
        """Of the versions that must be kept: all chunks there, and the bytes those that the manifest names."""
        for model, versions in self._known.items():
            for number in sorted(versions)[-self._pipeline.publish.keep :]:
                known = versions[number]
                try:
                    self.blob(model, number)
                except BadVersion as error:
                    kind = "altered" if self._whole(known) else "lost"
                    id = f"{model}/{number}"
                    self._notes.find(kind, known.place, str(error), hash(id), id=id)  # type: ignore[arg-type]

    def _whole(self, known: Known) -> bool:
        held = self._scratch.chunks(known.model, known.version, known.sha256[:8])
        return len(held) >= known.chunks

    def blob(self, model: str, version: int) -> bytes:
        """Raises BadVersion."""
        manifest = self._bytes[model, version]
        held = self._scratch.chunks(model, version, manifest.sha256[:8])
        missing = [i for i in range(manifest.chunks) if i not in held]
        if missing:
            raise BadVersion(f"chunk {missing[0]} of {manifest.chunks} is not there")
        data = b"".join(held[i] for i in range(manifest.chunks))
        check(manifest, data)
        return data

    # Spans.

    def settle(self, verdicts: Verdicts, horizon: Horizon, examples_sound: Sequence[bool]) -> None:
        """Each version against its parent. `examples_sound` by partition: no finding concerns its examples."""
        rows = groupby(self._scratch.spans(), key=lambda row: row.version)
        spans = next(rows, None)
        for number, known in enumerate(self._ordered):
            own: Iterable[SpanRow] = ()
            if spans is not None and spans[0] == number:
                own = list(spans[1])
                spans = next(rows, None)
            self._learned(known, own, verdicts, horizon, examples_sound)
        self._behind(verdicts, horizon)

    def _learned(
        self,
        known: Known,
        own: Iterable[SpanRow],
        verdicts: Verdicts,
        horizon: Horizon,
        sound: Sequence[bool],
    ) -> None:
        id = f"{known.model}/{known.version}"
        parent = self.get(known.model, known.parent) if known.parent else None
        if known.parent and parent is None:
            if horizon.whole(Topic.MODELS, known.place.partition):
                missing = f"{known.model}/{known.parent}"
                if not self._notes.explained(hash(missing)):
                    place = Place(Topic.MODELS, known.place.partition, -1)
                    self._notes.find(
                        "lost",
                        place,
                        f"is not there, and {id} was learned on from it",
                        hash(missing),
                        id=missing,
                    )
            return
        reached = dict(parent.offsets) if parent is not None else {}
        count, countable = parent.learned if parent is not None else 0, True
        for row in sorted(own, key=lambda row: (row.part, row.start, row.end)):
            at = reached.get(row.part, 0)
            if row.start > at:
                self._gap(known, row.part, at, row.start, horizon)
            elif row.start < at:
                self._again(known, row.part, row.start, min(at, row.end))
            reached[row.part] = max(at, row.end)
            if row.skipped:
                self._skipped(known, row, verdicts)
                continue
            inside = horizon.holds(Topic.EXAMPLES, row.part, row.start)
            extent = horizon.extents[Topic.EXAMPLES, row.part]
            countable &= inside and row.end <= extent.end and sound[row.part]
            count += self._scratch.examples_in(row.part, row.start, row.end) if countable else 0
        if {p: o for p, o in reached.items() if o} != known.offsets:
            self._notes.find(
                "altered", known.place, f"goes up to {known.offsets}, but its spans to {reached}", id=id
            )
        elif countable and count != known.learned:
            self._notes.find(
                "altered",
                known.place,
                f"says it learned {known.learned} examples, its spans hold {count}",
                id=id,
            )

    def _gap(self, known: Known, part: int, start: int, end: int, horizon: Horizon) -> None:
        first = self._scratch.example_after(part, start, end)
        if first is not None:
            self._notes.find(
                "unlearned",
                Place(Topic.EXAMPLES, part, first),
                f"{known.model} v{known.version} neither learned nor skipped examples {start} to {end - 1}",
            )

    def _again(self, known: Known, part: int, start: int, end: int) -> None:
        first = self._scratch.example_after(part, start, end)
        if first is not None:
            self._notes.find(
                "doubled",
                Place(Topic.EXAMPLES, part, first),
                f"{known.model} v{known.version} learned examples {start} to {end - 1} a second time",
            )

    def _skipped(self, known: Known, row: SpanRow, verdicts: Verdicts) -> None:
        """A span is skipped by verdict, under backlog, or because other code made the features."""
        for start, end in _without(row, verdicts.skips(known.model, known.line)):
            first = self._scratch.example_after(row.part, start, end, known.print)
            if first is not None and self._pipeline.taught(row.part, first):
                self._notes.find(
                    "unlearned",
                    Place(Topic.EXAMPLES, row.part, first),
                    f"{known.model} v{known.version} skipped it, and no verdict says so",
                )

    def _behind(self, verdicts: Verdicts, horizon: Horizon) -> None:
        """Examples that some model at work has not published a version of yet."""
        most = 0
        for model in self._pipeline.models:
            of_line = [k for k in self._known.get(model, {}).values() if k.line == verdicts.line(model)]
            if verdicts.destroyed(model):
                continue
            offsets = max(of_line, key=lambda k: k.version).offsets if of_line else {}
            behind = 0
            for (topic, part), extent in horizon.extents.items():
                if topic is Topic.EXAMPLES:
                    start = max(extent.begin, offsets.get(part, 0))
                    behind += self._scratch.examples_in(part, start, extent.end)
            most = max(most, behind)
        if most:
            self._notes.pending[Topic.EXAMPLES.suffix] = most


def _without(row: SpanRow, skips: Iterable[Span]) -> Iterator[tuple[int, int]]:
    """What of a span no other span covers."""
    start = row.start
    for _, low, high in sorted(s for s in skips if s[0] == row.part and s[2] > row.start and s[1] < row.end):
        if low > start:
            yield start, low
        start = max(start, high)
    if start < row.end:
        yield start, row.end


def _like_here(environment: dict[str, str]) -> bool:
    here = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "river": release("river"),
        "numpy": np.__version__,
    }
    return all(environment.get(name) == value for name, value in here.items())


class Recomputer:
    """What a version says of features, from its own bytes."""

    def __init__(self, pipeline: Pipeline, versions: Versions) -> None:
        self._pipeline = pipeline
        self._versions = versions
        self._allow = AllowList(pipeline.trusted)
        self._opened: OrderedDict[tuple[str, int], Scorer | None] = OrderedDict()

    def _scorer(self, model: str, version: int) -> Scorer | None:
        at = (model, version)
        if at not in self._opened:
            self._opened[at] = self._open(model, version)
            if len(self._opened) > OPEN_VERSIONS:
                self._opened.popitem(last=False)
        self._opened.move_to_end(at)
        return self._opened[at]

    def _open(self, model: str, version: int) -> Scorer | None:
        if self._versions.get(model, version) is None:
            return None
        try:
            return Scorer(self._pipeline.task, self._allow.opens(self._versions.blob(model, version)))
        except (BadVersion, UntrustedVersion):
            return None

    def differing(
        self, model: str, version: int, rows: Sequence[Features], served: Sequence[Answer]
    ) -> list[tuple[int, Answer]] | None:
        """Places where the version gives another answer, with that answer; None if its bytes are not kept.

        The scorer sums a batch column by column and fewer than `LEAST_BATCH` rows as River does: an
        answer is right if it is exactly either, or, of another environment, close to it.
        """
        scorer = self._scorer(model, version)
        if scorer is None:
            return None
        names = self._pipeline.model_features[model]
        asked: list[Features] = [{name: row[name] for name in names if name in row} for row in rows]
        padding = LEAST_BATCH - 1
        together = scorer([*asked, *asked[:1] * padding])[: len(asked)]
        wrong = []
        for i, answer in enumerate(together):
            if answer == served[i]:
                continue
            alone = scorer(asked[i : i + 1])[0]
            if alone == served[i] or self._close(model, version, alone, served[i]):
                continue
            several = scorer(asked[i : i + 1] * LEAST_BATCH)[0]
            if several != served[i]:
                wrong.append((i, alone if not isinstance(alone, Raised) else float("nan")))
        return wrong

    def _close(self, model: str, version: int, answer: Answer | Raised, served: Answer) -> bool:
        known = self._versions.get(model, version)
        if known is None or known.ours or isinstance(answer, Raised):
            return False
        ours = answer if isinstance(answer, dict) else {"": answer}
        theirs = served if isinstance(served, dict) else {"": served}
        return ours.keys() == theirs.keys() and all(
            abs(ours[n] - theirs[n]) <= max(PROBE_ABSOLUTE, PROBE_TOLERANCE * abs(ours[n])) for n in ours
        )
