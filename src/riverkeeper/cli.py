"""The command line. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args, get_origin

import click
from pydantic import SecretStr

from .settings import PREFIX, SECRETS, Settings

if TYPE_CHECKING:
    from .demos.play import Piece, Show
    from .demos.pooch_story import Told
    from .demos.stage import Outcome
    from .models.pipeline import Pipeline
    from .topics.messages import State

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

SEEDED = ("run", "demo")  # they learn; a version is rebuilt byte for byte only where sets iterate alike
CANNOT_RUN = {"audit": 2}  # exit status of a failure, where 1 has a meaning of its own
ORDERLY_SECONDS = 4.0  # for a stop in order; then the work is cancelled
CUT_SECONDS = 0.8  # for cancelled work to let go; with the above within the 5 s that are promised
REPLICATION = ("replication", "min_insync")
CONNECTION = (
    "broker",
    "security_protocol",
    "sasl_mechanism",
    "sasl_username",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "sasl_token_file",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_check_hostname",
    "client_id",
)
EVERY = tuple(name for name in Settings.model_fields if name not in SECRETS | set(REPLICATION))


class Commands(click.Group):
    """Ends a command whose failure is foreseen with one sentence; other exceptions keep their traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        # Not when a test calls with words of its own: this replaces the process.
        if not args and options.get("args") is None and sys.argv[1:2] in [[name] for name in SEEDED]:
            _fix_hash_seed()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        # Only here, for it loads the Kafka client: `--help` does not come this far.
        from .remedies import LastWords, sentence

        heard = LastWords()
        logging.getLogger("aiokafka").addHandler(heard)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            told = sentence(error, heard.text)
            code = CANNOT_RUN.get(str(ctx.invoked_subcommand), 1)
            if told is None and code == 1:
                raise
            if told is None:
                traceback.print_exc()
                raise click.exceptions.Exit(code) from None
            failed = click.ClickException(told)
            failed.exit_code = code
            raise failed from None
        finally:
            logging.getLogger("aiokafka").removeHandler(heard)


def _fix_hash_seed() -> None:
    """Starts this program once more with PYTHONHASHSEED=0, unless the variable is set."""
    if "PYTHONHASHSEED" not in os.environ:
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**os.environ, "PYTHONHASHSEED": "0"})


# Settings as options.


def settings_options(*names: str, shown: Collection[str] = ("broker",)) -> Callable[[Command], Command]:
    """An option for each of these fields of `Settings`; left out, the environment and the default count.

    Those in `shown` stand in the command's help, the others in that of `run`.
    """

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _option(name, hidden=name not in shown)(command)
        return command

    return decorate


def _option(name: str, *, hidden: bool) -> Callable[[Command], Command]:
    field = Settings.model_fields[name]
    meaning = re.split(r"(?<=\.) ", " ".join(str(field.description).split()))[0].rstrip(".")
    flag = f"--{name.replace('_', '-')}"
    return click.option(
        f"{flag}/--no-{name.replace('_', '-')}" if field.annotation is bool else flag,
        name,
        type=_type(field.annotation),
        metavar="HOST:PORT" if name == "broker" else None,
        default=None,
        hidden=hidden,
        help=f"{meaning}. [{PREFIX}{name.upper()}]",
    )


def _type(annotation: Any) -> click.ParamType | type | None:
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    return annotation if annotation in (int, float, bool) else str


def _settings(flags: dict[str, Any], **fixed: Any) -> Settings:
    given = {name: value for name, value in flags.items() if value is not None}
    return Settings(**{**given, **fixed})


# Work that Ctrl-C ends.


def _until_stopped(work: Callable[[asyncio.Event], Awaitable[T]]) -> T:
    """Runs to the end. Ctrl-C or SIGTERM asks to stop in order, within 5 s; a second one ends at once."""

    async def watched() -> T:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        task = asyncio.ensure_future(work(stop))
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, _ask, stop, task, signum)
        try:
            return await task
        except asyncio.CancelledError:
            raise click.ClickException(
                f"did not stop in order within {ORDERLY_SECONDS:.0f} s and was cut off; "
                "what was acknowledged is kept, the next start goes on from the last checkpoint"
            ) from None

    return asyncio.run(watched())


def _ask(stop: asyncio.Event, task: asyncio.Future[Any], signum: int) -> None:
    if stop.is_set():
        os._exit(128 + signum)
    stop.set()
    loop = asyncio.get_running_loop()
    loop.call_later(ORDERLY_SECONDS, task.cancel)
    loop.call_later(ORDERLY_SECONDS + CUT_SECONDS, _cut)


