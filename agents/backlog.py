"""How far score is behind, as its vitals tell: learning makes way for serving until it is not."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog
from aiokafka import TopicPartition
from pydantic import ValidationError

from ..topics.log import Reader, Record
from ..topics.messages import WAITED
from ..topics.store import Inspector
from ..topics.vitals import unpack
from .agent import POLL_MS, Runtime

log = structlog.get_logger(__name__)

HEARD_WINDOWS = 5  # windows of vitals that a replica's word holds: from one that died no other comes
BATCH = 500  # vitals taken at once; a pipeline of a thousand models writes some thousand a second


class Backlog:
    """Listens to score's vitals from now on."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._limit_ms = runtime.pipeline.backlog / timedelta(milliseconds=1)
        self._holds = HEARD_WINDOWS * runtime.limits.vitals_seconds
        self._behind: dict[str, float] = {}  # replica -> monotonic seconds of its last word that it is behind

    async def follow(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
        """Returns what must keep running."""
        reader = Reader(self._runtime.connection)
        stack.push_async_callback(reader.stop)
        await reader.start()
        vitals = TopicPartition(self._runtime.pipeline.topic("vitals"), 0)
        async with Inspector(self._runtime.connection) as inspector:
            _, end = await inspector.range(vitals)
        reader.read_from({vitals: end})
        return [self._listen(reader, vitals)]

    async def _listen(self, reader: Reader, vitals: TopicPartition) -> None:
        while True:
            got = await reader.poll([vitals], max_records=BATCH, timeout_ms=POLL_MS)
            for record in got.get(vitals, ()):
                self.note(record)
            self._runtime.telemetry.learning_waits(self.stands())

    def note(self, record: Record) -> None:
        if record.key:  # of models
            return
        try:
            (vitals, *_) = unpack(record.value or b"")
        except ValidationError as error:
            log.error("unreadable vitals", offset=record.offset, error=str(error))
            return
        if vitals.agent != "score" or WAITED not in vitals.counts:
            return
        if vitals.counts[WAITED] > self._limit_ms:
            self._behind[vitals.replica] = self._runtime.monotonic()
        else:
            self._behind.pop(vitals.replica, None)

    def stands(self) -> bool:
        """Whether a replica of score said lately that facts wait for longer than the pipeline's `backlog`."""
        now = self._runtime.monotonic()
        self._behind = {r: at for r, at in self._behind.items() if now - at < self._holds}
        return bool(self._behind)
