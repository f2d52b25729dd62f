"""A test that is looked at after every block raises no false alarms, and finds what is there soon."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from riverkeeper.supervisor.policies.limits import Limits
from riverkeeper.supervisor.policies.sequential import Block, Evidence, Floor, Trail

ODDS = Limits().log_odds
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FLOOR = Floor(young=0.5, mature=0.05, relative=True)


@pytest.mark.parametrize("seed", range(3))
def test_no_false_alarm_in_a_hundred_thousand_looks(seed: int) -> None:
    """A tenth of a standard deviation on the right side is enough; on the edge there is one in a million."""
    rng = random.Random(seed)
    evidence = Evidence()
    for at in range(100_000):
        evidence = evidence.after(rng.gauss(-0.1, 1.0), at, ODDS)
        assert evidence.against(ODDS) is None


def test_lower_odds_keep_their_word() -> None:
    """The mean time to a false alarm at odds of A is at least A blocks."""
    rng = random.Random(2)
    odds, runs = 50.0, []
    for _ in range(60):
        evidence, at = Evidence(), 0
        while evidence.against(math.log(odds)) is None:
            evidence, at = evidence.after(rng.gauss(0.0, 1.0), at, math.log(odds)), at + 1
        runs.append(at)
    assert sum(runs) / len(runs) >= odds


@pytest.mark.parametrize(("shift", "blocks"), [(0.5, 140), (1.0, 40), (3.0, 8)])
def test_a_change_is_found_soon_and_dated(shift: float, blocks: int) -> None:
    rng = random.Random(3)
    evidence = Evidence()
    for at in range(1_000):
        evidence = evidence.after(rng.gauss(0.0, 1.0), at, ODDS)
    for at in range(1_000, 1_000 + blocks):
        evidence = evidence.after(rng.gauss(shift, 1.0), at, ODDS)
    since = evidence.against(ODDS)
    assert since is not None and 990 <= since <= 1_000 + blocks // 2


def test_it_recovers_about_as_soon_as_it_was_found() -> None:
    evidence = Evidence()
    for at in range(1_000):
        evidence = evidence.after(2.0, at, ODDS)
    for at in range(1_000, 1_020):
        evidence = evidence.after(-1.0, at, ODDS)
    assert evidence.against(ODDS) is None


def test_one_odd_block_is_no_alarm() -> None:
    evidence = Evidence().after(1e9, 0, ODDS)
    assert evidence.against(ODDS) is None


def _day(trail: Trail, start_ms: int, days: float, rng: random.Random, level: float = 10.0) -> Trail:
    """Values every ten minutes that swing by a third of their mean within a day."""
    for n in range(int(days * 144)):
        at = start_ms + n * HOUR_MS // 6
        mean = level + 3.0 * math.sin(at / DAY_MS * 2 * math.pi)
        values = [rng.gauss(mean, 1.0) for _ in range(50)]
        block = Block(at, at + HOUR_MS // 6, 50, sum(values), sum(v * v for v in values))
        trail = trail.after(block, FLOOR, DAY_MS, ODDS)
        assert trail.up.against(ODDS) is None and trail.down.against(ODDS) is None
    return trail


def test_a_history_knows_its_season() -> None:
    _day(Trail(), 0, 14, random.Random(4))


def test_what_leaves_its_season_is_found() -> None:
    rng = random.Random(5)
    trail = _day(Trail(), 0, 3, rng)
    at = 3 * DAY_MS
    for n in range(20):
        values = [rng.gauss(20.0, 1.0) for _ in range(50)]
        block = Block(at + n, at + n + 1, 50, sum(values), sum(v * v for v in values))
        trail = trail.after(block, FLOOR, DAY_MS, ODDS)
    assert trail.up.against(ODDS) is not None and trail.down.against(ODDS) is None
    assert abs(trail.mean - 10.0) < 1.0  # and has not become the rule meanwhile


def test_what_lasts_becomes_the_rule() -> None:
    rng = random.Random(6)
    trail = _day(Trail(), 0, 3, rng)
    for n in range(30 * 144):
        at = 3 * DAY_MS + n * HOUR_MS // 6
        trail = trail.after(Block(at, at + HOUR_MS // 6, 100, 2_000.0, 40_100.0), FLOOR, DAY_MS, ODDS)
    assert trail.up.against(ODDS) is None


def test_a_history_survives_json_and_stays_small() -> None:
    trail = _day(Trail(), 0, 5, random.Random(7))
    written = msgspec.json.encode(trail)
    assert msgspec.json.decode(written, type=Trail) == trail and len(written) < 1_000
