"""What a reader admits under the origin rule, and that it survives being stored."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper.topics.log import Headers, Record
from riverkeeper.topics.messages import Origin
from riverkeeper.topics.store import ORIGIN, Head, Progress, latest, record_hash

INPUT = TopicPartition("facts", 0)
FILTERED = frozenset({"facts"})


@dataclass
class Stored:
    """A record as a broker hands it out."""

    offset: int
    value: bytes | None = None
    key: bytes | None = None
    headers: Headers = ()
    topic: str = "facts"
    partition: int = 0
    timestamp: int = 0


def caused(offset: int, cause: tuple[int, int], source: bytes = b"events/0") -> Stored:
    value = b"%b/%d/%d" % (source, *cause)
    return Stored(offset, value, headers=((ORIGIN, Origin(source, *cause).header()), ("trace", b"x")))


def written(rng: random.Random, outputs: Sequence[tuple[int, int]], zombies: int) -> list[tuple[int, int]]:
    """The log of several runs of one writer, some of them alive at the same time.

    A run starts at a checkpoint, below which all was acknowledged when it was made, and writes the
    outputs from there on in order. At every step any run may write its next one, stop for good, or
    make a checkpoint of what is acknowledged of its own.
    """
    log: list[tuple[int, int]] = []
    checkpoint, runs = 0, [0]
    while True:
        living = [i for i, at in enumerate(runs) if at < len(outputs)]
        if not living:
            return log
        i = rng.choice(living)
        for _ in range(rng.randint(1, 4)):
            if runs[i] < len(outputs):
                log.append(outputs[runs[i]])
                runs[i] += 1
        if i == len(runs) - 1 and rng.random() < 0.3:
            checkpoint = runs[i]  # only the newest owner's is not fenced
        if len(runs) < zombies and rng.random() < 0.2:
            runs.append(checkpoint)


OUTPUTS = [(offset, n) for offset in range(40) for n in range(1 + offset % 3 // 2)]


@pytest.mark.parametrize("seed", range(300))
def test_zombies_neither_double_nor_lose_an_output(seed: int) -> None:
    rng = random.Random(seed)
    log = [caused(i, cause) for i, cause in enumerate(written(rng, OUTPUTS, zombies=4))]
    progress, admitted, at = Progress({INPUT: 0}, FILTERED), list[bytes | None](), 0
    while at < len(log):
        size = rng.randint(1, 9)
        admitted += [r.value for r in progress.admit(INPUT, log[at : at + size])]
        at += size
    assert admitted == [caused(0, cause).value for cause in OUTPUTS]
    assert progress.repeats == len(log) - len(OUTPUTS)
    assert progress.positions == {INPUT: len(log)}


@pytest.mark.parametrize("seed", range(100))
def test_a_reader_restored_anywhere_goes_on_as_if_it_had_stayed(seed: int) -> None:
    """Counterexample 21: what was seen before the middle of a stretch decides what follows."""
    rng = random.Random(seed)
    log = [caused(i, cause) for i, cause in enumerate(written(rng, OUTPUTS, zombies=4))]
    cut = rng.randint(1, len(log))
    before = Progress({INPUT: 0}, FILTERED)
    admitted = list(before.admit(INPUT, log[:cut]))
    head = msgspec.json.decode(msgspec.json.encode(before.head("r", drained=False)), type=Head)
    after = Progress.restore(head, [INPUT], FILTERED)
    assert (after.positions, after.seen, after.last) == (before.positions, before.seen, before.last)
    for record in log[cut:]:
        admitted += after.admit(INPUT, [record])
    assert [r.value for r in admitted] == [caused(0, cause).value for cause in OUTPUTS]


def test_sources_and_inputs_are_counted_apart() -> None:
    other = TopicPartition("facts", 1)
    progress = Progress({INPUT: 0, other: 0}, FILTERED)
    log = [caused(0, (5, 0)), caused(1, (3, 0), b"events/1"), caused(2, (5, 1)), caused(3, (5, 1))]
    assert [r.offset for r in progress.admit(INPUT, log)] == [0, 1, 2]
    assert [r.offset for r in progress.admit(other, [caused(0, (5, 0))])] == [0]


def test_records_below_the_position_come_again_and_change_nothing() -> None:
    progress = Progress({INPUT: 3}, FILTERED)
    assert progress.admit(INPUT, [caused(1, (1, 0)), caused(2, (2, 0))]) == []
    assert (progress.positions, progress.seen, progress.last) == ({INPUT: 3}, {}, {})
    assert [r.offset for r in progress.admit(INPUT, [caused(2, (2, 0)), caused(3, (3, 0))])] == [3]


def test_what_foreign_programs_write_is_admitted_by_offset_alone() -> None:
    progress = Progress({INPUT: 0}, FILTERED)
    assert len(progress.admit(INPUT, [Stored(0), Stored(1)])) == 2
    events = TopicPartition("events", 0)
    unfiltered = Progress({events: 0}, FILTERED)
    again = [caused(0, (5, 0)), caused(1, (5, 0))]  # replayed by hand, headers and all
    assert len(unfiltered.admit(events, again)) == 2


def test_the_hash_tells_records_apart_by_key_and_value() -> None:
    records: list[Record] = [
        Stored(0, b"v", b"k"),
        Stored(0, b"w", b"k"),
        Stored(0, b"v", b"l"),
        Stored(0, b"kv", None),
        Stored(0, None, b"kv"),
    ]
    assert len({record_hash(record) for record in records}) == len(records)
    assert record_hash(Stored(7, b"v", b"k")) == record_hash(Stored(9, b"v", b"k"))


@given(
    st.text("abc/", min_size=1).map(str.encode),
    st.integers(0, 2**63),
    st.integers(0, 1000),
)
def test_an_origin_survives_its_header(source: bytes, offset: int, n: int) -> None:
    assert Origin.parse(Origin(source, offset, n).header()) == (source, offset, n)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"c", None]), st.one_of(st.none(), st.binary(max_size=2)))
    )
)
def test_latest_is_the_last_of_each_key_and_a_tombstone_removes(
    entries: list[tuple[bytes | None, bytes | None]],
) -> None:
    table = latest(Stored(i, value, key) for i, (key, value) in enumerate(entries))
    for key in (b"a", b"b", b"c"):
        last = [value for k, value in entries if k == key][-1:]
        assert table.get(key) == (last[0] if last else None)
    assert None not in table.values()
