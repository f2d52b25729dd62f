"""Answers outside the declared range, not finite, or none at all; and versions that the gate refused for it.

What a version says before its declared warm-up is served to nobody, and is no one's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from msgspec.structs import replace

from ...topics.messages import Vitals
from .fold import GATE_REFUSALS
from .health import Answers, Finding, Health, Refusal, Tally, onset, push, trim
from .limits import Limits

BOUNDS = "bounds"


def bounds(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    if vitals is not None:
        wanted = vitals.agent == "score" and not vitals.warming
        return _seen(health, vitals, limits, now) if wanted else health, []
    found = (_out(health, limits, now), _refused(health))
    return health, [f for f in found if f is not None]


def _seen(health: Health, vitals: Vitals, limits: Limits, now: int) -> Health:
    update: dict[str, Any] = {}
    if vitals.asked:
        bad = vitals.out_of_bounds + vitals.raised
        entry = Answers(vitals.from_ms, min(vitals.to_ms, now), vitals.version, vitals.asked, bad)
        window = push(health.answers, entry, limits.window_answers)
        update["answers"] = trim(window, limits.window_answers, now - limits.window_ms)
    refused = vitals.gate.split(":")[0].strip() in GATE_REFUSALS
    if refused and (health.refusal is None or health.refusal.version != vitals.version):
        update["refusal"] = Refusal(min(vitals.to_ms, now), vitals.version, vitals.gate)
    if _outlived(health.refusal, vitals.version, health.versions, limits):
        update["refusal"] = None
    return replace(health, **update) if update else health


def _outlived(refusal: Refusal | None, version: int, versions: Mapping[int, Tally], limits: Limits) -> bool:
    """Whether a later version passed the gate and has answered long enough to count: what the gate
    refused of a model that stayed in use, as the fallback does, is then over."""
    return refusal is not None and version > refusal.version and versions[version].asked >= limits.min_answers


def _out(health: Health, limits: Limits, now: int) -> Finding | None:
    if not any([a.bad for a in health.answers]):
        return None
    entries = [a for a in health.answers if a.to_ms >= now - limits.window_ms]
    asked, bad = sum(a.size for a in entries), sum(a.bad for a in entries)
    if not bad:
        return None
    burst = _burst(entries, limits)
    if not burst and (asked < limits.min_answers or bad <= limits.out_share * asked):
        return None
    seen, wrong = burst or (asked, bad)
    began = onset([a.bad - limits.out_share * a.size for a in entries])
    return Finding(
        BOUNDS,
        f"{wrong} of the last {seen} answers out of bounds, not finite or raised",
        entries[began].from_ms,
        {"answers": float(seen), "bad": float(wrong), "share": wrong / seen},
        grave=True,
    )


def _burst(entries: Sequence[Answers], limits: Limits) -> tuple[int, int] | None:
    """(answers, bad) of the shortest latest run that is bad enough by itself."""
    counts = accumulate(a.size for a in reversed(entries))
    bads = accumulate(a.bad for a in reversed(entries))
    for asked, bad in zip(counts, bads, strict=True):
        if asked >= limits.min_burst and bad >= limits.out_burst * asked:
            return asked, bad
    return None


def _refused(health: Health) -> Finding | None:
    if health.refusal is None:
        return None
    at_ms, version, reason = health.refusal
    told = f"the gate refused version {version}: {reason}"
    return Finding(BOUNDS, told, at_ms, {"version": float(version)}, grave=True)
