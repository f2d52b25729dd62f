"""What a process shows of itself: metrics, structured logs, and the three pages that a platform asks for.

`Metric` is the closed list of metrics. docs/metrics.md is `python -m riverkeeper.topics.telemetry`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from enum import Enum, StrEnum
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import structlog
from aiohttp import web
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

from .messages import ErrorCode, Source, State

# Else every counter has a gauge beside it, which doubles the page and tells nothing.
disable_created_metrics()  # type: ignore[no-untyped-call]

log: structlog.stdlib.BoundLogger = structlog.get_logger()

STOP_SECONDS = 1.0  # s a scrape in flight may hold up the end of the process; Ctrl-C promises 5 s in all
MAX_REDACTED_DEPTH = 4  # levels of nested mappings searched for secrets; deeper ones are not logged at all
REDACTED = "(redacted)"

_SECRET_WORDS = ("password", "secret", "token", "signing_key")
# Seconds; from the fastest hop measured (1 ms) to what a rebalance may cost (minutes).
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# Records; up to `max_batch`, and beyond for those who raise it.
_RECORDS = (1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Fate(StrEnum):
    """What became of an outcome in the join."""

    JOINED = "joined"  # it met its prediction within the declared time
    EARLY = "early"  # it came before its prediction, and waits
    LATE = "late"  # it came after the declared time
    DUPLICATE = "duplicate"  # it came again, with the same label
    CORRECTED = "corrected"  # it came again, with another label
    EXPIRED = "expired"  # no prediction came within the declared time

    __hash__ = str.__hash__  # that of an Enum is a call of Python, twice for each that is counted


class Metric(Enum):
    """Every metric there is: series name, kind, labels, meaning, and the bounds of a histogram.

    `model` is always the configured model's name; for predictions the one that the traffic was meant for.
    """

    RECORDS_READ = (
        "riverkeeper_records_read_total",
        Kind.COUNTER,
        ("agent", "topic"),
        "Records that an agent has read from a topic.",
    )
    RECORDS_WRITTEN = (
        "riverkeeper_records_written_total",
        Kind.COUNTER,
        ("agent", "topic"),
        "Records that an agent has written to a topic.",
    )
    DEAD_LETTERS = (
        "riverkeeper_dead_letters_total",
        Kind.COUNTER,
        ("agent", "code"),
        "Records that could not be processed, by error code.",
    )
    DUPLICATES_DROPPED = (
        "riverkeeper_duplicates_dropped_total",
        Kind.COUNTER,
        ("agent",),
        "Records dropped because their id or their origin had been seen before.",
    )
    INPUT_LAG = (
        "riverkeeper_input_lag_records",
        Kind.GAUGE,
        ("agent", "topic", "partition"),
        "Records between an agent's position and the end of a partition it owns.",
    )
    BATCH_SECONDS = (
        "riverkeeper_batch_seconds",
        Kind.HISTOGRAM,
        ("agent",),
        "Seconds that an agent spent on one batch, from read to acknowledged.",
        _SECONDS,
    )
    BATCH_RECORDS = (
        "riverkeeper_batch_records",
        Kind.HISTOGRAM,
        ("agent",),
        "Records in one batch of an agent.",
        _RECORDS,
    )
    PREDICTIONS = (
        "riverkeeper_predictions_total",
        Kind.COUNTER,
        ("model", "source", "reason"),
        "Predictions served, by who answered and, if it was the fallback, why.",
    )
    OUT_OF_BOUNDS = (
        "riverkeeper_out_of_bounds_total",
        Kind.COUNTER,
        ("model",),
        "Answers outside the declared bounds, or not finite, which the fallback replaced before publication.",
    )
    PREDICTION_LATENCY = (
        "riverkeeper_prediction_latency_seconds",
        Kind.HISTOGRAM,
        (),
        "Seconds from the append of a fact to the log until its prediction was written.",
        _SECONDS,
    )
    SHADOWS_SHED = (
        "riverkeeper_shadow_answers_shed_total",
        Kind.COUNTER,
        ("model",),
        "Facts that a model without traffic was not asked for, because the fact was late or score behind.",
    )
    FACT_WAITED = (
        "riverkeeper_fact_waited_seconds",
        Kind.GAUGE,
        (),
        "The longest that a fact had waited when its batch was begun, over the last window of vitals.",
    )
    SERVING_VERSION = (
        "riverkeeper_serving_version",
        Kind.GAUGE,
        ("model",),
        "Number of the model version that this process asks.",
    )
    MODEL_STATE = (
        "riverkeeper_model_state",
        Kind.GAUGE,
        ("model", "state"),
        "1 for the state that the verdicts give a model, 0 for the others.",
    )
    VERSIONS_PUBLISHED = (
        "riverkeeper_versions_published_total",
        Kind.COUNTER,
        ("model",),
        "Model versions published.",
    )
    SNAPSHOT_BYTES = (
        "riverkeeper_snapshot_bytes",
        Kind.GAUGE,
        ("model",),
        "Bytes of the newest published version.",
    )
    SNAPSHOT_SECONDS = (
        "riverkeeper_snapshot_seconds",
        Kind.GAUGE,
        ("model",),
        "Seconds that it took to make the bytes of the newest published version.",
    )
    GATE_REFUSALS = (
        "riverkeeper_gate_refusals_total",
        Kind.COUNTER,
        ("model", "code"),
        "Versions that the gate kept from serving, by the check that they failed.",
    )
    EXAMPLES_JOINED = (
        "riverkeeper_examples_joined_total",
        Kind.COUNTER,
        (),
        "Examples written: predictions that met their label.",
    )
    OUTCOMES = (
        "riverkeeper_outcomes_total",
        Kind.COUNTER,
        ("fate",),
        f"Outcomes by what became of them: {', '.join(Fate)}.",
    )
    PENDING_PREDICTIONS = (
        "riverkeeper_pending_predictions",
        Kind.GAUGE,
        ("partition",),
        "Predictions that wait for their outcome.",
    )
    LEARNED_EXAMPLES = (
        "riverkeeper_learned_examples_total",
        Kind.COUNTER,
        ("model",),
        "Examples that a model has learned in this process.",
    )
    EXAMPLES_SHED = (
        "riverkeeper_examples_shed_total",
        Kind.COUNTER,
        ("model",),
        "Examples that a model behind by load has passed over, as its pipeline allows.",
    )
    LEARNING_WAITS = (
        "riverkeeper_learning_waits",
        Kind.GAUGE,
        (),
        "1 while learning is slowed because score is behind, else 0.",
    )
    LIVE_ERROR = (
        "riverkeeper_live_error",
        Kind.GAUGE,
        ("model",),
        "Error of a model's answers before it learned their labels, in the task's metric, over a window.",
    )
    BASELINE_ERROR = (
        "riverkeeper_baseline_error",
        Kind.GAUGE,
        ("model",),
        "Error of the baseline over the same examples as the model's live error.",
    )
    CHECKPOINT_SECONDS = (
        "riverkeeper_checkpoint_seconds",
        Kind.HISTOGRAM,
        ("agent",),
        "Seconds that a checkpoint's transaction took.",
        _SECONDS,
    )
    TAKEOVERS = (
        "riverkeeper_takeovers_total",
        Kind.COUNTER,
        ("agent",),
        "Partitions whose ownership this process has taken and whose state it has restored.",
    )
    RESTARTS = (
        "riverkeeper_restarts_total",
        Kind.COUNTER,
        ("agent",),
        "Times that an agent was started again within this process after a failure.",
    )
    PARTITIONS_STOPPED = (
        "riverkeeper_partitions_stopped",
        Kind.GAUGE,
        ("agent",),
        "Partitions that an agent refuses to go on with, because their log does not match the checkpoint.",
    )
    VERDICT_OFFSET = (
        "riverkeeper_verdict_offset",
        Kind.GAUGE,
        (),
        "Offset of the last verdict that this process knows; -1 before the first.",
    )
    LEASE_AGE = (
        "riverkeeper_lease_age_seconds",
        Kind.GAUGE,
        (),
        "Seconds since the verdicts were last read to their end; beyond the lease the fallback answers.",
    )
    PAUSED_PARTITIONS = (
        "riverkeeper_paused_partitions",
        Kind.GAUGE,
        ("agent", "topic"),
        "Partitions of a topic that an agent does not fetch for now, because the other side is behind.",
    )

    def __init__(
        self,
        series: str,
        kind: Kind,
        labels: tuple[str, ...],
        help: str,
        buckets: tuple[float, ...] = (),
    ) -> None:
        self.series = series
        self.kind = kind
        self.labels = labels
        self.help = help
        self.buckets = buckets


class Telemetry:
    """The metrics of one process, in a registry of their own.

    Methods take what a whole batch has gathered, and never block. `agent` and `model` are names.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._counters = {m: Children(_counter(m, self.registry)) for m in Metric if m.kind is Kind.COUNTER}
        self._gauges = {m: Children(_gauge(m, self.registry)) for m in Metric if m.kind is Kind.GAUGE}
        self._distributions = {m: Distribution(m) for m in Metric if m.kind is Kind.HISTOGRAM}
        for distribution in self._distributions.values():
            self.registry.register(distribution)

    # Any agent.

    def read(self, agent: str, topic: str, records: int) -> None:
        self._count(Metric.RECORDS_READ, records, agent, topic)

    def wrote(self, agent: str, records: Iterable[OnTopic]) -> None:
        for topic, n in Tally(record.topic for record in records).items():
            self._count(Metric.RECORDS_WRITTEN, n, agent, topic)

    def dead(self, agent: str, code: ErrorCode, records: int = 1) -> None:
        self._count(Metric.DEAD_LETTERS, records, agent, code.value)

    def duplicates(self, agent: str, records: int) -> None:
        self._count(Metric.DUPLICATES_DROPPED, records, agent)

    def lag(self, agent: str, topic: str, partition: int, records: int) -> None:
        self._set(Metric.INPUT_LAG, records, agent, topic, str(partition))

    def forget_lag(self, agent: str, topic: str, partition: int) -> None:
        """Partition lost: its lag is another process's to report."""
        self._gauges[Metric.INPUT_LAG].forget(agent, topic, str(partition))

    def stepped(self, agent: str, records: int, seconds: float) -> None:
        """One batch, from read to acknowledged."""
        self._distributions[Metric.BATCH_RECORDS].labels(agent).observe(records)
        self._distributions[Metric.BATCH_SECONDS].labels(agent).observe(seconds)

    def checkpointed(self, agent: str, seconds: float) -> None:
        self._distributions[Metric.CHECKPOINT_SECONDS].labels(agent).observe(seconds)

    def took_over(self, agent: str) -> None:
        self._count(Metric.TAKEOVERS, 1, agent)

    def restarted(self, agent: str) -> None:
        self._count(Metric.RESTARTS, 1, agent)

    def partition_stopped(self, agent: str, partitions: int) -> None:
        """`partitions` is how many stand still at present, 0 included."""
        self._set(Metric.PARTITIONS_STOPPED, partitions, agent)

    def paused(self, agent: str, topic: str, partitions: int) -> None:
        """`partitions` of the topic are paused at present, 0 included."""
        self._set(Metric.PAUSED_PARTITIONS, partitions, agent, topic)

    # score

    def predicted(self, model: str, source: Source, reason: str, predictions: int) -> None:
        """`reason` is a `Reason`, or "" where the model answered."""
        self._count(Metric.PREDICTIONS, predictions, model, source.value, str(reason))

    def out_of_bounds(self, model: str, answers: int) -> None:
        self._count(Metric.OUT_OF_BOUNDS, answers, model)

    def latency(self, seconds: NDArray[np.float64]) -> None:
        """One value per fact of a batch: from its append until its prediction was acknowledged."""
        self._distributions[Metric.PREDICTION_LATENCY].labels().observe_many(seconds)

    def shed_shadows(self, model: str, facts: int) -> None:
        self._count(Metric.SHADOWS_SHED, facts, model)

    def waited(self, seconds: float) -> None:
        self._set(Metric.FACT_WAITED, seconds)

    def serving(self, model: str, version: int) -> None:
        self._set(Metric.SERVING_VERSION, version, model)

    def refused(self, model: str, code: str) -> None:
        """`code` is one of the gate's own, never a message: each value is a series for ever."""
        self._count(Metric.GATE_REFUSALS, 1, model, code)

    # join

    def joined(self, examples: int) -> None:
        self._count(Metric.EXAMPLES_JOINED, examples)

    def outcomes(self, fate: Fate, outcomes: int) -> None:
        self._count(Metric.OUTCOMES, outcomes, fate.value)

    def pending(self, partition: int, predictions: int) -> None:
        self._set(Metric.PENDING_PREDICTIONS, predictions, str(partition))

    def forget_pending(self, partition: int) -> None:
        """Partition lost: another process counts its predictions."""
        self._gauges[Metric.PENDING_PREDICTIONS].forget(str(partition))

    # learn

    def learned(self, model: str, examples: int) -> None:
        self._count(Metric.LEARNED_EXAMPLES, examples, model)

    def shed_examples(self, model: str, examples: int) -> None:
        self._count(Metric.EXAMPLES_SHED, examples, model)

    def learning_waits(self, waits: bool) -> None:
        self._set(Metric.LEARNING_WAITS, waits)

    def errors(self, model: str, live: float, baseline: float) -> None:
        """Both over the same examples, in the task's metric."""
        self._set(Metric.LIVE_ERROR, live, model)
        self._set(Metric.BASELINE_ERROR, baseline, model)

    def published(self, model: str, size: int, seconds: float) -> None:
        """A version of `size` bytes, whose bytes took `seconds` to make."""
        self._count(Metric.VERSIONS_PUBLISHED, 1, model)
        self._set(Metric.SNAPSHOT_BYTES, size, model)
        self._set(Metric.SNAPSHOT_SECONDS, seconds, model)

    # Verdicts, as this process knows them.

    def state(self, model: str, state: State) -> None:
        for each in State:
            self._set(Metric.MODEL_STATE, each is state, model, each.value)

    def verdict(self, offset: int) -> None:
        self._set(Metric.VERDICT_OFFSET, offset)

    def watch_lease(self, age: Callable[[], float]) -> None:
        """`age` gives seconds, at every scrape, from a thread other than the event loop's."""
        self._gauges[Metric.LEASE_AGE][()].set_function(age)

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4. Takes about 7 ms per 1000 series; call it from a thread."""
        return generate_latest(self.registry)

    def _count(self, metric: Metric, n: int, *labels: str) -> None:
        self._counters[metric][labels].inc(n)

    def _set(self, metric: Metric, value: float, *labels: str) -> None:
        self._gauges[metric][labels].set(value)


class OnTopic(Protocol):
    """A record that knows where it goes."""

    @property
    def topic(self) -> str: ...


class Labelled(Protocol):
    """What prometheus_client's counters and gauges have in common here."""

    def labels(self, *labelvalues: Any) -> Self: ...
    def remove(self, *labelvalues: Any) -> None: ...


