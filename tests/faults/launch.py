"""`riverkeeper run` with one named point armed: the process ends or stops itself as it passes there.

    FAULT_POINT   a key of POINTS
    FAULT_NTH     which passing counts; 1 is the first
    FAULT_DO      "kill" (kill -9 of itself) or "stop" (SIGSTOP of itself; SIGCONT lets it go on)

Production code knows nothing of this: its boundaries are wrapped here, by name. A name that is no longer
there ends the process as it starts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import EndTxnRequest

from riverkeeper.agents.agent import Agent
from riverkeeper.agents.learn import LearnWork
from riverkeeper.supervisor.app import Supervisor
from riverkeeper.topics import log
from riverkeeper.topics.log import FencedWriter, Reader, Writer
from riverkeeper.topics.store import Inspector

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Point(NamedTuple):
    """A boundary in production code, and which of its calls count: `when(result, *arguments)`."""

    owner: Any
    name: str
    side: Literal["before", "after"]
    when: Callable[..., object] = lambda *_: True


def _are_outputs(_: object, __: Writer, outs: Any) -> bool:
    """Vitals go through the same writer, and are no outputs."""
    return any(not out.topic.endswith(".vitals") for out in outs)


def _carries_outputs(_: object, __: AIOKafkaClient, ___: int, request: Any) -> bool:
    if not isinstance(request, ProduceRequest) or request._transactional_id is not None:
        return False
    return any(not topic.endswith(".vitals") for topic, _ in request._topics)


# In the order of a take-over, a step, a checkpoint, a hand-over.
POINTS = {
    "fencing": Point(FencedWriter, "start", "before"),
    "fenced": Point(FencedWriter, "start", "after"),
    "store-read": Point(Inspector, "read_table", "after"),
    "fetched": Point(Reader, "poll", "after", lambda records, *_: records),
    "outputs-ready": Point(Writer, "write", "before", _are_outputs),
    "outputs-written": Point(AIOKafkaClient, "send", "after", _carries_outputs),  # the answer is not seen
    "outputs-acknowledged": Point(Writer, "write", "after", _are_outputs),
    "version-made": Point(LearnWork, "prepare", "after", lambda _, work, *__: work._sealed),
    "transaction-begun": Point(AIOKafkaProducer, "begin_transaction", "after"),
    "first-batch": Point(
        log, "_deliver_round", "after", lambda _, producer, __: producer._txn_manager.transactional_id
    ),
    "state-delivered": Point(AIOKafkaProducer, "commit_transaction", "before"),
    "commit-written": Point(  # the answer is not seen
        AIOKafkaClient, "send", "after", lambda _, __, ___, request: isinstance(request, EndTxnRequest)
    ),
    "committed": Point(FencedWriter, "commit", "after"),
    "handing-over": Point(Agent, "_part_with", "before"),
    "handed-over": Point(Agent, "_part_with", "after"),
    "verdict-ready": Point(Supervisor, "_write", "before", lambda _, __, verdicts, *___: verdicts),
    "verdict-written": Point(Supervisor, "_write", "after", lambda _, __, verdicts, *___: verdicts),
}


def arm(point: Point, nth: int, do: signal.Signals) -> None:
    left = nth

    def passed(*call: object) -> None:
        nonlocal left
        left -= bool(point.when(*call))
        if left == 0:
            left = -1  # who goes on after a stop passes in peace
            os.kill(os.getpid(), do)

    boundary: Callable[..., Awaitable[Any]] = getattr(point.owner, point.name)

    @wraps(boundary)
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        if point.side == "before":
            passed(None, *arguments)
        result = await boundary(*arguments, **named)
        if point.side == "after":
            passed(result, *arguments)
        return result

    setattr(point.owner, point.name, wrapped)


if __name__ == "__main__":
    from riverkeeper.cli import main

    arm(
        POINTS[os.environ["FAULT_POINT"]],
        int(os.environ["FAULT_NTH"]),
        SIGNALS[os.environ["FAULT_DO"]],
    )
    main(prog_name="riverkeeper")
