"""Rows of what was read, on disk: what an audit holds in memory does not grow with the log.

A record is kept as a few integers, its texts as 64-bit hashes (SipHash, salted per process). Rows are
written in the order of reading and read back sorted by their cause, which SQLite does outside memory.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .report import Topic

CACHE_KB = 16 * 1024  # of pages, and of one sort in memory
CAUSES = (Topic.EVENTS, Topic.FACTS, Topic.OUTCOMES, Topic.PREDICTIONS)


class Cause(NamedTuple):
    """A record that must have an effect, and which."""

    part: int
    off: int
    expect: int  # see settle.Expect
    place: int  # partition of the effect
    content: int  # hash of what the effect must say
    extra: int
    at: int  # append time, ms


class Effect(NamedTuple):
    """A record that names its cause, at (cause_part, cause_off) of one topic."""

    cause_part: int
    cause_off: int
    n: int
    topic: int
    part: int
    off: int
    first: bool  # admitted by the reading rule
    content: int
    extra: int


class Meeting(NamedTuple):
    """A prediction, an outcome or an example, under the hash of its join key."""

    part: int
    key: int
    topic: int
    off: int
    at: int  # append time, ms
    clock: int  # greatest append time of its topic's partition so far, ms
    content: int  # of id and time; an outcome's: of its label
    served: int  # of what was served; an outcome's: its number in the partition
    label: int


class SpanRow(NamedTuple):
    """One span of one version, in the order of learning. `version` is its row in the list of versions."""

    version: int
    part: int
    start: int
    end: int
    skipped: bool


class Scratch:
    """A temporary SQLite file; gone when closed."""

    def __init__(self, directory: Path | None = None) -> None:
        self._interrupted = False
        self._folder = tempfile.TemporaryDirectory(prefix="riverkeeper-audit-", dir=directory)
        self._db = sqlite3.connect(
            Path(self._folder.name) / "rows.db", isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA page_size = 16384")
        for pragma in (
            f"cache_size = -{CACHE_KB}",
            "journal_mode = OFF",
            "synchronous = OFF",
            "locking_mode = EXCLUSIVE",
            "temp_store = FILE",
            "mmap_size = 0",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        for topic in CAUSES:
            self._create(f"cause_{topic}", Cause._fields)
            self._create(f"effect_{topic}", Effect._fields)
        self._create("meeting", Meeting._fields)
        self._create("span", SpanRow._fields)
        self._db.execute(
            "CREATE TABLE example (part INT, off INT, print INT, PRIMARY KEY (part, off)) WITHOUT ROWID"
        )
        self._db.execute(
            "CREATE TABLE chunk (model TEXT, version INT, hash TEXT, i INT, data BLOB, "
            "PRIMARY KEY (model, version, hash, i))"
        )
        self._db.execute("BEGIN")

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def interrupt(self) -> None:
        """Makes whoever reads rows in another thread stop, with sqlite3.Error."""
        self._interrupted = True
        self._db.interrupt()

    def _select(self, query: str, asked: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if self._interrupted:
            raise sqlite3.OperationalError("interrupted")
        return self._db.execute(query, asked)

    def _create(self, table: str, columns: Iterable[str]) -> None:
        self._db.execute(f"CREATE TABLE {table} ({', '.join(f'{c} INT' for c in columns)})")

    def _add(self, table: str, columns: int, rows: Iterable[tuple[int, ...]]) -> None:
        self._db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)

    def add_causes(self, topic: Topic, rows: Iterable[tuple[int, ...]]) -> None:
        self._add(f"cause_{topic}", len(Cause._fields), rows)

    def add_effects(self, cause: Topic, rows: Iterable[tuple[int, ...]]) -> None:
        self._add(f"effect_{cause}", len(Effect._fields), rows)

    def add_meetings(self, rows: Iterable[tuple[int, ...]]) -> None:
        self._add("meeting", len(Meeting._fields), rows)

    def add_spans(self, rows: Iterable[tuple[int, ...]]) -> None:
        self._add("span", len(SpanRow._fields), rows)

    def add_examples(self, rows: Iterable[tuple[int, int, int]]) -> None:
        """Each (partition, offset, hash of its fingerprint); a partition's in their order."""
        self._add("example", 3, rows)

    def causes(self, topic: Topic) -> Iterator[Cause]:
        """In the order of partition and offset."""
        return map(Cause._make, self._select(f"SELECT * FROM cause_{topic} ORDER BY part, off"))

    def effects(self, cause: Topic) -> Iterator[Effect]:
        """In the order of their causes, then of their own places."""
        found = self._select(f"SELECT * FROM effect_{cause} ORDER BY cause_part, cause_off, topic, part, off")
        return map(Effect._make, found)

    def has_effect(self, cause: Topic, part: int, off: int) -> bool:
        """Whether anything names this cause. Builds an index at its first use; for the few."""
        self._select(f"CREATE INDEX IF NOT EXISTS by_{cause} ON effect_{cause} (cause_part, cause_off)")
        query = f"SELECT 1 FROM effect_{cause} WHERE cause_part = ? AND cause_off = ?"
        return self._select(query, (part, off)).fetchone() is not None

    def meetings(self) -> Iterator[Meeting]:
        """In the order of partition, key, topic and offset."""
        return map(Meeting._make, self._select("SELECT * FROM meeting ORDER BY part, key, topic, off"))

    def spans(self) -> Iterator[SpanRow]:
        """In the order of versions, and within one of learning."""
        return map(SpanRow._make, self._select("SELECT * FROM span ORDER BY version, rowid"))

    def examples_in(self, part: int, start: int, end: int) -> int:
        query = "SELECT count(*) FROM example WHERE part = ? AND off >= ? AND off < ?"
        count: int = self._select(query, (part, start, end)).fetchone()[0]
        return count

    def example_after(self, part: int, start: int, end: int, print_: int | None = None) -> int | None:
        """Offset of the first example in [start, end), of this fingerprint if one is given."""
        query = "SELECT min(off) FROM example WHERE part = ? AND off >= ? AND off < ?"
        asked: tuple[int, ...] = (part, start, end)
        if print_ is not None:
            query, asked = f"{query} AND print = ?", (*asked, print_)
        first: int | None = self._select(query, asked).fetchone()[0]
        return first

    def put_chunk(self, model: str, version: int, hash8: str, i: int, data: bytes | None) -> None:
        key = (model, version, hash8, i)
        if data is None:
            self._select("DELETE FROM chunk WHERE (model, version, hash, i) = (?, ?, ?, ?)", key)
        else:
            self._select("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?)", (*key, data))

    def chunks(self, model: str, version: int, hash8: str) -> dict[int, bytes]:
        query = "SELECT i, data FROM chunk WHERE model = ? AND version = ? AND hash = ?"
        return dict(self._select(query, (model, version, hash8)))
