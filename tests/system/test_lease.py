"""Without the verdicts no model is asked: the constant answers every fact until they can be read again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec
import pytest

from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.messages import Prediction, Reason, Source
from tests.brokers.broker import Broker
from tests.system import account
from tests.system.harness import Record, World, now_ms, world
from tests.system.play import finished, flow, onward

LEASE_MS = 1_000  # no model is asked without one younger than this


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """Nobody else's: its leaders are moved."""
    with EmbeddedBroker() as broker:
        yield broker


def decoded(records: list[Record]) -> list[tuple[int, Prediction]]:
    return [(r.timestamp, msgspec.json.decode(r.value or b"", type=Prediction)) for r in records]


def learned_answers(world: World) -> bool:
    """Whether `learned` is among those who answered last."""
    return any(p.model == "learned" for _, p in decoded(world.outside["predictions"][-20:]))


async def test_no_model_without_verdicts(own_broker: EmbeddedBroker) -> None:
    broker = Broker(own_broker.address, transactions=False, embedded=own_broker)
    onwards = onward(0)
    async with world(broker, "flights") as it:
        verdicts = it.pipeline.topic("verdicts")
        async with it.running() as process:
            await it.feed(islice(onwards, 2_400))
            await flow(it, onwards, lambda: learned_answers(it), "`learned` serves")

            own_broker.set_leader(verdicts, 0, -1)
            cut = now_ms()
            said = it.outside["predictions"]

            while len(said) == 0 or said[-1].timestamp < cut + 2 * LEASE_MS:
                await it.send(islice(onwards, 40))
                await it.outside.until(
                    lambda: it.outside.settled() == it.sent and account.all_answered(it.outside),
                    "facts are answered without verdicts",
                )
            own_broker.set_leader(verdicts, 0, 1)
            healed = now_ms()
            await flow(it, onwards, lambda: learned_answers(it), "`learned` serves again")
            assert not any(process.unready().values())
            await finished(it, it.sent)
        await it.outside.read_up()
        account.adds_up(it.pipeline, it.outside)

        without = [p for at, p in decoded(said) if cut + LEASE_MS < at < healed]
        assert len(without) >= 10
        assert {(p.source, p.reason, p.model, p.value, p.version) for p in without} == {
            (Source.FALLBACK, Reason.NO_LEASE.value, "constant", it.pipeline.constant, 0)
        }
        assert any(p.source is Source.MODEL for at, p in decoded(said) if at < cut)
