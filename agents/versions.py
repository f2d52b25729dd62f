"""The versions that score serves: followed on `models`, examined by the gate, held by reference."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import AsyncExitStack, suppress
from threading import Thread
from typing import ParamSpec, TypeVar

import structlog

from ..models.gate import Admitted, Code, Refused, examine
from ..models.routing import Route
from ..models.serving import Serving
from ..models.unpickle import AllowList
from ..models.version import KEEP, Assembler, BadVersion
from ..topics.log import Record
from ..topics.messages import Features, Manifest
from ..topics.tail import Tail
from .agent import Runtime
from .follow import Verdicts

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

RECENT_FACTS = 256  # features kept for the gate: enough to see a share of 2 % out of bounds
EXAMINE_SECONDS = 60.0  # the largest version opens in 45; one that hangs holds up those after it no longer
LOOK_SECONDS = 0.1  # between looks for what a verdict changed; a new version is looked at when it comes


class _Daemons(Executor):
    """A thread for each call, which the end of the process does not wait for: the call may never return."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # who gives it up leaves it to end as it may

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  raised where the call is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        Thread(target=run, daemon=True, name="examining a version").start()
        return future


_DAEMONS = _Daemons()


class Versions:
    """Swaps the newest admitted version of each model's line into `serving`."""

    def __init__(self, runtime: Runtime, verdicts: Verdicts) -> None:
        self._runtime = runtime
        self._verdicts = verdicts
        self._library = Assembler()
        self._allow = AllowList(runtime.pipeline.trusted)
        self._tail = Tail(runtime.connection, runtime.pipeline.topic("models"), self._apply)
        self._admitted: dict[
            str, tuple[int, str]
        ] = {}  # model -> number and hash of the last version admitted
        self._refused: dict[
            str, set[tuple[int, str]]
        ] = {}  # model -> numbers and hashes of its newest versions
        self._news = asyncio.Event()
        self.serving: Mapping[str, Serving] = {}
        self.refusals: dict[str, tuple[Manifest, str]] = {}  # since they were last taken
        self.recent: deque[Features] = deque(maxlen=RECENT_FACTS)

    async def follow(self, stack: AsyncExitStack) -> list[Awaitable[None]]:
        """Reads every version there is and admits the newest; returns what must keep running."""
        stack.push_async_callback(self._tail.stop)
        await self._tail.start()
        await self._tail.read_up()
        await self._look()
        return [self._tail.run(), self._admit()]

    def _apply(self, record: Record) -> None:
        try:
            if self._library.feed(record.key or b"", record.value) is not None:
                self._news.set()
        except BadVersion as error:
            log.error("unreadable version", offset=record.offset, error=str(error))

    async def _admit(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._news.wait()
            self._news.clear()
            await self._look()

    async def _look(self) -> None:
        for model, route in self._verdicts.routing.routes.items():
            manifest = self._newest(model, route)
            if manifest is not None:
                await self._consider(manifest)

    def _newest(self, model: str, route: Route) -> Manifest | None:
        """The newest version of the line in force that was not refused, unless it is the one admitted last.

        One that was refused does not stand in the way of those that are published under lesser numbers:
        whose it is, nobody can say.
        """
        of_line = [m for m in self._library.manifests(model) if m.line == route.line][-KEEP:]
        refused, serving = self._refused.get(model, ()), self.serving.get(model)
        least = serving.version if serving is not None and serving.line == route.line else 0
        for manifest in reversed(of_line):
            at = (manifest.version, manifest.sha256)
            if manifest.version < least or at == self._admitted.get(model):
                return None
            if at not in refused:
                return manifest
        return None

    async def _consider(self, manifest: Manifest) -> None:
        try:
            blob = self._library.unchecked(manifest.model, manifest.version)  # the gate checks them
            # A forest takes a second to open: facts are answered meanwhile.
            async with asyncio.timeout(EXAMINE_SECONDS):
                admitted = await asyncio.get_running_loop().run_in_executor(
                    _DAEMONS, self._examine, manifest, blob, list(self.recent)
                )
        except TimeoutError:
            self._refuse(manifest, Code.TOO_SLOW.value, f"no answer within {EXAMINE_SECONDS:.0f} s")
        except Refused as refused:
            self._refuse(manifest, refused.code.value, str(refused))
        except BadVersion as error:
            self._refuse(manifest, "bad_bytes", str(error))
        else:
            self._swap(admitted)

    def _examine(self, manifest: Manifest, blob: bytes, recent: list[Features]) -> Admitted:
        pipeline = self._runtime.pipeline
        return examine(
            manifest,
            blob,
            key=self._runtime.signing_key,
            fingerprint=pipeline.fingerprint,
            allow=self._allow,
            task=pipeline.task,
            bounds=(pipeline.bounds.low, pipeline.bounds.high),
            recent=recent,
            clock=self._runtime.monotonic,
        )

    def _refuse(self, manifest: Manifest, code: str, why: str) -> None:
        known = self._library.manifests(manifest.model)[-KEEP:]
        self._refused[manifest.model] = self._refused.get(manifest.model, set()).intersection(
            (m.version, m.sha256) for m in known
        ) | {(manifest.version, manifest.sha256)}
        self.refusals[manifest.model] = (manifest, code)
        self._runtime.telemetry.refused(manifest.model, code)
        log.warning("version refused", model=manifest.model, version=manifest.version, reason=why)

    def _swap(self, admitted: Admitted) -> None:
        m = admitted.manifest
        self._admitted[m.model] = (m.version, m.sha256)
        serving = Serving(m.model, m.version, m.line, m.learned, admitted.scorer, admitted.us_per_fact)
        self.serving = {**self.serving, m.model: serving}
        self._runtime.telemetry.serving(m.model, m.version)
