"""Replicas come, go, stop for a while and obey: each fact keeps its one first prediction throughout."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import msgspec

from riverkeeper.supervisor.operator import issue
from riverkeeper.topics.messages import Prediction, Reason, Source, State, Verdict
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.system import account
from tests.system.harness import Event, Replica, Watch, World, cause, processes, world
from tests.system.play import finished, flow, onward, stormy

REST = ("ingest", "join", "learn", "supervisor")
ORIGINS = 3  # partitions of `facts` in use: one per airport
OBEYED_MS = 1_000  # within which every replica obeys a verdict


def owners(world: World) -> dict[int, str]:
    """By partition of `facts`, the replica that answered there last, as its vitals say."""
    found: dict[int, str] = {}
    for vitals in world.outside.vitals():
        if vitals.agent == "score":
            found = {span.partition: vitals.replica for span in vitals.spans} | found
        if len(found) == ORIGINS:
            break
    return found


def at_work(world: World) -> set[str]:
    return set(owners(world).values())


def watching(replicas: list[Replica]) -> Watch:
    def watch() -> None:
        for replica in replicas:
            replica.check()

    return watch


async def test_one_killed_and_one_added(kafka: KafkaCluster) -> None:
    events, retries = stormy(2_000)
    onwards = chain(events, onward(2_000))
    async with world(Broker(kafka.address, transactions=True), "flights") as it:
        with processes() as replicas:
            watch = watching(replicas)
            replicas += [it.spawn(RIVERKEEPER_REPLICA=name) for name in ("a", "b")]
            await flow(it, onwards, lambda: at_work(it) == {"a", "b"}, "both score", watch)
            await it.feed(islice(onwards, max(0, len(events) - it.sent)), retries, watch)
            await it.send(islice(onwards, 200))
            replicas[0].kill()
            await flow(it, onwards, lambda: at_work(it) == {"b"}, "the other takes over", watch)
            replicas.append(it.spawn(RIVERKEEPER_REPLICA="c"))
            await flow(it, onwards, lambda: at_work(it) == {"b", "c"}, "the new one takes part", watch)
            await finished(it, it.sent - retries, watch)
            for replica in replicas[1:]:
                await replica.stop()
        await it.outside.read_up()
        found = account.adds_up(it.pipeline, it.outside)
        assert len(found.facts) + len(found.outcomes) + found.dead + retries == it.sent
        account.learned_once(it.outside, account.manifests(it.outside), to_the_end=True)


async def scored_by_both(world: World, replicas: list[Replica], events: Iterator[Event]) -> None:
    """Two replicas of score at work, one for the rest, and `learned` serving."""
    watch = watching(replicas)
    replicas += [world.spawn(("score",), RIVERKEEPER_REPLICA=name) for name in ("a", "b")]
    replicas.append(world.spawn(REST))
    await world.feed(islice(events, 2_000), watch=watch)
    await flow(world, events, lambda: at_work(world) == {"a", "b"}, "both replicas score", watch)
    await flow(world, events, lambda: newest(world).model == "learned", "`learned` has its traffic", watch)


def newest(world: World) -> Prediction:
    return msgspec.json.decode(world.outside["predictions"][-1].value or b"", type=Prediction)


async def test_a_paused_replica_is_fenced(kafka: KafkaCluster) -> None:
    onwards = onward(0)
    async with world(Broker(kafka.address, transactions=True), "flights") as it:
        with processes() as replicas:
            watch = watching(replicas)
            await scored_by_both(it, replicas, onwards)
            await it.send(islice(onwards, 400))
            replicas[0].pause()  # with some of these in hand
            await flow(it, onwards, lambda: at_work(it) == {"b"}, "the other takes over", watch)
            await finished(it, it.sent, watch)
            replicas[0].resume()
            await flow(it, onwards, lambda: fenced_and_back(replicas[0]), "it is fenced, and rejoins", watch)
            await flow(it, onwards, lambda: at_work(it) == {"a", "b"}, "both score again", watch)
            await finished(it, it.sent, watch)
            for replica in replicas:
                await replica.stop()
        await it.outside.read_up()
        found = account.adds_up(it.pipeline, it.outside)
        assert len(found.facts) + len(found.outcomes) == it.sent


def fenced_and_back(replica: Replica) -> bool:
    """Whether its log tells that it was deposed, and has had partitions since."""
    _, _, since = replica.log.read_text().partition("Fenced(")
    return "owned=[0" in since or "owned=[2" in since


async def test_a_verdict_is_obeyed_within_a_second(kafka: KafkaCluster) -> None:
    onwards = onward(0)
    async with world(Broker(kafka.address, transactions=True), "flights") as it:
        with processes() as replicas:
            await scored_by_both(it, replicas, onwards)
            await it.send(islice(onwards, 300))
            given = await quarantined(it, "learned")

            def late() -> set[str]:
                """Replicas that answered when all had to obey."""
                owner = owners(it)
                recent = [r for r in it.outside["predictions"][-200:] if r.timestamp > given + OBEYED_MS]
                return {owner[cause(r)[0].partition] for r in recent}

            await flow(it, onwards, lambda: late() == {"a", "b"}, "both go on", watching(replicas))
            for replica in replicas:
                await replica.stop()
        await it.outside.read_up()
        said = [
            (r.timestamp - given, msgspec.json.decode(r.value or b"", type=Prediction))
            for r in it.outside["predictions"]
        ]
        by_learned = [ms for ms, p in said if p.model == "learned"]
        assert by_learned and max(by_learned) > -OBEYED_MS, "the model was serving when the verdict came"
        assert max(by_learned) <= OBEYED_MS, f"the model answered {max(by_learned)} ms after its verdict"
        asked = [p for ms, p in said if p.asked == "learned" and ms > OBEYED_MS]
        assert asked and {(p.source, p.reason) for p in asked} == {
            (Source.FALLBACK, Reason.QUARANTINED.value)
        }
        assert all(p.verdict >= 0 for p in asked), "each names the verdict it knew"


async def quarantined(world: World, model: str) -> int:
    """Takes the model out by an operator's hand; returns when the broker appended that, in ms."""
    verdict = await issue(world.connection, world.pipeline, model, State.QUARANTINED, "a test", by="test")
    appended: list[int] = []

    def found() -> bool:
        records = world.outside["verdicts"]
        decoded = [(r.timestamp, Verdict.model_validate_json(r.value or b"")) for r in records]
        appended.extend(at for at, each in decoded if each == verdict)
        return bool(appended)

    await world.outside.until(found, "the verdict is on its topic")
    return appended[0]
