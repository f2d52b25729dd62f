"""The command line as a user meets it: it teaches, it names the remedy, it stops when asked."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError
from click.testing import CliRunner

from riverkeeper.cli import main
from riverkeeper.demos.flights import flights
from riverkeeper.models.features import PipelineError
from riverkeeper.process import topics_of
from riverkeeper.remedies import sentence
from riverkeeper.settings import SECRETS, Settings
from riverkeeper.topics.catalog import TopicMissing, create_embedded
from riverkeeper.topics.embedded import EmbeddedBroker
from tests.brokers.kafka import KafkaCluster

REF = "riverkeeper.demos.flights:flights"
NOBODY = "127.0.0.1:1"  # a port on which nothing listens
STOP_SECONDS = 5.0  # what Ctrl-C promises
START_SECONDS = 60.0  # for a process to say its first word, on a busy machine


def riverkeeper(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "riverkeeper", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "riverkeeper", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stopped(process: subprocess.Popen[str], signum: signal.Signals) -> tuple[float, str, str]:
    """The seconds that the process takes to end after a signal, and its output."""
    asked = time.monotonic()
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    return time.monotonic() - asked, out, err


# Help.


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, (*words, name))


def examples(words: tuple[str, ...]) -> list[list[str]]:
    text = CliRunner().invoke(main, [*words, "--help"]).output
    lines = re.findall(r"^ +riverkeeper (.*?)(?: \||  +\(|$)", text, re.M)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("words", list(commands(main)), ids=lambda words: " ".join(words) or "riverkeeper")
def test_help_teaches_by_examples_that_work(words: tuple[str, ...]) -> None:
    found = examples(words)
    assert found, "no example"
    for example in found:
        assert tuple(example[: len(words)]) == words or words in ((), ("broker",))
        parse(example)


def parse(words: list[str]) -> None:
    command: click.Command = main
    with click.Context(main) as context:
        while isinstance(command, click.Group):
            _, found, words = command.resolve_command(context, words)
            assert found is not None
            command = found
        command.make_context(command.name, list(words), parent=context)


def test_no_secret_is_an_option() -> None:
    for words in commands(main):
        command: click.Command = main
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        assert not SECRETS & {parameter.name for parameter in command.params}


def test_every_other_setting_is_an_option_of_run() -> None:
    names = {parameter.name for parameter in main.commands["run"].params}
    asked_by_topics = {"replication", "min_insync"}
    assert set(Settings.model_fields) - SECRETS - asked_by_topics <= names
    assert asked_by_topics <= {parameter.name for parameter in main.commands["topics"].params}


# Errors.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["status", "nowhere:flights"], "there is no module 'nowhere'"),
        (["status", "riverkeeper.demos.flights:flight"], "did you mean 'flights'?"),
        (["status", "flights"], "write module:attribute"),
        (["status", REF, "--broker", "localhost"], "--broker: 'localhost' is not host:port"),
        (["status", REF, "--broker", NOBODY], f"no connection to the broker at {NOBODY}"),
        (["run", REF, "--broker", NOBODY, "--port", "0", "--log-level", "ERROR"], "--broker host:port"),
        (["topics", REF, "--replication", "1"], "min_insync 2 asks for more copies"),
        (["run", REF, "--security-protocol", "SASL_SSL"], "needs sasl_username and sasl_password"),
        (["run", REF, "--agents", "ingest,skore"], "skore named; choose from ingest, score"),
        (["quarantine", "flights", "--reason", "odd"], "write pipeline/model, as in flights/eager"),
        (["quarantine", f"{REF}/eager", "--reason", "odd", "--broker", NOBODY], NOBODY),
        (["skip", REF, "skore/0", "--reason", "gone"], "did you mean 'score'?"),
        (["skip", REF, "learn/0", "--reason", "gone"], "one of ingest, score, join is"),
        (["skip", REF, "score/99", "--reason", "gone"], "names no partition: write score/0 to score/"),
        (["skip", REF, "score/0", "--reason", "gone", "--broker", NOBODY], NOBODY),
        (["demo", "flights", "--months", "13"], "does not lie in 1-12"),
        (["demo", "flights", "--months", "spring"], "write 1, 1,2 or 1-12"),
        (["demo", "flights", "--speed", "fast"], "write 3600x for an hour a second"),
        (["demo", "flights", "--broker", NOBODY], f"no connection to the broker at {NOBODY}"),
        (["demo", "pooch", "--broker", NOBODY], f"no connection to the broker at {NOBODY}"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_an_error_is_one_sentence_with_its_remedy(words: list[str], told: str) -> None:
    done = riverkeeper(*words)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert told in last


def test_failures_of_a_group_are_told_as_one() -> None:
    missing = TopicMissing("flights.facts")
    assert sentence(ExceptionGroup("agents", [ExceptionGroup("one", [missing]), missing])) == str(missing)


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    assert sentence(ZeroDivisionError("division by zero")) is None
    assert sentence(ExceptionGroup("agents", [TopicMissing("t"), KeyError("x")])) is None
    assert sentence(PipelineError("flights: no model")) == "flights: no model"


def test_why_the_broker_refused_is_told() -> None:
    error = KafkaConnectionError("Unable to bootstrap from [('kafka', 9093, 2)]")
    heard = 'Unable connect to "kafka:9093": SaslAuthenticationFailed: invalid credentials'
    told = sentence(error, heard)
    assert told is not None
    assert "kafka:9093 does not accept us" in told
    assert "RIVERKEEPER_SASL_PASSWORD" in told
    told = sentence(GroupAuthorizationFailedError("flights.score"))
    assert told is not None
    assert "flights.score" in told
    assert "riverkeeper acls" in told


# On a broker.


@pytest.fixture(scope="module")
def prepared() -> Iterator[str]:
    """The address of an embedded broker that has the demo's topics."""
    with EmbeddedBroker() as broker:
        create_embedded(broker, topics_of(flights))
        yield broker.address


