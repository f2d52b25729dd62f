"""What a seed decides beforehand: who works on what, on which network, and how much may go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from riverkeeper.agents.agent import Limits

SCARCE = 6  # predictions that may wait; with an outcome for each, and room for those, none waits for ever

# Agents, and how often. Where ingest is not among them, its outputs are written as zombies would write them.
CASTS = {
    ("ingest",): 3,
    ("score",): 2,
    ("join",): 2,
    ("learn",): 2,
    ("ingest", "score"): 3,
    ("ingest", "score", "join"): 2,
    ("ingest", "score", "join", "learn"): 1,
}
FAULTS = ("crash", "pause", "stall", "cut", "stop")


@dataclass(frozen=True)
class Plan:
    cast: tuple[str, ...]
    processes: int
    events: int
    seconds: float  # of writing and of faults
    limits: Limits
    latency: float  # seconds, one way
    stragglers: float  # share of messages that take a hundred times as long
    loss: float  # share of messages
    refusals: float  # share of batches that the broker refuses for good
    lateness: float  # seconds a timer may come late
    fuse: float  # steps between a process's faults, on average
    faults: tuple[str, ...]
    most_faults: int
    outages: int  # partitions that lose their leader for a while
    outage: float  # seconds of the longest of these
    compactions: int
    verdicts: int
    forged: bool  # whether somebody else's version appears among the models
    delivery: str
    max_pending: int
    stop_in_order: bool

    @classmethod
    def drawn(cls, random: Random) -> Plan:
        """Each kind of trouble is left out of many runs, for one may hide another."""
        return cls(
            cast=random.choices([*CASTS], [*CASTS.values()])[0],
            processes=random.choice((2, 2, 3)),
            events=random.randint(8, 24),
            seconds=random.uniform(1.5, 4.0),
            limits=Limits(
                max_batch=random.choice((1, 2, 5, 2_000)),
                checkpoint_seconds=random.choice((0.0, 0.1, 0.5)),
                checkpoint_records=random.choice((1, 3, 50_000)),
                vitals_seconds=random.choice((0.5, 2.0)),
                session_timeout_ms=random.choice((600, 1_500)),
                lease_seconds=random.choice((0.3, 0.5)),
            ),
            latency=random.choice((0.0005, 0.002, 0.02)),
            stragglers=random.choice((0.0, 0.0, 0.02, 0.1)),
            loss=random.choice((0.0, 0.0, 0.01, 0.05)),
            refusals=random.choice((0.0, 0.0, 0.0, 0.02)),
            lateness=random.choice((0.0, 0.05, 0.2)),
            fuse=random.choice((40.0, 150.0, 500.0)),
            faults=tuple(kind for kind in FAULTS if random.random() < 0.6) or ("crash",),
            most_faults=random.randint(1, 8),
            outages=random.choice((0, 0, 1, 3)),
            outage=35.0 if random.random() < 0.03 else random.choice((0.3, 2.0)),
            compactions=random.choice((0, 2, 6)),
            verdicts=random.choice((0, 0, 1, 3)),
            forged=random.random() < 0.2,
            delivery="transactional" if random.random() < 0.15 else "origin",
            max_pending=random.choice((SCARCE, 200_000, 200_000)),
            stop_in_order=random.random() < 0.3,
        )
