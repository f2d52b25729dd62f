"""What agents follow besides their inputs: the verdicts, with a lease on them, and the versions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack

import structlog
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from ..models.routing import Routing
from ..topics.log import Record
from ..topics.messages import Verdict
from ..topics.tail import Tail
from .agent import Runtime

log = structlog.get_logger(__name__)

RENEWALS_PER_LEASE = 4  # a lease survives two renewals that fail


class Verdicts:
    """The routing table as read from `verdicts`, and how fresh that knowledge is."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        pipeline = runtime.pipeline
        self.routing = Routing.declared(pipeline.models, pipeline.serving)
        topic = pipeline.topic("verdicts")
        self._tail = Tail(runtime.connection, topic, self._apply, monotonic=runtime.monotonic)
        self._reachable = True  # the last look at the end of the verdicts had an answer
        self._known_at = float("-inf")  # monotonic seconds: no verdict older than this is unknown

    async def follow(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
        """Reads every verdict there is; returns what must keep running."""
        stack.push_async_callback(self._tail.stop)
        await self._tail.start()
        await self._tail.read_up()
        self._runtime.telemetry.watch_lease(lambda: self._runtime.monotonic() - self._known_at)
        return [self._tail.run(), self._renew()]

    def _apply(self, record: Record) -> None:
        try:
            verdict = Verdict.model_validate_json(record.value or b"")
        except ValidationError as error:
            log.error("unreadable verdict", offset=record.offset, error=str(error))
            return
        self.routing = self.routing.obey(record.offset, verdict)
        self._show()

    def _show(self) -> None:
        telemetry = self._runtime.telemetry
        telemetry.verdict(self.routing.offset)
        for model, route in self.routing.routes.items():
            telemetry.state(model, route.state)

    def fresh(self) -> bool:
        """Whether the verdicts were read to their end within the lease."""
        return self._runtime.monotonic() - self._known_at < self._runtime.limits.lease_seconds

    async def lease(self) -> bool:
        """Whether a lease holds, taken anew if need be; waits no longer than a lease lasts."""
        if not self.fresh() and self._reachable:
            await self._sync()
        return self.fresh()

    async def _renew(self) -> None:
        while True:
            await self._sync()
            await asyncio.sleep(self._runtime.limits.lease_seconds / RENEWALS_PER_LEASE)

    async def _sync(self) -> None:
        """Without an answer the lease runs out by itself, and the fallback serves: at once, batch after
        batch, until a renewal finds the verdicts again."""
        try:
            # Not wait_for, which before Python 3.12 may swallow a cancellation: this task would never end.
            async with asyncio.timeout(self._runtime.limits.lease_seconds):
                known = await self._tail.sync()
        except (TimeoutError, KafkaError):
            self._reachable = False
        else:
            self._known_at = max(self._known_at, known)
            self._reachable = True
