"""A CancelledError that nobody asked for.

A client of the log may cancel a future of its own that somebody else awaits. The CancelledError looks to
asyncio like an orderly end: a task group goes on without its child, and nobody hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Stray(Exception):
    """Something that was awaited was cancelled from elsewhere."""


@contextmanager
def named() -> Iterator[None]:
    """Raises Stray in place of a CancelledError that the current task was not asked for."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Stray("cancelled, and nobody asked for it") from error