def test_the_broker_has_the_pipeline_s_topics_and_stops_when_asked() -> None:
    with running("broker", REF) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        done = riverkeeper("topics", REF, "--broker", address)
        assert done.returncode == 0
        assert {line.partition(": ")[::2] for line in done.stdout.splitlines()} == {
            (spec.name, "ok") for spec in topics_of(flights)
        }
        seconds, out, _ = stopped(process, signal.SIGTERM)
        assert seconds < STOP_SECONDS
        assert process.returncode == 0
        assert out == "", "the address stands alone on standard output"


def test_the_embedded_broker_creates_no_topics_on_request() -> None:
    with EmbeddedBroker() as empty:
        done = riverkeeper("topics", REF, "--broker", empty.address)
    assert done.returncode == 1
    assert "riverkeeper broker MODULE:PIPELINE" in done.stderr


@pytest.fixture(scope="module")
def single() -> Iterator[str]:
    """The address of a Kafka of one node that no other test puts the demo's topics on."""
    with KafkaCluster() as cluster:
        yield cluster.address


def test_topics_are_created_then_compared_and_never_changed(single: str) -> None:
    one = ("--replication", "1", "--min-insync", "1")
    done = riverkeeper("topics", REF, "--broker", single)
    assert done.returncode == 1
    assert "pass --replication 1 --min-insync 1" in done.stderr
    for word in ("created", "ok"):
        done = riverkeeper("topics", REF, "--broker", single, *one)
        assert done.returncode == 0, done.stderr
        assert {line.partition(": ")[2] for line in done.stdout.splitlines()} == {word}
    done = riverkeeper("topics", REF, "--broker", single)
    assert done.returncode == 1
    assert "flights.facts: min.insync.replicas is 1, declared 2" in done.stdout.splitlines()