L = TypeVar("L", bound=Labelled)


class Children(dict[tuple[str, ...], L]):
    """The children of one metric by their labels, each made when first asked for."""

    def __init__(self, parent: L) -> None:
        super().__init__()
        self._parent = parent

    def __missing__(self, labels: tuple[str, ...]) -> L:
        # A metric without labels is its own only child.
        child = self[labels] = self._parent.labels(*labels) if labels else self._parent
        return child

    def forget(self, *labels: str) -> None:
        """Stop to report this child, if there is one."""
        if self.pop(labels, None) is not None:
            self._parent.remove(*labels)


class Distribution(Collector):
    """A histogram that takes a batch of observations in one call; prometheus_client's takes one each."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._bounds = np.array(metric.buckets)
        self._counts = np.zeros(len(metric.buckets) + 1, dtype=np.int64)
        self._total = 0.0
        self._children: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str) -> Distribution:
        if values not in self._children:
            self._children[values] = Distribution(self._metric)
        return self._children[values]

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._metric.buckets, value)] += 1
        self._total += value

    def observe_many(self, values: NDArray[np.float64]) -> None:
        slots = np.searchsorted(self._bounds, values)
        self._counts += np.bincount(slots, minlength=len(self._counts))
        self._total += float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        metric = self._metric
        family = HistogramMetricFamily(metric.series, metric.help, labels=metric.labels)
        for labels, child in list(self._children.items()):
            family.add_metric(labels, child._buckets(), child._total)
        yield family

    def _buckets(self) -> list[tuple[str, float]]:
        bounds = [*map(repr, self._metric.buckets), "+Inf"]
        return list(zip(bounds, self._counts.cumsum().tolist(), strict=True))


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.series, metric.help, metric.labels, registry=registry)


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    return Gauge(metric.series, metric.help, metric.labels, registry=registry)


def configure_logging(level: str, json: bool) -> None:
    """Send all logs of this process to standard error: one JSON object per line, or text for people.

    `level` is a name such as "INFO" and holds for our own logs; those of libraries pass from WARNING on.
    Values under names like password, secret, token or signing_key are redacted; tracebacks carry no
    local variables.
    """
    own = logging.getLevelNamesMapping()[level.upper()]
    chain = _common_processors()
    final = _renderer(json)
    structlog.configure(
        processors=[*chain, *final],
        wrapper_class=structlog.make_filtering_bound_logger(own),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*chain, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(own, logging.WARNING), force=True)
    logging.captureWarnings(True)


def _common_processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]


def _renderer(json: bool) -> list[structlog.typing.Processor]:
    if json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # The default formatter prints local variables, secrets among them.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: `REDACTED` in place of values whose name speaks of a secret, nested ones too."""
    return _redacted(event, MAX_REDACTED_DEPTH)


