"""Health in hand, and in the table: written now and then, for it is fifty times as large as what changes it.

Vitals are acknowledged once what they changed stands in the changelog. So a crash has some of them read again,
which are known by their spans, and forgets none.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping

import structlog
from msgspec import DecodeError, json, structs

from .policies import Health

log = structlog.get_logger(__name__)

# of one model's health, a tenth of what a record may hold; built-in policies keep it below 100 kB.
MAX_BYTES = 256_000
TURN = 20  # healths encoded before other work gets its turn; a millisecond
LOG_KEY = "/"  # of the table, for the pipeline as a whole; no model may be named so


class Healths:
    """By model, "" for the pipeline as a whole, over the table's values."""

    def __init__(self, table: MutableMapping[str, bytes]) -> None:
        self._table = table
        self._known: dict[str, tuple[bytes | None, Health]] = {}  # the table's value that each goes on from
        self._changed: set[str] = set()

    def of(self, model: str) -> Health:
        """In hand, if the table has not changed under it: then another supervisor has been at work."""
        value = self._table.get(model or LOG_KEY)
        known = self._known.get(model)
        if known is not None and known[0] is value:
            return known[1]
        health = Health(model=model) if value is None else _decoded(model, value)
        self._known[model] = (value, health)
        self._changed.discard(model)
        return health

    def put(self, model: str, health: Health) -> None:
        """In place of what `of` gave."""
        self._known[model] = (self._known[model][0], health)
        self._changed.add(model)

    def forget(self) -> None:
        """Goes back to what the table holds; the vitals since come again."""
        self._known.clear()
        self._changed.clear()

    async def keep(self) -> None:
        """Writes what has changed to the table."""
        for n, model in enumerate(sorted(self._changed), start=1):
            value, health = _bounded(self._known[model][1])
            self._table[model or LOG_KEY] = value
            self._known[model] = (value, health)
            if n % TURN == 0:
                await asyncio.sleep(0)
        self._changed.clear()


def _decoded(model: str, value: bytes) -> Health:
    """What another release wrote may not be readable: the evidence is then gathered anew."""
    try:
        return Health.decode(value)
    except DecodeError as error:
        log.warning("unreadable health", model=model, error=str(error))
        return Health(model=model)


def _bounded(health: Health) -> tuple[bytes, Health]:
    value = health.encode()
    if len(value) > MAX_BYTES:
        largest = max(health.memory, key=lambda p: len(json.encode(health.memory[p])), default="")
        log.error("health too large: forgotten", model=health.model, policy=largest, size=len(value))
        health = structs.replace(health, memory={p: m for p, m in health.memory.items() if p != largest})
        value = health.encode()
    return value, health