def _cut() -> NoReturn:
    click.echo(f"Error: did not stop within {ORDERLY_SECONDS + CUT_SECONDS:.1f} s; ended", err=True)
    os._exit(1)


def _quietly(work: Callable[[], Awaitable[T]]) -> T:
    """A short command: what goes wrong is told once, by its error."""
    _log("ERROR", json=False)
    logging.getLogger("aiokafka").propagate = False
    return _until_stopped(lambda stop: _or_stop(work(), stop))


async def _or_stop(work: Awaitable[T], stop: asyncio.Event) -> T:
    task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        raise click.Abort
    return task.result()


def _log(level: str, json: bool) -> None:
    from .topics.telemetry import configure_logging

    configure_logging(level, json)


def _load(ref: str) -> Pipeline:
    from .models.pipeline import load

    return load(ref)


# Commands.


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="riverkeeper")
def main() -> None:
    """Keeps online models alive in production: facts, predictions, versions and verdicts as Kafka topics.

    \b
    See it work, with a broker of its own (about half a minute):
      riverkeeper demo flights
    \b
    Your own pipeline, `flights` in my_module.py, against your Kafka:
      riverkeeper topics my_module:flights --broker kafka:9092
      riverkeeper run my_module:flights --broker kafka:9092
      riverkeeper status my_module:flights --broker kafka:9092
    \b
    The same without a Kafka, in memory; the first prints the address that the second takes:
      riverkeeper broker my_module:flights
      riverkeeper run my_module:flights --broker 127.0.0.1:PORT

    Options of `riverkeeper run` that concern the broker, such as --security-protocol, go with every command.
    Each is also an environment variable, as RIVERKEEPER_BROKER for --broker; passwords and the signing key are
    variables only: RIVERKEEPER_SASL_PASSWORD, RIVERKEEPER_SSL_PASSWORD, RIVERKEEPER_SIGNING_KEY.
    """


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@click.option(
    "--agents",
    "agents",
    default=None,
    metavar="NAMES",
    help="Of ingest, score, join, learn and supervisor, those to run, with commas between. Default: all.",
)
@settings_options(*EVERY, shown=EVERY)
def run(pipeline_ref: str, agents: str | None, **flags: Any) -> None:
    """Run a pipeline's agents until Ctrl-C or SIGTERM.

    Any number of processes may run the same agents: they share the partitions, and the loss of one is made
    good by the others. Model versions are signed: RIVERKEEPER_SIGNING_KEY must be the same everywhere.

    \b
    All in one process:
      export RIVERKEEPER_SIGNING_KEY=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
      riverkeeper run my_module:flights --broker kafka:9092
    \b
    Each its own deployment:
      riverkeeper run my_module:flights --agents ingest
      riverkeeper run my_module:flights --agents score --port 0
      riverkeeper run my_module:flights --agents join,learn,supervisor
    """
    settings = _settings(flags)
    _log(settings.log_level, settings.json_logs())
    pipeline = _load(pipeline_ref)
    from .process import NAMES, Process, answer_promptly

    names = _agents(agents, NAMES)
    process = Process(pipeline, names, settings)
    answer_promptly()
    _until_stopped(process.run)


def _agents(given: str | None, known: tuple[str, ...]) -> list[str]:
    if given is None:
        return list(known)
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'} named; choose from {', '.join(known)}", param_hint="--agents"
        )
    return list(dict.fromkeys(names))


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@settings_options(*CONNECTION, *REPLICATION, shown=("broker", *REPLICATION))
def topics(pipeline_ref: str, **flags: Any) -> None:
    """Create a pipeline's topics, or say what differs from what is declared.

    What is missing is created with the declared partitions, cleanup and retention. What is there is compared
    and never changed; if anything differs, the exit status is 1.

    \b
    On a cluster of three brokers or more:
      riverkeeper topics my_module:flights --broker kafka:9092
    \b
    On a single broker:
      riverkeeper topics my_module:flights --replication 1 --min-insync 1
    """
    settings = _settings(flags)
    pipeline = _load(pipeline_ref)
    lines, differs = _quietly(lambda: _create_topics(pipeline, settings))
    for line in lines:
        click.echo(line)
    if differs:
        click.echo(
            "Nothing that differs was changed. Declare what is there, change it with Kafka's own tools, or, for "
            "partitions, stop the agents in order and make the topic anew.",
            err=True,
        )
        raise click.exceptions.Exit(1)


