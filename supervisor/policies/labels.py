"""Outcomes that fail to come, come late, come twice, or come for some only; judged of the whole pipeline."""

from __future__ import annotations

from msgspec.structs import replace

from ...topics.messages import Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import Block, Floor, Trail
from .shift import Column

LABELS = "labels"

JOINED = Floor(young=0.3, mature=0.1)  # of examples per prediction
REPEATED = Floor(young=0.05, mature=0.02)  # of outcomes that came before
DELAY = Floor(young=0.5, mature=0.25, relative=True)
PART = Floor(young=0.5, mature=0.25, relative=True)  # of a slice's share of the examples
LEAST_PART = 0.02  # of the examples; a slice that is rarer may well be absent
MAX_SLICES = 16  # judged by themselves, those that came first


class Memories(Memory, frozen=True):
    joined: Trail = Trail()
    repeated: Trail = Trail()
    delays: Trail = Trail()
    values: Column = Column()
    slices: dict[str, Trail] = {}


def labels(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(LABELS, Memories)
    if vitals is not None and vitals.agent == "join":
        known = _seen(known, vitals, limits)
        health = health.remember(LABELS, known)
    return health, _found(known, limits) if vitals is None else []


def _seen(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    counts, season_ms, odds = vitals.counts, limits.season_ms, limits.log_odds
    predictions, examples = counts.get("predictions", 0), counts.get("examples", 0)
    outcomes = sum(counts.get(fate, 0) for fate in ("joined", "early", "duplicate", "corrected", "late"))
    repeats = counts.get("duplicate", 0) + counts.get("corrected", 0)
    slices = dict(known.slices)
    for name in {*slices, *vitals.slices} if examples else ():
        if name in slices or len(slices) < MAX_SLICES:
            part = vitals.slices[name].labelled if name in vitals.slices else 0
            share = _share(vitals, part, examples)
            slices[name] = slices.get(name, Trail()).after(share, PART, season_ms, odds, share=True)
    d = vitals.delays
    delays = Block(vitals.from_ms, vitals.to_ms, d.count, d.total, d.squares)
    joined, repeated = _share(vitals, examples, predictions), _share(vitals, repeats, outcomes)
    return replace(
        known,
        joined=known.joined.after(joined, JOINED, season_ms, odds, share=True),
        repeated=known.repeated.after(repeated, REPEATED, season_ms, odds, share=True),
        delays=known.delays.after(delays, DELAY, season_ms, odds),
        values=known.values.after(vitals.sketch, vitals.from_ms, vitals.to_ms, limits),
        slices=slices,
    )


def _share(vitals: Vitals, part: int, whole: int) -> Block:
    return Block(vitals.from_ms, vitals.to_ms, whole, part, part)


def _found(known: Memories, limits: Limits) -> list[Finding]:
    """The gravest only: an alarm of this policy is one."""
    for trail, what in (
        (known.joined.down, f"{known.joined.last:.0%} of predictions find their outcome; it used to be "
         f"{known.joined.mean:.0%}"),
        (known.repeated.up, f"{known.repeated.last:.0%} of outcomes came before; it used to be "
         f"{known.repeated.mean:.0%}"),
        (known.delays.up, f"outcomes come after {known.delays.last:.0f} s; it used to be "
         f"{known.delays.mean:.0f} s"),
        *((each.down, f"{each.last:.1%} of examples are {name}; it used to be {each.mean:.1%}")
          for name, each in known.slices.items() if each.mean >= LEAST_PART),
    ):  # fmt: skip
        since_ms = trail.against(limits.log_odds)
        if since_ms is not None:
            return [Finding(LABELS, what, since_ms)]
    shifted = known.values.shifted(limits)
    if shifted is None:
        return []
    since_ms, index = shifted
    usual = known.values.moved.mean**2
    reason = f"labels shifted: stability index {index:.2f}; it used to be {usual:.2f}"
    return [Finding(LABELS, reason, since_ms, {"psi": index, "usual": usual})]