def _redacted(values: Mapping[str, Any], depth: int) -> dict[str, Any]:
    return {name: _without_secrets(name, value, depth) for name, value in values.items()}


def _without_secrets(name: object, value: Any, depth: int) -> Any:
    if any(word in str(name).lower() for word in _SECRET_WORDS):
        return REDACTED
    if not isinstance(value, Mapping):
        return value
    return _redacted(value, depth - 1) if depth else REDACTED


class Observatory:
    """The HTTP server of a process: /livez, /readyz and /metrics.

    `checks` gives, by agent, "" when it is ready or the reason why not; nothing at all is not ready
    either. `failures` names the agents that have failed for good, and why: the platform is to restart
    the process. Both are called on the event loop and must not block.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        port: int,
        host: str,
        checks: Callable[[], Mapping[str, str]],
        failures: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._telemetry = telemetry
        self._port = port
        self._host = host
        self._checks = checks
        self._failures = failures
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """Where it listens, also if port 0 was asked for. Raises RuntimeError while it does not."""
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("observatory: it has no port before start() and after stop()")
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def stop(self) -> None:
        """Stop listening; returns within `STOP_SECONDS`. May be called twice, or without a start."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _livez(self, _request: web.Request) -> web.Response:
        failed = dict(self._failures())
        return web.json_response({"live": not failed, "failed": failed}, status=503 if failed else 200)

    async def _readyz(self, _request: web.Request) -> web.Response:
        checks = self._checks() or {"process": "no agent has been started"}
        waiting = {name: reason for name, reason in checks.items() if reason}
        return web.json_response({"ready": not waiting, "waiting": waiting}, status=503 if waiting else 200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._telemetry.exposition)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def document() -> str:
    """docs/metrics.md, from `Metric`."""
    rows = [
        f"| `{m.series}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |"
        for m in Metric
    ]
    return "\n".join([*_HEAD, *rows, ""])


_HEAD = [
    "# Metrics",
    "",
    "Every process serves these at `/metrics`, port 9464 by default. This page is made from the code:",
    "`python -m riverkeeper.topics.telemetry > docs/metrics.md`.",
    "",
    "| series | kind | labels | meaning |",
    "|---|---|---|---|",
]


if __name__ == "__main__":
    sys.stdout.write(document())