async def _create_topics(pipeline: Pipeline, settings: Settings) -> tuple[list[str], bool]:
    from .process import topics_of
    from .topics.catalog import Catalog, Replication

    specs = topics_of(pipeline)
    async with Catalog(
        settings.connection(), Replication(settings.replication, settings.min_insync)
    ) as catalog:
        if await catalog.embedded():
            missing = await catalog.missing(specs)
            if missing:
                raise click.ClickException(
                    f"topic {missing[0].name} is missing, and the embedded broker at {settings.broker} creates none "
                    "on request; start one that has them with `riverkeeper broker MODULE:PIPELINE`"
                )
        created = (
            {spec.name for spec in await catalog.create(specs)}
            if not await catalog.embedded()
            else set[str]()
        )
        found = await catalog.differences(specs)
    lines = [
        line
        for spec in specs
        for line in [str(d) for d in found if d.topic == spec.name]
        or [f"{spec.name}: {'created' if spec.name in created else 'ok'}"]
    ]
    return lines, bool(found)


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@click.option(
    "--for",
    "role",
    metavar="ROLE",
    help="One of ingest, score, join, learn, supervisor, producer, reader, watcher, operator and creator. "
    "Default: all of them, each with a user of its own.",
)
@click.option(
    "--principal",
    metavar="User:NAME",
    help="To whom the rights go. Default: User:PIPELINE-ROLE.",
)
@settings_options("broker")
def acls(pipeline_ref: str, role: str | None, principal: str | None, **flags: Any) -> None:
    """Print the commands that grant each agent what it needs on a broker with access control, and no more.

    The commands are Kafka's own kafka-acls.sh; `admin.properties` is the administrator's client configuration.
    Nothing is sent anywhere. docs/security.md shows the same as a table.

    \b
      riverkeeper acls my_module:flights --broker kafka:9092
      riverkeeper acls my_module:flights --for score --principal User:scorer
      riverkeeper acls my_module:flights --for producer --principal User:gates
    """
    from .acls import ROLES, commands, rights

    if role is not None and role not in ROLES:
        raise click.BadParameter(f"{role!r} is none of {', '.join(ROLES)}", param_hint="--for")
    settings = _settings(flags)
    pipeline = _load(pipeline_ref)
    for name in ROLES if role is None else [role]:
        user = principal or f"User:{pipeline.name}-{name}"
        click.echo(f"# {name}: {ROLES[name].what}")
        for command in commands(rights(pipeline, name), user, settings.broker):
            click.echo(command)


@main.command()
@click.argument("pipeline_ref", metavar="[MODULE:PIPELINE]", required=False)
def broker(pipeline_ref: str | None) -> None:
    """Run the embedded broker until Ctrl-C, and print its address.

    It speaks Kafka's protocol on 127.0.0.1, keeps everything in memory (5 MB a partition, the newest), knows
    no transactions, and forgets all when it ends: for a first try and for tests. With a pipeline it has the
    pipeline's topics.

    \b
    In one terminal, then in another:
      riverkeeper broker my_module:flights
      riverkeeper run my_module:flights --broker 127.0.0.1:PORT
    """
    from .process import topics_of
    from .topics.catalog import create_embedded
    from .topics.embedded import EmbeddedBroker

    specs = topics_of(_load(pipeline_ref)) if pipeline_ref else []
    with EmbeddedBroker() as embedded:
        create_embedded(embedded, specs)
        click.echo(embedded.address)
        click.echo("The embedded broker runs until Ctrl-C, and forgets everything then.", err=True)
        _until_stopped(lambda stop: stop.wait())


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@settings_options(*CONNECTION)
def status(pipeline_ref: str, as_json: bool, **flags: Any) -> None:
    """Show how far the agents are, and how each model does.

    Read from the topics; nothing is written, and no agent has to run. Lag is in records; a model's errors are
    those of its newest version, over the examples it learned since the one before.

    \b
      riverkeeper status my_module:flights --broker kafka:9092
      riverkeeper status my_module:flights --json | jq '.models[] | select(.state != "live")'
    """
    import msgspec

    from .status import read_status, text

    settings = _settings(flags)
    pipeline = _load(pipeline_ref)
    found = _quietly(lambda: read_status(settings.connection(), pipeline))
    click.echo(msgspec.json.encode(found).decode() if as_json else text(found))


