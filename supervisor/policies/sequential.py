"""Tests that may be looked at after every block, for ever, at a known rate of false alarms.

Evidence is an e-detector (Shin, Ramdas and Rinaldo 2024, "E-detectors: a nonparametric framework for sequential
change detection"): the Shiryaev-Roberts sum of e-processes, one begun at each block, here the likelihood
ratios exp(b z - b^2 / 2) of a Gaussian for some bets b. While the blocks' scores z have means of at most 0 and
are sub-Gaussian, the mean time to a false alarm at odds of A is at least A blocks, however often one looks
(ibid., theorem 2.4). What is not so in practice is met by slack: scores are clipped, and history is held to
two of its own standard deviations, seasons included, before anything counts against it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

BETS = (0.5, 1.0, 2.0)  # standard deviations of a block: slow, middling and abrupt changes
LOG_BETS = math.log(len(BETS))
CLIP = 5.0  # of a block's score: no single block, however odd, is an alarm (its evidence is 8 of 13.8)
DEPENDENCE = 2.0  # examples worth one independent example: neighbours share a version and a mood
SLACK = 2.0  # standard deviations of its own history that a block may stray for ever
MAX_EXCESS = 5.0  # beyond the alarm that evidence may grow; so recovery shows as soon as trouble did
BLOCK = 100  # values that make a block; their mean is about normal whatever they are
GRAINS = 1_000  # blocks of history per season: 10 minutes of a week
SEASONS = 2  # of history remembered
MIN_HISTORY = 12  # blocks of history before anything is held against it
HELD = 6  # blocks kept out of the history: what has just begun to go wrong must not become the rule


class Evidence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Per bet: log(1 + odds) against the null hypothesis; and Page's sum, which is 0 where all looked well last,
    and where that was: the likeliest time of the change."""

    logs: tuple[float, ...] = (0.0,) * len(BETS)
    sums: tuple[float, ...] = (0.0,) * len(BETS)
    risen_ms: tuple[int, ...] = (0,) * len(BETS)

    def after(self, z: float, at_ms: int, log_odds: float) -> Evidence:
        """One block further, which began at `at_ms`; its score has mean 0 or less if all is well."""
        z = max(-CLIP, min(CLIP, z))
        most = log_odds + LOG_BETS + MAX_EXCESS
        logs, sums, risen = [], [], []
        for bet, log, known, since in zip(BETS, self.logs, self.sums, self.risen_ms, strict=True):
            ratio = bet * z - bet * bet / 2
            risen.append(since if known > 0 else at_ms)
            logs.append(min(_log1p_exp(log + ratio), most))
            sums.append(min(max(0.0, known + ratio), most))
        return Evidence(tuple(logs), tuple(sums), tuple(risen))

    def against(self, log_odds: float) -> int | None:
        """Since when (ms), if the odds are reached: the mixture's, with equal weights of the bets."""
        most = max(self.logs)
        return None if most < log_odds + LOG_BETS else self.risen_ms[self.logs.index(most)]


def _log1p_exp(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Values of one stretch of time: number, sum, sum of squares."""

    from_ms: int = 0
    to_ms: int = 0
    size: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, later: Block) -> Block:
        if not self.size:
            return later
        return Block(
            min(self.from_ms, later.from_ms),
            max(self.to_ms, later.to_ms),
            self.size + later.size,
            self.total + later.total,
            self.squares + later.squares,
        )

    @property
    def mean(self) -> float:
        return self.total / self.size

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.size - self.mean**2)


class Floor(NamedTuple):
    """The least that counts as one standard deviation of a history: while it is young, and later.

    `relative` to the history's mean, or else in the values' own unit.
    """

    young: float
    mature: float
    relative: bool = False


class Trail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value's own history, and the evidence that it has left it upwards or downwards.

    The history is of blocks as long as a thousandth of the season; the test is of blocks as short as `BLOCK`
    values, whose standard error is added to the history's spread. So a fast stream is judged at once, and yet
    by what days and weeks do to it.
    """

    since_ms: int = 0
    blocks: float = 0.0  # of history, at most SEASONS of them
    mean: float = 0.0
    spread: float = 0.0  # sum of squared deviations of the blocks' means
    grain: Block = Block()  # of history, not yet long enough
    held: tuple[float, ...] = ()
    part: Block = Block()  # of the test, not yet large enough
    last: float = 0.0  # the mean of the last block tested
    up: Evidence = Evidence()
    down: Evidence = Evidence()

    def renewed(self) -> Trail:
        """The history without the accusations."""
        return replace(self, part=Block(), up=Evidence(), down=Evidence())

    def after(
        self,
        new: Block,
        floor: Floor,
        season_ms: int,
        log_odds: float,
        *,
        size: float = BLOCK,
        share: bool = False,
    ) -> Trail:
        """The history with one more stretch. Of a `share` the standard error is that of the usual one: a block
        without any of what used to be there has no variance of its own, and is odd for that."""
        if not new.size:
            return self
        since_ms = self.since_ms or new.from_ms
        part = self.part.plus(new)
        update: dict[str, Any] = {"since_ms": since_ms, "part": part}
        if part.size >= size:
            update["part"], update["last"] = Block(), part.mean
            sd = self.deviation(floor, part.to_ms, season_ms)
            if sd is not None:
                variance = self._of_share(floor) if share else part.variance
                error = math.sqrt(sd * sd + DEPENDENCE * variance / part.size)
                z = (part.mean - self.mean) / error if error else 0.0
                update["up"] = self.up.after(z - SLACK, part.from_ms, log_odds)
                update["down"] = self.down.after(-z - SLACK, part.from_ms, log_odds)
        return replace(self, **update)._learned(new, floor, season_ms, size)

    def _of_share(self, floor: Floor) -> float:
        usual = min(max(self.mean, floor.mature), 1 - floor.mature)
        return usual * (1 - usual)

    def deviation(self, floor: Floor, now_ms: int, season_ms: int) -> float | None:
        """One standard deviation of the history's blocks; None while there are too few."""
        if self.blocks < MIN_HISTORY:
            return None
        mature = now_ms - self.since_ms > season_ms
        least = (floor.mature if mature else floor.young) * (abs(self.mean) if floor.relative else 1.0)
        return max(math.sqrt(self.spread / self.blocks), least)

    def _learned(self, new: Block, floor: Floor, season_ms: int, size: float) -> Trail:
        grain = self.grain.plus(new)
        if grain.size < size or grain.to_ms - grain.from_ms < season_ms // GRAINS:
            return replace(self, grain=grain)
        held = (grain.mean, *self.held)
        known = replace(self, grain=Block(), held=held[:HELD])
        return known if len(held) <= HELD else known._remembered(held[HELD], floor, grain.to_ms, season_ms)

    def _remembered(self, value: float, floor: Floor, now_ms: int, season_ms: int) -> Trail:
        sd = self.deviation(floor, now_ms, season_ms)
        if sd is not None:  # what is far out moves the history by three deviations at most
            value = max(self.mean - 3 * sd, min(self.mean + 3 * sd, value))
        blocks = min(self.blocks, float(SEASONS * GRAINS - 1))
        kept = blocks / self.blocks if self.blocks else 0.0
        step = value - self.mean
        mean = self.mean + step / (blocks + 1)
        spread = self.spread * kept + step * (value - mean)
        return replace(self, blocks=blocks + 1, mean=mean, spread=spread)
