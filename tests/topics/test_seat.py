"""A seat's name belongs to one live process, and to the one that takes its place."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from riverkeeper.topics.seat import MAX_SEATS, Seat

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are held by the Linux kernel")

HOLD = """
import sys, time
from riverkeeper.topics.seat import Seat
seat = Seat(sys.argv[1])
print(seat.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def group() -> str:
    return f"g-{uuid.uuid4()}"


@contextmanager
def elsewhere(group: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a seat in the group, and the seat's name."""
    with subprocess.Popen([sys.executable, "-c", HOLD, group], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def name(group: str) -> str | None:
    seat = Seat(group)
    seat.leave()
    return seat.name


def test_two_at_once_have_two_names(group: str) -> None:
    seats = [Seat(group) for _ in range(3)]
    assert None not in (names := {seat.name for seat in seats})
    assert len(names) == 3
    for seat in seats:
        seat.leave()


def test_who_left_is_followed_under_the_same_name(group: str) -> None:
    first, second = Seat(group), Seat(group)
    first.leave()
    again = Seat(group)
    assert again.name == first.name != second.name
    second.leave()
    again.leave()


def test_killed_it_is_followed_under_the_same_name(group: str) -> None:
    with elsewhere(group) as (process, held):
        assert name(group) != held
        process.send_signal(signal.SIGSTOP)  # it may go on one day
        assert name(group) != held
        process.kill()
        process.wait()
        assert name(group) == held


def test_groups_do_not_take_names_from_each_other(group: str) -> None:
    first, other = Seat(group), Seat(f"{group}-other")
    assert first.name == other.name
    first.leave()
    other.leave()


def test_without_a_free_name_it_is_none(group: str) -> None:
    seats = [Seat(group) for _ in range(MAX_SEATS + 1)]
    assert seats[-1].name is None and seats[-2].name is not None
    for seat in seats:
        seat.leave()
