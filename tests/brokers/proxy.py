"""A TCP proxy on loopback whose connections can be cut, slowed down and left half-open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

CHUNK = 65_536  # bytes passed on at a time


class Proxy:
    """Leads local ports to other local ports. How it treats what passes may be changed at any time."""

    def __init__(self, routes: Mapping[int, int]) -> None:
        self._routes = dict(routes)
        self._servers: list[asyncio.Server] = []
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = _open()
        self._refusing = False
        self._delay = 0.0
        self.passed = 0  # bytes, both ways
        self.accepted = 0  # connections

    async def start(self) -> None:
        for port, target in self._routes.items():

            def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int = target
            ) -> None:
                link = asyncio.ensure_future(self._link(reader, writer, target))
                self._links.add(link)
                link.add_done_callback(self._links.discard)

            self._servers.append(await asyncio.start_server(serve, "127.0.0.1", port))

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next pass of the loop

    def cut(self) -> None:
        """Resets every connection; those that come are reset, too, until `mend`."""
        self._refusing = True
        self.sever()

    def sever(self) -> None:
        """Resets every connection there is; clients may connect anew at once."""
        for writer in self._writers:
            writer.transport.abort()

    def hang(self) -> None:
        """Half-open: connections stand and are made, and nothing passes any more in either direction."""
        self._passing.clear()

    def strand(self) -> None:
        """Nothing passes any more on the connections there are, for good; new ones are as good as ever.

        So it is when the machine at the other end is gone, or a firewall has forgotten them.
        """
        self._passing.clear()
        self._passing = _open()

    def slow(self, seconds: float) -> None:
        """Each chunk, either way, comes this much later."""
        self._delay = seconds

    def mend(self) -> None:
        """Everything passes at once; what was held up passes, too."""
        self._refusing = False
        self._delay = 0.0
        self._passing.set()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            with suppress(OSError):
                if not self._refusing:
                    await self._joined(reader, writer, target)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        onward, away = await asyncio.open_connection("127.0.0.1", target)
        self._writers.add(away)
        both = [
            asyncio.ensure_future(self._pass(reader, away, self._passing)),
            asyncio.ensure_future(self._pass(onward, writer, self._passing)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            away.transport.abort()
            self._writers.discard(away)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            await passing.wait()
            writer.write(data)
            await writer.drain()
            self.passed += len(data)


def _open() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@asynccontextmanager
async def proxy(routes: Mapping[int, int]) -> AsyncIterator[Proxy]:
    it = Proxy(routes)
    await it.start()
    try:
        yield it
    finally:
        await it.stop()
