"""Ends a call of the user's code that does not return: a feature, a fold, an estimator that predicts or learns.

Such a call has the event loop's own thread, so nothing but a signal can reach it. The process's alarm clock
goes off at a steady pace; a call that it finds at work twice in a row gets an exception, which is contained
where the call is made, like any that the user's code raises. This ends what waits, sleeps or loops in Python;
it does not end what loops in C without ever looking at signals, nor what runs in another thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from ..models.fastpath import Scorer
from ..models.features import COMPILED
from ..models.student import contained

log = structlog.get_logger(__name__)

# Between two looks. A call is ended after one to two of them: a thousand times what the gate allows a model for
# a fact, and less than the least session timeout (6 s), so that its process keeps its partitions.
LOOK_SECONDS = 1.0

# Where the user's code is called, and what it raises is contained.
_CALLERS = frozenset({Scorer._one.__code__, contained.__code__})


class Hung(Exception):
    """A call did not return."""


class _Watch:
    def __init__(self) -> None:
        self._seen: FrameType | None = (
            None  # the call that the last look found; held, so that no other is taken for it
        )

    def look(self, _: int, frame: FrameType | None) -> None:
        call = _called(frame)
        if call is None or call is not self._seen:
            self._seen = call
            return
        self._seen = None
        assert frame is not None
        where = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        log.error("ended a call that did not return", at=where, seconds=LOOK_SECONDS)
        raise Hung(f"{where} did not return for {LOOK_SECONDS:.0f} s")


def _called(frame: FrameType | None) -> FrameType | None:
    """The frame of the user's call, if one is at work."""
    inner = None
    while frame is not None:
        if frame.f_code in _CALLERS or frame.f_code.co_filename == COMPILED:
            return inner
        inner, frame = frame, frame.f_back
    return None


@contextmanager
def ended() -> Iterator[None]:
    """While it is entered, calls that hang are ended. Elsewhere than on the main thread, or where the alarm is
    another's, nothing is."""
    mine = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not mine or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGALRM, _Watch().look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
