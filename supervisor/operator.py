"""An operator's hand on one model: a verdict, written and read back in force."""

from __future__ import annotations

import asyncio

from ..models.routing import Routing
from ..topics.connection import Connection
from ..topics.log import Out, Record, Writer
from ..topics.messages import State, Verdict
from ..topics.tail import Tail
from .known import Clock, Pipeline, read, wall_clock
from .lifecycle import obeyed, operator_verdict

OBEY_S = 10.0  # an operator's verdict is read back within this, or the broker is in trouble


class Overruled(Exception):
    """Another verdict on the model came first; what was asked for has not happened."""

    def __init__(self, first: Verdict) -> None:
        super().__init__(f"{first.model}: {first.by} decided {first.state} meanwhile: {first.reason}")
        self.first = first


async def issue(
    connection: Connection,
    pipeline: Pipeline,
    model: str,
    state: State,
    reason: str,
    *,
    by: str,
    of_slice: str = "",
    clock: Clock = wall_clock,
    writer: Writer | None = None,
) -> Verdict:
    """An operator's verdict, written and read back in force; with `of_slice`, "name=value", on that slice alone.

    `writer` is started and stopped here. Raises KeyError for an undeclared model, Overruled if another
    verdict came first, and TimeoutError if the verdicts cannot be read or written in time: it may then
    be in force or not.
    """
    hand = _Hand(pipeline, model)
    tail = Tail(connection, hand.topic, hand.read)
    writer = writer or Writer(connection)
    try:
        async with asyncio.timeout(OBEY_S):
            await tail.start()
            await writer.start()
            return await _issue(hand, tail, writer, model, state, reason, by, of_slice, clock)
    finally:
        await tail.stop()
        await writer.stop()


async def _issue(
    hand: _Hand,
    tail: Tail,
    writer: Writer,
    model: str,
    state: State,
    reason: str,
    by: str,
    of_slice: str,
    clock: Clock,
) -> Verdict:
    running = asyncio.create_task(tail.run())
    try:
        await tail.sync()
        verdict = operator_verdict(hand.routing, model, state, reason, clock(), by, of_slice)
        await writer.write([Out(hand.topic, 0, model.encode(), verdict.encode())])
        await tail.sync()
    finally:
        running.cancel()
    first = next(v for v in hand.in_force if v.follows == verdict.follows)
    if first != verdict:
        raise Overruled(first)
    return verdict


class _Hand:
    """The verdicts in force on one model, as an operator's command reads them."""

    def __init__(self, pipeline: Pipeline, model: str) -> None:
        self.topic = f"{pipeline.name}.verdicts"
        self.routing = Routing.declared(pipeline.models, pipeline.serving)
        self.in_force: list[Verdict] = []
        self._model = model

    def read(self, record: Record) -> None:
        verdict = read(Verdict, record)
        if verdict is None:
            return
        self.routing = self.routing.obey(record.offset, verdict)
        if verdict.model == self._model and obeyed(self.routing, record.offset, verdict):
            self.in_force.append(verdict)