class Moment(click.ParamType):
    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-01-31 or 2026-01-31T08:00:00Z", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@click.option(
    "--since",
    type=Moment(),
    metavar="ISO",
    help="Only records appended since; UTC unless it has an offset. Default: all.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with every finding that is held.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Findings to print.")
@click.option(
    "--recompute/--no-recompute",
    default=True,
    help="Whether to compute predictions again from the versions that are kept; needs the signing key.",
)
@settings_options(*CONNECTION)
def audit(
    pipeline_ref: str, since: datetime | None, as_json: bool, limit: int, recompute: bool, **flags: Any
) -> None:
    """Account for every record: what is lost, doubled, altered, out of bounds or disobeyed, by name.

    Reads every topic as any program may, and sums up: events against facts, outcomes and dead letters; facts
    against predictions; predictions and outcomes against examples; examples against the versions that learned
    them; predictions against verdicts. Agents may be at work meanwhile: what has no effect yet is pending.
    Memory does not grow with the log; rows go to a temporary file, some 200 bytes a record.

    The exit status is 0 if nothing was found, 1 if something was, 2 if the audit could not be made.

    \b
      riverkeeper audit my_module:flights --broker kafka:9092
      riverkeeper audit my_module:flights --since 2026-01-31 --json | jq .found
    """
    import msgspec

    from .audit import audit as run_audit
    from .audit import text

    settings = _settings(flags)
    pipeline = _load(pipeline_ref)
    key = settings.signing_key.get_secret_value().encode() if settings.signing_key else None
    meter = _Meter()
    report = _quietly(
        lambda: run_audit(
            pipeline,
            settings.connection(),
            since=since,
            progress=meter,
            signing_key=key,
            recompute=recompute,
        )
    )
    meter.close()
    click.echo(msgspec.json.encode(report).decode() if as_json else text(report, limit))
    if not report.clean:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@click.option(
    "--from", "since", type=Moment(), metavar="ISO", help="Begin of the stretch. Default: the log's."
)
@click.option("--to", "until", type=Moment(), metavar="ISO", help="End of the stretch. Default: the log's.")
@click.option(
    "--model", "models", multiple=True, help="A declared model, begun from nothing; may be repeated."
)
@click.option(
    "--version",
    "versions",
    multiple=True,
    metavar="MODEL/NUMBER",
    help="A version as it was published; needs the signing key; may be repeated.",
)
@click.option(
    "--candidates",
    metavar="MODULE:MAPPING",
    help="Models of your own, to sweep over: a dict, or a function that returns one, of a Model or a factory by name.",
)
@click.option("--frozen", is_flag=True, help="Stored versions answer as they are, and learn nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Save the matrix as CSV.")
@settings_options(*CONNECTION)
def replay(
    pipeline_ref: str,
    since: datetime | None,
    until: datetime | None,
    models: tuple[str, ...],
    versions: tuple[str, ...],
    candidates: str | None,
    frozen: bool,
    as_json: bool,
    save: Path | None,
    **flags: Any,
) -> None:
    """Try models over a stretch of the log, beside what was served, without touching a live topic.

    Each candidate answers every prediction's features when that prediction was made, with what it had learned
    until then, and learns each example when its outcome came: labels are as late for it as they were in life.
    It is compared over the same examples with what was served, after the examples that its warm-up asks for. Times
    are those of the append; the interval takes examples for independent. Default: every declared model.

    \b
      riverkeeper replay my_module:flights --from 2026-01-31T08:00Z --to 2026-01-31T12:00Z
      riverkeeper replay my_module:flights --version eager/120 --version eager/90 --frozen
      riverkeeper replay my_module:flights --candidates my_sweep:rates --save rates.csv
    """
    import msgspec

    from . import replay as worlds
    from .models.quality import metric_name

    settings = _settings(flags)
    pipeline = _load(pipeline_ref)
    meter = _Meter()

    async def lived() -> worlds.Replay:
        connection = settings.connection()
        chosen = [worlds.declared(pipeline, name) for name in models]
        chosen += worlds.own(pipeline, candidates) if candidates else []
        for ref in versions:
            key = settings.required_signing_key()
            chosen.append(await worlds.stored(pipeline, connection, ref, key, learns=not frozen))
        chosen = chosen or [worlds.declared(pipeline, name) for name in pipeline.models]
        held = worlds.MAX_HELD // len(chosen)
        ours = [worlds.World(each, pipeline.task, pipeline.bounds, held=held) for each in chosen]
        return await worlds.replay(pipeline, connection, ours, since=since, until=until, told=meter)

    found = _quietly(lived)
    meter.close()
    if save is not None:
        save.write_text(worlds.matrix(found))
    metric = metric_name(pipeline.task)
    click.echo(msgspec.json.encode(found).decode() if as_json else worlds.text(found, metric))


