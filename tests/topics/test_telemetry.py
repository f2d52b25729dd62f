"""Metrics are one closed type, logs hold no secrets, and the three pages tell the truth."""

import json
import logging
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import structlog
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from riverkeeper.topics.messages import ErrorCode, Reason, Source, State
from riverkeeper.topics.telemetry import (
    REDACTED,
    Fate,
    Kind,
    Metric,
    Observatory,
    Telemetry,
    configure_logging,
    document,
    log,
)

ROOT = Path(__file__).parents[2]


@dataclass
class OnTopic:
    topic: str


def exercise(telemetry: Telemetry) -> None:
    """Calls every method once."""
    telemetry.read("score", "flights.facts", 3)
    telemetry.wrote("score", [OnTopic("p"), OnTopic("p"), OnTopic("dead")])
    telemetry.dead("ingest", ErrorCode.NOT_JSON)
    telemetry.duplicates("ingest", 2)
    telemetry.lag("score", "flights.facts", 0, 17)
    telemetry.stepped("score", 2000, 0.1)
    telemetry.checkpointed("score", 0.002)
    telemetry.took_over("score")
    telemetry.restarted("score")
    telemetry.partition_stopped("score", 1)
    telemetry.paused("join", "flights.outcomes", 2)
    telemetry.predicted("learned", Source.FALLBACK, Reason.NO_LEASE, 5)
    telemetry.out_of_bounds("learned", 1)
    telemetry.latency(np.array([0.0005, 0.02, 400.0]))
    telemetry.serving("learned", 7)
    telemetry.refused("learned", "too_slow")
    telemetry.joined(4)
    telemetry.shed_shadows("learned", 3)
    telemetry.waited(0.5)
    telemetry.shed_examples("learned", 2)
    telemetry.learning_waits(True)
    telemetry.outcomes(Fate.LATE, 1)
    telemetry.pending(0, 12)
    telemetry.learned("learned", 4)
    telemetry.errors("learned", 12.4, 12.8)
    telemetry.published("learned", 6_000_000, 0.07)
    telemetry.state("learned", State.LIVE)
    telemetry.verdict(3)
    telemetry.watch_lease(lambda: 0.25)


def shown(telemetry: Telemetry) -> set[str]:
    """Names of the series that have a sample, as the `Metric` table spells them."""
    families = text_string_to_metric_families(telemetry.exposition().decode())
    names = {sample.name for family in families for sample in family.samples}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def value(telemetry: Telemetry, metric: Metric, *labels: str) -> float | None:
    return telemetry.registry.get_sample_value(metric.series, dict(zip(metric.labels, labels, strict=True)))


def test_every_metric_has_somebody_who_sets_it() -> None:
    telemetry = Telemetry()
    exercise(telemetry)
    assert shown(telemetry) == {metric.series for metric in Metric}


def test_a_metric_that_nobody_sets_would_be_found() -> None:
    assert Metric.RECORDS_READ.series not in shown(Telemetry())


@pytest.mark.parametrize("metric", Metric)
def test_names_follow_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"riverkeeper_[a-z_]+", metric.series)
    assert metric.series.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert re.fullmatch(r"[A-Z1][^.]*\.", metric.help), "one sentence"


def test_names_are_distinct() -> None:
    assert len({metric.series for metric in Metric}) == len(Metric)


def test_values_arrive_under_their_labels() -> None:
    telemetry = Telemetry()
    exercise(telemetry)
    exercise(telemetry)
    assert value(telemetry, Metric.RECORDS_READ, "score", "flights.facts") == 6
    assert value(telemetry, Metric.RECORDS_WRITTEN, "score", "p") == 4
    assert value(telemetry, Metric.RECORDS_WRITTEN, "score", "dead") == 2
    assert value(telemetry, Metric.PREDICTIONS, "learned", "fallback", "no_lease") == 10
    assert value(telemetry, Metric.INPUT_LAG, "score", "flights.facts", "0") == 17
    assert value(telemetry, Metric.LEASE_AGE) == 0.25
    assert value(telemetry, Metric.OUTCOMES, "late") == 2
    assert value(telemetry, Metric.OUTCOMES, "early") is None