def test_status_tells_who_is_at_work(single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERKEEPER_SIGNING_KEY", "k" * 40)
    riverkeeper("topics", REF, "--broker", single, "--replication", "1", "--min-insync", "1")
    with running("run", REF, "--agents", "ingest,join", "--port", "0", "--broker", single):
        deadline = time.monotonic() + START_SECONDS
        expected = {"ingest": 1, "score": 0, "join": 1, "learn": 0}
        found: dict[str, int] = {}
        while found != expected:
            assert time.monotonic() < deadline, found
            agents = json.loads(riverkeeper("status", REF, "--json", "--broker", single).stdout)["agents"]
            found = {agent["agent"]: agent["replicas"] for agent in agents}


def test_status_of_a_pipeline_that_has_not_begun(prepared: str) -> None:
    done = riverkeeper("status", REF, "--json", "--broker", prepared)
    found = json.loads(done.stdout)
    assert [agent["agent"] for agent in found["agents"]] == ["ingest", "score", "join", "learn"]
    assert {(agent["lag"], agent["replicas"]) for agent in found["agents"]} == {(None, None)}
    assert found["dead"] == 0
    states = {model["model"]: (model["state"], model["since"], model["version"]) for model in found["models"]}
    assert states == {
        "learned": ("live", None, 0),
        "steady": ("shadow", None, 0),
        "eager": ("live", None, 0),
        "baseline": ("live", None, 0),
    }


def test_an_operator_takes_a_model_out_and_leads_it_back(prepared: str) -> None:
    def state() -> str:
        found = json.loads(riverkeeper("status", REF, "--json", "--broker", prepared).stdout)
        return next(str(m["state"]) for m in found["models"] if m["model"] == "eager")

    refused = riverkeeper("admit", f"{REF}/eager", "--reason", "why not", "--broker", prepared)
    assert "nothing to admit" in refused.stderr
    done = riverkeeper("quarantine", f"{REF}/eager", "--reason", "odd", "--broker", prepared)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("eager: quarantined by operator ")
    assert state() == "quarantined"
    # By now the log knows the model: the module is not needed.
    done = riverkeeper("admit", "flights/eager", "--reason", "mended", "--broker", prepared)
    assert done.returncode == 0, done.stderr
    assert state() == "probation"
    riverkeeper("admit", "flights/eager", "--reason", "sure", "--now", "--broker", prepared)
    assert state() == "live"
    slice_ = ("--slice", "carrier=UA", "--broker", prepared)
    done = riverkeeper("quarantine", "flights/eager", "--reason", "their times are off", *slice_)
    assert done.stdout.startswith("eager where carrier=UA: quarantined by operator "), done
    assert "live, not where carrier=UA" in riverkeeper("status", REF, "--broker", prepared).stdout
    assert riverkeeper("admit", "flights/eager", "--reason", "mended", *slice_).returncode == 0
    assert state() == "live"
    assert "nothing to admit" in riverkeeper("admit", "flights/eager", "--reason", "again", *slice_).stderr
    undeclared = riverkeeper("quarantine", f"{REF}/eager", "--reason", "odd", *slice_)
    assert "'carrier' is no slice of flights" in undeclared.stderr
    assert riverkeeper("hold", REF, "--reason", "brokers move", "--broker", prepared).returncode == 0
    shown = riverkeeper("status", REF, "--broker", prepared).stdout
    assert "HELD by operator" in shown and "brokers move" in shown
    assert riverkeeper("release", "flights", "--reason", "moved", "--broker", prepared).returncode == 0
    assert "HELD" not in riverkeeper("status", REF, "--broker", prepared).stdout
    told = riverkeeper("incident", "list", "flights", "--broker", prepared)
    assert told.stdout == "no open incident\n", told
    none = riverkeeper("incident", "show", REF, "eager-0", "--broker", prepared)
    assert none.returncode == 1 and "there is no incident 'eager-0'" in none.stderr
    nothing = riverkeeper("skip", REF, "score/0", "--reason", "gone", "--broker", prepared)
    assert "misses nothing" in nothing.stderr or "has read nothing yet" in nothing.stderr
    unknown = riverkeeper("quarantine", "flights/eagre", "--reason", "odd", "--broker", prepared)
    assert "did you mean 'eager'?" in unknown.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_agents_stop_in_order_when_asked(prepared: str, signum: signal.Signals) -> None:
    words = ("run", REF, "--agents", "ingest,join", "--port", "0", "--log-format", "json")
    with running(*words, "--broker", prepared) as process:
        assert process.stderr
        deadline = time.monotonic() + START_SECONDS
        while '"partitions"' not in process.stderr.readline():
            assert time.monotonic() < deadline
            assert process.poll() is None
        seconds, _, err = stopped(process, signum)
    assert seconds < STOP_SECONDS
    assert process.returncode == 0, err


@pytest.mark.parametrize(("given", "found"), [(None, "0"), ("7", "7")])
def test_hashes_are_fixed_for_what_learns(given: str | None, found: str, tmp_path: Path) -> None:
    """A set's order decides a version's bytes: `run` starts itself anew with a fixed seed, unless one is set."""
    (tmp_path / "probe.py").write_text("import os; raise SystemExit(os.environ.get('PYTHONHASHSEED'))")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    environment |= {"PYTHONHASHSEED": given} if given else {}
    command = [sys.executable, "-m", "riverkeeper", "run", "probe:pipeline"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stderr.strip() == found