class _Meter:
    """Progress on standard error: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._seconds = 0.2 if self._terminal else 5.0
        self._shown = self._began = time.monotonic()
        self._topic, self._done, self._before = "", 0, 0

    def __call__(self, topic: str, done: int, total: int) -> None:
        if topic != self._topic:
            self._before += self._done
        self._topic, self._done = topic, done
        now = time.monotonic()
        if now - self._shown >= self._seconds:
            self._shown = now
            speed = (self._before + done) / (now - self._began)
            share = f"{done / total:.0%}" if total else "summing up"
            line = f"{topic}: {share}, {speed:,.0f} records/s"
            click.echo(f"\r\033[K{line}" if self._terminal else line, err=True, nl=not self._terminal)

    def close(self) -> None:
        if self._terminal:
            click.echo("\r\033[K", err=True, nl=False)


_MODEL = click.argument("model_ref", metavar="PIPELINE/MODEL")
_REASON = click.option("--reason", required=True, help="Why; stands in the verdict for all to read.")


_SLICE = click.option(
    "--slice", "of_slice", default="", metavar="FEATURE=VALUE", help="Only facts that show this value."
)


@main.command()
@_MODEL
@_REASON
@_SLICE
@settings_options(*CONNECTION)
def quarantine(model_ref: str, reason: str, of_slice: str, **flags: Any) -> None:
    """Take a model out: within a second no replica asks it, and the fallback answers in its place.

    The model stays out until it is admitted by hand. Only the pipeline's name is needed, not its module.

    \b
      riverkeeper quarantine flights/eager --reason "answers look odd since noon" --broker kafka:9092
      riverkeeper quarantine my_module:flights/eager --reason "retrained upstream"
      riverkeeper quarantine flights/eager --slice carrier=UA --reason "their times are off"
    """
    from .topics.messages import State

    _decide(model_ref, State.QUARANTINED, reason, of_slice, _settings(flags))


@main.command()
@_MODEL
@_REASON
@click.option("--now", "at_once", is_flag=True, help="Give it its traffic back at once, without probation.")
@_SLICE
@settings_options(*CONNECTION)
def admit(model_ref: str, reason: str, at_once: bool, of_slice: str, **flags: Any) -> None:
    """Lead a model back: it answers in shadow until it has proved itself, then gets its traffic. A slice gets it at once.

    \b
      riverkeeper admit flights/eager --reason "upstream is fixed"
      riverkeeper admit flights/eager --reason "false alarm" --now
    """
    from .topics.messages import State

    _decide(model_ref, State.LIVE if at_once else State.PROBATION, reason, of_slice, _settings(flags))


def _decide(model_ref: str, state: State, reason: str, of_slice: str, settings: Settings) -> None:
    from .operate import decide

    verdict = _quietly(
        lambda: decide(settings.connection(), model_ref, state, reason, by=_operator(), of_slice=of_slice)
    )
    which = f"{verdict.model} where {of_slice}" if of_slice else verdict.model
    click.echo(f"{which}: {verdict.state.value} by {verdict.by}: {verdict.reason}")


@main.group()
def incident() -> None:
    """What went wrong with a pipeline's models: list it, read the draft of a post-mortem, acknowledge it.

    \b
      riverkeeper incident list flights --broker kafka:9092
    """


@incident.command(name="list")
@click.argument("pipeline_ref", metavar="PIPELINE")
@click.option("--all", "resolved", is_flag=True, help="Those that are over, too.")
@settings_options(*CONNECTION)
def list_incidents(pipeline_ref: str, resolved: bool, **flags: Any) -> None:
    """List incidents, newest first: open, acknowledged by an operator, mitigated (the model has no traffic)
    or, with --all, resolved.

    \b
      riverkeeper incident list flights --broker kafka:9092
      riverkeeper incident list my_module:flights --all
    """
    from .incident import HEAD, read, rows
    from .status import table

    found = rows(_quietly(lambda: read(_settings(flags).connection(), pipeline_ref)), resolved=resolved)
    click.echo(table(HEAD, found) if found else "no incident" if resolved else "no open incident")


@incident.command(name="show")
@click.argument("pipeline_ref", metavar="PIPELINE")
@click.argument("id_", metavar="ID")
@settings_options(*CONNECTION)
def show_incident(pipeline_ref: str, id_: str, **flags: Any) -> None:
    """Print the draft of an incident's post-mortem as Markdown.

    What the log tells is filled in: the story, the predictions served since the onset and where they lie, figures,
    samples, what the model answered before and since, and the timeline. The causes are left to people.

    \b
      riverkeeper incident show flights learned-12 --broker kafka:9092
      riverkeeper incident show flights learned-12 | tee post-mortem.md
    """
    from .incident import show

    click.echo(_quietly(lambda: show(_settings(flags).connection(), pipeline_ref, id_)), nl=False)


@incident.command(name="acknowledge")
@click.argument("pipeline_ref", metavar="PIPELINE")
@click.argument("id_", metavar="ID")
@click.option("--note", default="", help="Stands in the timeline for all to read.")
@settings_options(*CONNECTION)
def acknowledge_incident(pipeline_ref: str, id_: str, note: str, **flags: Any) -> None:
    """Say that somebody has seen an incident. It changes nothing else.

    \b
      riverkeeper incident acknowledge flights learned-12 --note "asking upstream" --broker kafka:9092
    """
    from .incident import acknowledge

    settings, by = _settings(flags), _operator()
    told = _quietly(lambda: acknowledge(settings.connection(), pipeline_ref, id_, note, by=by))
    click.echo(f"{told.id}: {told.timeline[-1].state} by {told.timeline[-1].reason}")


@main.command()
@click.argument("pipeline_ref", metavar="PIPELINE")
@_REASON
@settings_options(*CONNECTION)
def hold(pipeline_ref: str, reason: str, **flags: Any) -> None:
    """Put a hand on the wheel: no supervisor takes a model out, heals it or leads it back until the release.

    From its place in the log on, every replica ignores what supervisors decide; operators are obeyed as ever.
    Alarms are raised, also for what would have been quarantined, and an answer out of bounds is still replaced
    by the fallback's. `riverkeeper status` says so first.

    \b
      riverkeeper hold flights --reason "moving the brokers until noon" --broker kafka:9092
    """
    _held(pipeline_ref, reason, flags, held=True)


@main.command()
@click.argument("pipeline_ref", metavar="PIPELINE")
@_REASON
@settings_options(*CONNECTION)
def release(pipeline_ref: str, reason: str, **flags: Any) -> None:
    """Let supervisors decide again, from what they find now.

    \b
      riverkeeper release flights --reason "brokers moved" --broker kafka:9092
    """
    _held(pipeline_ref, reason, flags, held=False)


def _held(pipeline_ref: str, reason: str, flags: dict[str, Any], *, held: bool) -> None:
    from .operate import hold

    settings, by = _settings(flags), _operator()
    told = _quietly(lambda: hold(settings.connection(), pipeline_ref, reason, by=by, held=held))
    click.echo(f"{pipeline_ref}: {'held' if held else 'released'} by {told.by}: {told.reason}")


@main.command()
@click.argument("pipeline_ref", metavar="MODULE:PIPELINE")
@click.argument("where", metavar="AGENT/PARTITION")
@_REASON
@settings_options(*CONNECTION)
def skip(pipeline_ref: str, where: str, reason: str, **flags: Any) -> None:
    """Let a stopped partition go on behind records that retention took before they were read.

    Such a partition stops, with an incident, for what is gone cannot be worked off any more: first make the
    topic's retention longer than any outage. What is passed over stands in the agent's checkpoint for good.

    
      riverkeeper skip my_module:flights score/3 --reason "retention was 1 h, the outage 3 h"
    """
    from .skip import skip as run_skip

    settings = _settings(flags)
    pipeline = _load(pipeline_ref)
    by = _operator()
    for gap in _quietly(lambda: run_skip(settings.connection(), pipeline, where, reason, by=by)):
        click.echo(
            f"{where}: {gap.end - gap.start} records of {gap.place} passed over, {gap.start} to {gap.end - 1}"
        )
    click.echo(f"Restart the process that runs {where.partition('/')[0]}: it goes on from there")


def _operator() -> str:
    try:
        return f"operator {getpass.getuser()}"
    except (KeyError, OSError):  # in a container, a user id may have no name
        return f"operator {os.getuid()}"


# The demo.


@main.group()
def demo() -> None:
    """Play a built-in pipeline: over real data, or as a story.

    \b
      riverkeeper demo flights
      riverkeeper demo pooch
    """


class Months(click.ParamType):
    name = "months"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: set[int] = set()
        for part in str(value).split(","):
            ends = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
            if ends is None:
                self.fail(f"{part!r} is no month; write 1, 1,2 or 1-12", param, ctx)
            first, last = int(ends[1]), int(ends[2] or ends[1])
            if not 1 <= first <= last <= 12:
                self.fail(f"{part!r} does not lie in 1-12", param, ctx)
            found.update(range(first, last + 1))
        return tuple(sorted(found))


class Speed(click.ParamType):
    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            speed = float(str(value).removesuffix("x"))
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            self.fail(f"{value!r} is no multiple of event time; write 3600x for an hour a second", param, ctx)
        return speed


@demo.command()
@click.option(
    "--rows", type=click.IntRange(min=1), help="Flights to play, at most. Default: all of the months."
)
@click.option("--months", type=Months(), default="1", show_default=True, help="Months of 2013: 1,2 or 1-12.")
@click.option(
    "--speed", type=Speed(), metavar="3600x", help="Multiple of event time. Default: as fast as it goes."
)
@click.option(
    "--fault",
    type=click.Choice(["units", "storm"]),
    help="units: for a stretch one carrier sends minutes as seconds. storm: events come three times, with junk.",
)
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on standard output.")
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="All logs there; else errors only, here.",
)
@settings_options(*CONNECTION)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Serve /metrics, /livez and /readyz there while it runs."
)
def flights(
    rows: int | None,
    months: tuple[int, ...],
    speed: float | None,
    fault: Literal["units", "storm"] | None,
    as_json: bool,
    log_file: Path | None,
    port: int | None,
    **flags: Any,
) -> None:
    """How late will a flight arrive, asked when it leaves: New York, January 2013, 27 000 flights.

    A producer writes departures and arrivals in the order in which they happened, four models answer side by
    side, learn, and are watched. Without --broker all of it runs on a broker of its own, in memory. With
    --broker it can be killed and started again with the same options, and goes on where it was.

    \b
      riverkeeper demo flights
      riverkeeper demo flights --fault units
      riverkeeper demo flights --rows 3000 --json | jq .error
      riverkeeper demo flights --speed 3600x
      riverkeeper demo flights --broker 127.0.0.1:9092
      riverkeeper demo flights --months 1-12        (pip install 'riverkeeper[flights]')
    """
    where = flags["broker"] or "a broker in memory, which knows no transactions"
    click.echo(f"Flights out of New York, 2013, on {where}", err=True)
    from .demos.flights_data import rows as read_rows
    from .demos.play import Piece

    piece = Piece(list(read_rows(months, rows)), fault, speed)
    outcome = _perform(piece, port, log_file, flags)
    if as_json:
        click.echo(json.dumps(_plain(outcome)))
    else:
        _tell(outcome, flags["broker"], fault)
    if outcome.ending != "stopped" and outcome.wrong:
        raise click.ClickException("the counts do not add up: " + "; ".join(outcome.wrong))


def _plain(outcome: Outcome) -> Any:
    import msgspec

    return msgspec.to_builtins(outcome.summary)


def _perform(piece: Piece, port: int | None, log_file: Path | None, flags: dict[str, Any]) -> Outcome:
    from .demos import play
    from .demos.flights import flights

    async def work(stop: asyncio.Event) -> Outcome:
        with _screen(log_file) as show:
            async with _staged({**flags, "port": port}, flights) as (settings, key):
                return await play.Play(piece, settings, show, key=key, pages=port is not None).run(stop)

    return _until_stopped(work)


@contextlib.asynccontextmanager
async def _staged(
    flags: dict[str, Any], *pipelines: Pipeline
) -> AsyncIterator[tuple[Settings, bytes | None]]:
    """A demo's settings, and the key of its versions: on the broker that is named, or (without a key) on one in memory."""
    from .demos import stage

    if flags["broker"] is not None:
        settings = stage.demo_settings(_settings(flags))
        await stage.create_topics(settings.connection(), *pipelines)
        yield settings, stage.demo_key(settings)
        return
    async with stage.embedded(*pipelines) as address:
        yield stage.demo_settings(_settings(flags, broker=address, security_protocol="PLAINTEXT")), None