def test_state_is_one_hot() -> None:
    telemetry = Telemetry()
    telemetry.state("learned", State.LIVE)
    telemetry.state("learned", State.QUARANTINED)
    states = {state: value(telemetry, Metric.MODEL_STATE, "learned", state) for state in State}
    assert states == {state: float(state is State.QUARANTINED) for state in State}


def test_a_lost_partition_is_no_longer_reported() -> None:
    telemetry = Telemetry()
    telemetry.lag("score", "facts", 0, 1)
    telemetry.lag("score", "facts", 1, 1)
    telemetry.forget_lag("score", "facts", 0)
    telemetry.forget_lag("score", "facts", 9)
    telemetry.pending(0, 1)
    telemetry.forget_pending(0)
    assert value(telemetry, Metric.INPUT_LAG, "score", "facts", "0") is None
    assert value(telemetry, Metric.INPUT_LAG, "score", "facts", "1") == 1
    assert value(telemetry, Metric.PENDING_PREDICTIONS, "0") is None
    telemetry.lag("score", "facts", 0, 5)
    assert value(telemetry, Metric.INPUT_LAG, "score", "facts", "0") == 5


def test_a_batch_of_latencies_counts_as_prometheus_would() -> None:
    metric = Metric.PREDICTION_LATENCY
    seconds = np.concatenate([np.geomspace(1e-4, 1e3, 97), metric.buckets])  # bounds themselves included
    telemetry = Telemetry()
    telemetry.latency(seconds[:50])
    telemetry.latency(seconds[50:])
    registry = CollectorRegistry()
    theirs = Histogram(metric.series, metric.help, buckets=metric.buckets, registry=registry)
    for value in seconds:
        theirs.observe(value)
    expected = {(s.name, s.labels.get("le")): s.value for f in registry.collect() for s in f.samples}
    for (name, le), count in expected.items():
        labels = {} if le is None else {"le": le}
        assert telemetry.registry.get_sample_value(name, labels) == pytest.approx(count), (name, le)


def test_two_processes_do_not_share_a_count() -> None:
    first, second = Telemetry(), Telemetry()
    first.joined(1)
    second.joined(5)
    assert value(first, Metric.EXAMPLES_JOINED) == 1


def test_the_page_is_current() -> None:
    current = (ROOT / "docs/metrics.md").read_text()
    assert current == document(), "run: python -m riverkeeper.topics.telemetry > docs/metrics.md"


# Logs.


@pytest.fixture
def logging_undone() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.setLevel(level)
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)


Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines(logging_undone: None, capsys: pytest.CaptureFixture[str]) -> Lines:
    """What has been logged as JSON since the last call, a dictionary per line."""

    def read() -> list[dict[str, object]]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return [json.loads(line) for line in captured.err.splitlines()]

    return read


def test_logs_are_json_lines_on_standard_error(lines: Lines) -> None:
    configure_logging("INFO", json=True)
    log.info("takeover", partition=3)
    log.debug("too fine")
    (line,) = lines()
    assert (line["event"], line["partition"], line["level"]) == ("takeover", 3, "info")
    assert "timestamp" in line


def test_libraries_log_through_the_same_lines_from_warning_on(lines: Lines) -> None:
    configure_logging("INFO", json=True)
    logging.getLogger("aiokafka.consumer").warning("Heartbeat failed for %s", "g")
    logging.getLogger("aiohttp.access").info("GET /livez")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old", UserWarning, stacklevel=1)
    first, second = lines()
    assert (first["event"], first["logger"]) == ("Heartbeat failed for g", "aiokafka.consumer")
    assert second["logger"] == "py.warnings"


