"""Predictions that wait for their outcome, packed: a million of them are to fit beside the rest of a process.

To Python an object is some 50 bytes before it says anything, and its place in a dict as much again. So a
prediction is one object, without what others of its model say as well, and shares a page with others.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime
from struct import Struct
from typing import NamedTuple

import msgspec

from ..topics.messages import Answer, Example, Features, LabelValue, Scalar, Source
from .line import SETTLED, Line

MAX_KINDS = 1_000  # of predictions that a process tells apart, by the names of their features; 3 MB
MAX_MODELS = 100_000  # whose names a process holds once; 20 MB
PER_PAGE = 16  # predictions on a page if as many wait as may: 5 bytes each for the page, 1 us to look through


class Served(msgspec.Struct, gc=False):
    """What of a prediction's record an example is made of."""

    id: str
    key: str
    time: datetime
    value: Answer
    source: Source
    model: str
    version: int
    fingerprint: str
    baseline: Answer | None
    features: Features

    def example(self, label: LabelValue) -> Example:
        return Example(
            id=self.id,
            key=self.key,
            time=self.time,
            features=self.features,
            label=label,
            served=self.value,
            source=self.source,
            model=self.model,
            version=self.version,
            fingerprint=self.fingerprint,
            baseline=self.baseline,
        )


class Kind(NamedTuple):
    """What the predictions of one declaration have in common, whichever model made them."""

    fingerprint: str
    features: Callable[..., Features]  # of their values, in order


class Packed(msgspec.Struct, array_like=True, gc=False):
    """A prediction without its key, its model's name, and what its kind says."""

    id: str
    time: datetime
    value: Answer
    by: int  # twice the model's number, and one unless it answered as the fallback
    baseline: Answer | None
    version: int
    kind: int
    values: list[Scalar]


class Packing:
    """To and from what is kept of a prediction: an array in MessagePack, or its record as it was read.

    The record is kept of what MessagePack cannot say (integers beyond 64 bits), and where there are more
    models or kinds than a table should hold.
    """

    def __init__(self) -> None:
        self.decode = msgspec.json.Decoder(Served).decode
        self._pack = msgspec.msgpack.Encoder().encode
        self._unpack = msgspec.msgpack.Decoder(Packed).decode
        self._model_numbers: dict[str, int] = {}
        self._models: list[str] = []
        self._kind_numbers: dict[
            tuple[str, tuple[str, ...]], int
        ] = {}  # by fingerprint, names of the features
        self._kinds: list[Kind] = []

    def pack(self, served: Served, record: bytes) -> bytes:
        kind = (served.fingerprint, tuple(served.features))
        model, number = self._model_numbers.get(served.model), self._kind_numbers.get(kind)
        if model is None or number is None:
            return self.pack(served, record) if self._noted(served.model, *kind) else record
        time = served.time
        try:
            return self._pack(
                (
                    served.id,
                    # MessagePack's time is one of UTC; any other is packed as text, which the reader takes as well.
                    time if time.tzinfo is UTC else time.isoformat(),
                    served.value,
                    2 * model + (served.source is Source.MODEL),
                    served.baseline,
                    served.version,
                    number,
                    list(served.features.values()),
                )
            )
        except OverflowError:
            return record

    def _noted(self, model: str, fingerprint: str, names: tuple[str, ...]) -> bool:
        """Whether both have a number; each gets one while there is room."""
        if model not in self._model_numbers and len(self._models) < MAX_MODELS:
            self._model_numbers[model] = len(self._models)
            self._models.append(model)
        kind = (fingerprint, names)
        if kind not in self._kind_numbers and len(self._kinds) < MAX_KINDS:
            self._kind_numbers[kind] = len(self._kinds)
            self._kinds.append(Kind(fingerprint, _row(names)))
        return model in self._model_numbers and kind in self._kind_numbers

    def example(self, key: str, kept: bytes, label: LabelValue) -> Example:
        """Of a prediction that was kept, when its outcome has come; to be encoded, and for nothing else."""
        if kept[0] != ARRAY:
            return self.decode(kept).example(label)
        packed = self._unpack(kept)
        kind = self._kinds[packed.kind]
        return Example(
            id=packed.id,
            key=key,
            time=packed.time,
            features=kind.features(*packed.values),
            label=label,
            served=packed.value,
            source=Source.MODEL if packed.by & 1 else Source.FALLBACK,
            model=self._models[packed.by >> 1],
            version=packed.version,
            fingerprint=kind.fingerprint,
            baseline=packed.baseline,
        )