@contextlib.contextmanager
def _screen(log_file: Path | None) -> Iterator[Show]:
    """Where progress goes: a live table on a terminal, else lines; logs go above it, or to the file."""
    from rich.console import Console

    from .demos.screen import Lines, LiveTable

    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        if console.is_terminal:
            show = stack.enter_context(LiveTable(console)).show
        else:
            show = Lines(lambda line: click.echo(line, err=True)).show
        if log_file is None:
            _log("ERROR", json=False)
            logging.getLogger("aiokafka").propagate = False  # what it tries again is no news
        else:
            file: IO[str] = stack.enter_context(log_file.open("a"))
            with contextlib.redirect_stderr(file):
                _log("INFO", json=False)
        yield show


def _tell(outcome: Outcome, broker: str | None, fault: str | None) -> None:
    from .demos.screen import summary_text

    click.echo(summary_text(outcome, _next(broker, fault), color=sys.stdout.isatty()))


@demo.command()
@click.option("--seed", type=int, default=2026, show_default=True, help="Of the dogs, their posts and luck.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on standard output.")
@click.option(
    "--log-file", type=click.Path(dir_okay=False, path_type=Path), help="Logs of the agents' processes there."
)
@settings_options(*CONNECTION)
def pooch(seed: int, as_json: bool, log_file: Path | None, **flags: Any) -> None:
    """A story in five acts: a social network for dogs, whose models predict the likes of a post.

    Models per region; one that begins to predict negative likes; features added live, in a second pipeline beside
    the first; a crash of each agent; a model that cannot keep up. What the app read is counted at the end.
    It takes a minute and a half. Without --broker all of it runs on a broker of its own, in memory.

    \b
      riverkeeper demo pooch
      riverkeeper demo pooch --json | jq .app
      riverkeeper demo pooch --broker 127.0.0.1:9092
    """
    where = flags["broker"] or "a broker in memory, which knows no transactions"
    click.echo(f"A social network for dogs, on {where}", err=True)
    told = _told(seed, log_file, flags, lambda line: click.echo(line, err=as_json))
    if as_json:
        click.echo(json.dumps(_plain(told.outcome) | told.beside()))
    else:
        from .demos.screen import POOCH, summary_text

        again = [
            ("riverkeeper demo pooch --seed 7", "other dogs"),
            ("riverkeeper demo flights", "real flights, and a live table"),
        ]
        if flags["broker"] is not None:
            command = f"riverkeeper audit riverkeeper.demos.pooch:pooch_2 --broker {flags['broker']}"
            again[:1] = [(command, "every record accounted for")]
        click.echo(told.ending())
        click.echo(summary_text(told.outcome, again, color=sys.stdout.isatty(), words=POOCH))
    failed = [act.title for act in told.acts if not act.kept]
    if told.outcome.ending != "stopped" and (told.outcome.wrong or failed):
        raise click.ClickException(
            "; ".join([*told.outcome.wrong, *(f"did not happen: {t}" for t in failed)])
        )