@pytest.mark.parametrize("name", ["password", "sasl_password", "client_secret", "Token", "signing_key"])
def test_secrets_are_redacted(lines: Lines, name: str) -> None:
    configure_logging("INFO", json=True)
    log.info("connect", **{name: "hunter2"}, options={"deeper": {name: "hunter2"}}, user="jane")
    (line,) = lines()
    assert line[name] == REDACTED
    assert line["options"] == {"deeper": {name: REDACTED}}
    assert line["user"] == "jane"


def test_what_is_nested_too_deep_to_search_is_not_logged(lines: Lines) -> None:
    configure_logging("INFO", json=True)
    nested: dict[str, object] = {"password": "hunter2"}
    for _ in range(20):
        nested = {"more": nested}
    log.info("connect", options=nested)
    (line,) = lines()
    assert "hunter2" not in json.dumps(line)


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks_hold_no_local_variables(
    logging_undone: None, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    configure_logging("INFO", json=as_json)

    def fail(innocent: str) -> None:
        raise RuntimeError("broken")

    for logger in (log, logging.getLogger("faust")):
        try:
            fail("hunter" + str(2))
        except RuntimeError:
            logger.error("failed", exc_info=True)
    text = capsys.readouterr().err
    assert text.count("RuntimeError: broken") == 2
    assert "hunter2" not in text


# The three pages.


@asynccontextmanager
async def served(observatory: Observatory) -> AsyncIterator[Callable[[str], "Page"]]:
    await observatory.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{observatory.port}") as session:
            yield lambda path: Page(session, path)
    finally:
        await observatory.stop()


class Page:
    def __init__(self, session: aiohttp.ClientSession, path: str) -> None:
        self._session, self._path = session, path

    async def read(self) -> tuple[int, str, str]:
        async with self._session.get(self._path) as response:
            return response.status, await response.text(), response.headers["Content-Type"]

    async def json(self) -> tuple[int, object]:
        status, text, _ = await self.read()
        return status, json.loads(text)


async def test_ready_when_every_agent_is() -> None:
    checks = {"score": "", "learn": "restoring partition 3"}
    async with served(Observatory(Telemetry(), 0, "127.0.0.1", lambda: checks)) as page:
        assert await page("/readyz").json() == (
            503,
            {"ready": False, "waiting": {"learn": "restoring partition 3"}},
        )
        checks["learn"] = ""
        assert await page("/readyz").json() == (200, {"ready": True, "waiting": {}})


async def test_a_process_without_agents_is_not_ready() -> None:
    async with served(Observatory(Telemetry(), 0, "127.0.0.1", dict)) as page:
        status, _ = await page("/readyz").json()
        assert status == 503


async def test_alive_until_an_agent_has_failed() -> None:
    failures: dict[str, str] = {}
    waiting = {"score": "waiting for partitions"}
    observatory = Observatory(Telemetry(), 0, "127.0.0.1", lambda: waiting, lambda: failures)
    async with served(observatory) as page:
        assert await page("/livez").json() == (200, {"live": True, "failed": {}})
        failures["score"] = "failed 12 times"
        assert await page("/livez").json() == (503, {"live": False, "failed": {"score": "failed 12 times"}})


async def test_metrics_page() -> None:
    telemetry = Telemetry()
    exercise(telemetry)
    async with served(Observatory(telemetry, 0, "127.0.0.1", dict)) as page:
        status, text, kind = await page("/metrics").read()
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    assert 'riverkeeper_serving_version{model="learned"} 7.0' in text


async def test_a_stopped_observatory_does_not_listen() -> None:
    observatory = Observatory(Telemetry(), 0, "127.0.0.1", dict)
    await observatory.start()
    port = observatory.port
    await observatory.stop()
    await observatory.stop()
    with pytest.raises(RuntimeError, match="no port"):
        _ = observatory.port
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{port}/livez")


async def test_a_taken_port_is_an_error_at_start() -> None:
    first = Observatory(Telemetry(), 0, "127.0.0.1", dict)
    await first.start()
    second = Observatory(Telemetry(), first.port, "127.0.0.1", dict)
    try:
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
    finally:
        await second.stop()
        await first.stop()
