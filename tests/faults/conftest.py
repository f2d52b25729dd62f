"""The fault runner: every fault once for each seed, and a table of what came of it at the end."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.faults.table import KINDS, counts, recovery
from tests.faults.trial import Run, Trial, trial_of

RUNS = pytest.StashKey[list[Run]]()
# What runs with --runs only: of each kind of fault another one is in every run of the suite.
ELSEWHERE = frozenset(
    """
    crash_at_work[fetched] crash_at_work[outputs-acknowledged] crash_at_work[version-made]
    crash_at_work[first-batch] crash_at_work[committed] crash_in_a_takeover[fencing]
    crash_in_a_takeover[store-read] crash_in_a_handover[handed-over]
    zombie[ingest-state-delivered] zombie[score-state-delivered] zombie[join-state-delivered]
    line_half_open line_stranded leaders_moved broker_of_three_stopped killed_while_it_starts
    made_anew_where_outputs_name_their_cause[score] cut[ingest] cut[score]
    deleted_while_running[events] retention_passes[ingest-events]
    jump[ingest-ahead] jump[ingest-back] jump[score-back] jump[join-ahead] jump[learn-ahead] jump[learn-back]
    jump[supervisor-ahead] jump[supervisor-back] wrong_from_the_start[back]
    feature[inf] feature[wrong] feature[huge] a_supervisor_killed_with_a_verdict_in_hand[verdict-ready]
    version[altered-bad_bytes] version[foreign_features-wrong_fingerprint] version[forbidden-does_not_open]
    """.split()
)
COLUMNS = ("fault", "runs", "failed", "lost", "doubled", "out of bounds", "other", "recovery s", "longest")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUNS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        chosen, runs = metafunc.config.getoption("seed"), metafunc.config.getoption("runs")
        seeds = range(1, 1 + (runs or 1)) if chosen is None else [chosen]
        metafunc.parametrize("seed", seeds, ids=[f"seed{s}" for s in seeds])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("runs") is not None or config.getoption("seed") is not None:
        return
    left = [i for i in items if isinstance(i, pytest.Function) and _is_elsewhere(i)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _is_elsewhere(item: pytest.Function) -> bool:
    return item.path.parent == Path(__file__).parent and _fault(item) in ELSEWHERE


@pytest.fixture
def broker(kafka: KafkaCluster) -> Broker:
    return Broker(kafka.address, transactions=True)


@pytest.fixture
def kind() -> str:
    return "gauges"


@pytest.fixture
async def trial(request: pytest.FixtureRequest, broker: Broker, kind: str, seed: int) -> AsyncIterator[Trial]:
    run = Run(_fault(request.node), seed)
    request.config.stash[RUNS].append(run)
    async with trial_of(broker, kind, run) as it:
        yield it


def _fault(item: pytest.Function) -> str:
    """The test's name and its parameters, the seed left out."""
    name = item.originalname.removeprefix("test_")
    words = [word for word in item.callspec.id.split("-") if not word.startswith("seed")]
    return f"{name}[{'-'.join(words)}]" if words else name


def _command(item: pytest.Function, run: Run) -> str:
    words = " and ".join([item.originalname, *item.callspec.id.split("-")])
    chosen = f"-k {shlex.quote(words)} --seed {run.seed}"
    return f'make faults ARGS="{chosen}"'


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    trial = getattr(item, "funcargs", {}).get("trial")
    if report.when == "call" and isinstance(trial, Trial) and isinstance(item, pytest.Function):
        if report.passed and not trial.run.accounted:
            report.outcome, report.longrepr = "failed", "the trial ended without a ledger: call trial.quiet()"
        trial.run.passed = report.passed
        if report.failed:
            report.sections.append(("to repeat this run", _command(item, trial.run)))
            report.sections.append(("what happened", "\n".join(trial.run.story)))
            for replica in trial.replicas:
                report.sections.append((f"process {replica.process.pid}", replica.tail()))
    return report


# The table.


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    runs = config.stash[RUNS]
    if not runs:
        return
    rows = [
        _row(fault, [r for r in runs if r.fault == fault]) for fault in dict.fromkeys(r.fault for r in runs)
    ]
    terminalreporter.section("faults")
    for line in _table([list(COLUMNS), *rows]):
        terminalreporter.write_line(line)
    path = config.getoption("report")
    if path:
        Path(path).write_text(json.dumps([_told(run) for run in runs], indent=1))


def _row(fault: str, runs: list[Run]) -> list[str]:
    told = [_told(run) for run in runs]
    others = sum(n for run in runs for kind, n in run.findings.items() if kind not in KINDS)
    return [fault, *counts(told), str(others), *recovery(told)]


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *figures in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *cells])


def _told(run: Run) -> dict[str, object]:
    return {
        "fault": run.fault,
        "seed": run.seed,
        "passed": run.passed,
        "findings": dict(run.findings),
        "recovery_seconds": run.recovery,
        "story": run.story,
    }
