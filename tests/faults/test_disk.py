"""A broker whose disk is full acknowledges nothing; once there is room, agents go on by themselves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster, KafkaError
from tests.faults.trial import Trial
from tests.system.harness import WAIT_S

DISK_MB = 128  # what a trial writes twice over, the supervisor's table above all
CHUNK = 64 * 1024  # bytes
FULL_S = 6.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    try:
        made = KafkaCluster(disk_mb=DISK_MB)
    except KafkaError as error:
        pytest.skip(str(error).splitlines()[0])
    with made:
        yield made


@pytest.fixture
def broker(cluster: KafkaCluster) -> Broker:
    return Broker(cluster.address, transactions=True)


def fill(folder: Path) -> Path:
    """Takes all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        size = CHUNK
        while size:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
            except OSError:
                size //= 2
    return ballast


async def test_disk_full(trial: Trial, cluster: KafkaCluster) -> None:
    """Kafka takes its one log folder offline and ends; it is started again when there is room."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    ballast = await asyncio.to_thread(fill, cluster.data(1))
    async with asyncio.timeout(WAIT_S):
        while cluster.running(1):  # noqa: ASYNC110  the broker is another process
            await asyncio.sleep(0.1)
    await asyncio.sleep(trial.rng.uniform(0.5, FULL_S))
    ballast.unlink()
    await asyncio.to_thread(cluster.start, 1)
    trial.mark()
    await trial.recovered()
    await trial.quiet()
