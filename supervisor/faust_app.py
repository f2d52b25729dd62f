"""Faust as the supervisor needs it: quick to notice a death, to leave, and to lose nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from faust.tables import TableManager
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Transport
from faust.transport.drivers.aiokafka import Consumer as _FaustConsumer

from ..topics.connection import Connection
from ..topics.log import give_up_place

SESSION_S = 6.0  # of the group; Faust's own 60 s would leave a dead supervisor's partition unheard
HEARTBEAT_S = 1.5  # four per session
# Nobody reads the table's changelog as a stream, nor vitals while there are none; Faust would call both
# hanging after 300 s, and say so for ever. A supervisor that hears nothing is noticed by its seat in the group.
IDLE_S = 10 * 365 * 86_400.0
REQUEST_S = 15.0  # of one request, for its connection may be dead; twice as long as a rebalance
COMMIT_S = 1.0  # between commits of vitals; what is repeated after a crash is known by its spans
FETCH_WAIT_MS = 250  # the embedded broker holds an empty fetch this long; Faust's own 1500 would show
LEAVE_S = 2.0  # for what is starting to be up before it is stopped
CUTS = 3  # of Faust's connections when it does not leave: aiokafka connects anew for the next request
CUT_S = 0.3  # between two of them


def application(name: str, connection: Connection, seat: str | None) -> faust.App:
    """With a table in memory, and nothing declared yet. `seat` is its place in the group, that a next one takes at once."""
    app = App(
        name,
        **connection.faust_options(),
        consumer_group_instance_id=seat,
        web_enabled=False,
        autodiscover=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        broker_session_timeout=SESSION_S,
        broker_rebalance_timeout=SESSION_S,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_commit_interval=COMMIT_S,
        broker_request_timeout=REQUEST_S,
        stream_processing_timeout=IDLE_S,
        stream_wait_empty=False,  # for what is not acknowledged: that waits for health to be written
        store="memory://",
        TableManager=_Tables,
    )
    app.transport = _Transport(app.conf.broker_consumer, app)
    app.on_rebalance_complete.connect(_hold_flow)
    return app


class App(faust.App):
    def _create_directories(self) -> None:
        """None: the table is in memory, and the directory that a supervisor runs in may not be written."""


class _Tables(TableManager):
    async def on_start(self) -> None:
        """Faust waits a second here for tables that are declared as it starts; ours is declared, and nobody judges meanwhile."""
        await self._update_channels()
        await self.recovery.start()


async def _hold_flow(app: Any, /, *_: Any, **__: Any) -> None:
    """Lets nothing through until Faust has sought what is committed, and resumes the flow itself.

    It lets partitions go on before it seeks. What is fetched in between is known as read by the time that
    the seek has it fetched again, and thrown out of the agent's queue at the resumption: lost.
    """
    app.consumer.stop_flow()


class _Thread(AIOKafkaConsumerThread):
    """Faust's consumer with a shorter wait: the embedded broker holds an empty fetch to its end."""

    def _create_worker_consumer(self, transport: Transport) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        assert hasattr(consumer, "_fetch_max_wait_ms"), "aiokafka keeps it elsewhere now"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def stop(self) -> None:
        """Returns once the thread has ended: mode ignores a stop that comes while it starts."""
        worker = self._thread
        if worker is not None:
            await holds(lambda: self.started or not worker.is_alive(), LEAVE_S)
        await super().stop()
        if worker is not None:
            await asyncio.to_thread(worker.join, LEAVE_S)

    async def on_thread_stop(self) -> None:
        """Leaves the group; cuts the connections if that takes longer than LEAVE_S.

        aiokafka's consumer does not stop before its JoinGroup is answered, for which a broker may
        take a session's time and more.
        """
        if self._consumer is not None:
            give_up_place(self._consumer)
        leaving = asyncio.create_task(super().on_thread_stop())
        done, _ = await asyncio.wait([leaving], timeout=LEAVE_S)
        for _cut in range(CUTS):
            if not done and self._consumer is not None:
                await self._consumer._client.close()
                done, _ = await asyncio.wait([leaving], timeout=CUT_S)
        if not done:
            leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer._client.close()


async def holds(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for what another library's state says, as long as that."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110  Faust tells nobody
        await asyncio.sleep(0.02)


class Consumer(_FaustConsumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class _Transport(Transport):
    Consumer = Consumer