ARRAY = 0x90 | len(
    Packed.__struct_fields__
)  # MessagePack's first byte of such an array; no text begins with it


def _row(names: tuple[str, ...]) -> Callable[..., Features]:
    """What makes features of their values: a struct of these fields, encoded as a dict is, in a third of the time."""
    fields = [f"f{n}" for n in range(len(names))]
    try:
        return msgspec.defstruct("Row", fields, rename=dict(zip(fields, names, strict=True)), gc=False)  # type: ignore[return-value]
    except ValueError:  # of names with quotes or control characters
        return lambda *values: dict(zip(names, values, strict=True))


# How what waits begins: its append time (ms), its offset, the size of its key, which comes next. By time, as bytes are compared.
HEAD = Struct(">QQI")
PLACE = Struct(">QQ")  # append time, offset
TIME = Struct(">Q")
SIZE = Struct(">I")
AT, NAME = TIME.size, PLACE.size  # bytes of an entry before which these end and begin


class Pending:
    """What waits of one partition, by its key and by its append time.

    A key's page is fixed by the limit: no table has to grow, which would stop the work at a million. What is
    on a page stands in the order in which it came.
    """

    def __init__(self, limit: int) -> None:
        self._pages: list[list[bytes] | None] = [None] * max(1, limit // PER_PAGE)
        self._count = 0
        self._taken = 0  # since the last sweep
        self.line: Line[int] = Line(array("I"))  # pages; one turn is for all on a page that came at one time

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes, kept: bytes, at: int, offset: int) -> bytes:
        """Returns its place among all of the partition. Append times must not step back."""
        place = PLACE.pack(at, offset)
        self._put(at, key, place + named(key, kept))
        return place

    def restore(self, place: bytes, named: bytes) -> None:
        """One of those that were added, in their order."""
        at, _ = PLACE.unpack(place)
        entry = place + named
        self._put(at, _key(entry), entry)

    def _put(self, at: int, key: bytes, entry: bytes) -> None:
        pages = self._pages
        number = hash(key) % len(pages)
        page = pages[number]
        if page is None:
            pages[number] = [entry]
            self.line.push(at, number)
        else:
            if not page[-1].startswith(entry[:AT]):
                self.line.push(at, number)
            page.append(entry)
        self._count += 1

    def take(self, key: bytes) -> list[bytes]:
        """Those of the key, which wait no longer; see `place_of` and `kept_of`."""
        pages = self._pages
        number = hash(key) % len(pages)
        page = pages[number]
        if page is None:
            return []
        name = SIZE.pack(len(key)) + key
        found = []
        for entry in page:
            if entry.startswith(name, NAME):
                found.append(entry)
        if len(found) == len(page):
            pages[number] = None
        else:
            for entry in found:
                page.remove(entry)
        self._count -= len(found)
        self._taken += len(found)
        if self._taken > self._count + SETTLED:
            self.line.sweep(self._waits)
            self._taken = 0
        return found

    def give_up(self) -> list[tuple[bytes, bytes]]:
        """(place, key) of those whose turn is next, which wait no longer; none, if they were taken before."""
        at, number = self.line.pop()
        page, time = self._pages[number], TIME.pack(at)
        if page is None:
            return []
        count = next((n for n, entry in enumerate(page) if not entry.startswith(time)), len(page))
        found = page[:count]
        del page[:count]
        if not page:
            self._pages[number] = None
        self._count -= count
        return [(entry[:NAME], _key(entry)) for entry in found]

    def _waits(self, at: int, number: int) -> bool:
        page, time = self._pages[number] or (), TIME.pack(at)
        n = bisect_left(page, time)
        return n < len(page) and page[n].startswith(time)


def named(key: bytes, kept: bytes) -> bytes:
    """An entry without its place."""
    return SIZE.pack(len(key)) + key + kept


def place_of(entry: bytes) -> bytes:
    return entry[:NAME]


def time_of(entry: bytes) -> int:
    """Append time, ms."""
    at: int = TIME.unpack_from(entry)[0]
    return at


def kept_of(entry: bytes, key: bytes) -> bytes:
    return entry[HEAD.size + len(key) :]


def _key(entry: bytes) -> bytes:
    _, _, size = HEAD.unpack_from(entry)
    return entry[HEAD.size : HEAD.size + size]