def _told(seed: int, log_file: Path | None, flags: dict[str, Any], say: Callable[[str], None]) -> Told:
    from .demos.kennel import Kennel, environment_of
    from .demos.network import Network
    from .demos.pooch import pooch, pooch_2
    from .demos.pooch_story import Story

    async def work(stop: asyncio.Event) -> Told:
        with log_file.open("ab") if log_file else tempfile.NamedTemporaryFile() as log:
            async with _staged(flags, pooch, pooch_2) as (settings, key):
                if key is not None:
                    settings = settings.model_copy(update={"signing_key": SecretStr(key.decode())})
                kennel = Kennel(environment_of(settings), log)
                return await Story(Network(seed, settings, kennel, stop), say).run()

    _log("ERROR", json=False)
    logging.getLogger("aiokafka").propagate = False  # what it tries again is no news
    return _until_stopped(work)


def _next(broker: str | None, fault: str | None) -> list[tuple[str, str]]:
    """Commands to try next, and what each shows."""
    if broker is not None:
        ref = "riverkeeper.demos.flights:flights"
        return [
            (f"riverkeeper status {ref} --broker {broker}", "how all stands"),
            (f"riverkeeper quarantine flights/learned --reason try --broker {broker}", "a verdict by hand"),
            (f"kcat -b {broker} -C -t flights.predictions -c 5", "what was served"),
        ]
    faults = {"units": "a carrier sends minutes as seconds", "storm": "repeats and junk"}
    return [
        *((f"riverkeeper demo flights --fault {f}", shows) for f, shows in faults.items() if f != fault),
        ("riverkeeper demo flights --broker 127.0.0.1:9092", "on your Kafka; kill it, start it again"),
        ("riverkeeper run my_module:pipeline --broker 127.0.0.1:9092", "your own; see README.md"),
    ]
