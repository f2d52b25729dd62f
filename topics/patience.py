"""How long a read may stand still before somebody is told why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .catalog import Catalog
from .connection import Connection

STILL_SECONDS = 30.0  # a partition that lost its leader has another one in a third of that


class NoAnswer(TimeoutError):
    """A topic is there, and gives no more of what it said it holds."""


class Patience:
    """Of one read of topics: it may take as long as it gets on, and stand still for STILL_SECONDS."""

    def __init__(self, connection: Connection, *topics: str) -> None:
        self._connection = connection
        self._topics = topics
        self._place: object = None
        self._since = 0.0

    async def at(self, place: object) -> None:
        """The read has come so far. Raises TopicMissing or NoAnswer."""
        now = asyncio.get_running_loop().time()
        if place != self._place:
            self._place, self._since = place, now
        elif now - self._since >= STILL_SECONDS:
            raise await self._reason(f"nothing after {place}")

    @asynccontextmanager
    async def answer(self, what: str) -> AsyncIterator[None]:
        """Bounds what is asked inside. Raises TopicMissing or NoAnswer."""
        try:
            async with asyncio.timeout(STILL_SECONDS):
                yield
        except TimeoutError as error:
            raise await self._reason(what) from error

    async def _reason(self, what: str) -> NoAnswer:
        """Raises TopicMissing if that is why."""
        async with Catalog(self._connection) as catalog:
            for topic in self._topics:
                await catalog.partition_count(topic)
        named = ", ".join(self._topics)
        return NoAnswer(f"{named}: {what} for {STILL_SECONDS:.0f} s; has each partition a leader?")
