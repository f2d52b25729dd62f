"""What each part of a pipeline needs of a broker with access control, and the commands that grant it.

One table: the commands are printed from it, docs/security.md is made from it, a process checks at its start
the topics it names.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .models.pipeline import Pipeline
from .topics.rights import Right

CREATING = ("Create", "Describe", "DescribeConfigs")  # what is there is compared with what is declared
READ, WRITE = "Read", "Write"  # each implies Describe; Write on any topic implies IdempotentWrite


class Needs(NamedTuple):
    """Topics by suffix. `group` and `transactions`: whether it has a group, and transactional ids."""

    what: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    group: bool = False
    transactions: bool = False
    shows: tuple[str, ...] = ()  # agents whose groups it looks at
    creates: bool = False  # the topics


ROLES = {
    "ingest": Needs(
        "events to facts and outcomes",
        reads=("events", "ingest.store"),
        writes=("facts", "outcomes", "dead", "vitals", "ingest.store"),
        group=True,
        transactions=True,
    ),
    "score": Needs(
        "facts to predictions",
        reads=("facts", "models", "verdicts", "score.store"),
        writes=("predictions", "shadow", "dead", "vitals", "score.store"),
        group=True,
        transactions=True,
    ),
    "join": Needs(
        "predictions and outcomes to examples",
        reads=("predictions", "outcomes", "join.store"),
        writes=("examples", "dead", "vitals", "join.store"),
        group=True,
        transactions=True,
    ),
    "learn": Needs(
        "examples to versions",
        reads=("examples", "models", "verdicts", "vitals"),
        writes=("models", "vitals"),
        group=True,
        transactions=True,
    ),
    "supervisor": Needs(
        "vitals to verdicts and incidents",
        reads=("vitals", "verdicts", "incidents", "models", "supervisor.store"),
        writes=("verdicts", "incidents", "supervisor.store"),
        group=True,
    ),
    "producer": Needs("who writes events", writes=("events",)),
    "reader": Needs("who acts on predictions", reads=("predictions",), group=True),
    "watcher": Needs(
        "`riverkeeper status`, `riverkeeper audit` and `riverkeeper replay`",
        reads=(
            "events",
            "facts",
            "outcomes",
            "dead",
            "predictions",
            "shadow",
            "examples",
            "models",
            "vitals",
            "verdicts",
            "incidents",
        ),
        shows=("ingest", "score", "join"),
    ),
    "operator": Needs(
        "`riverkeeper quarantine`, `admit`, `hold`, `release` and `incident`",
        reads=("models", "verdicts", "incidents", "predictions"),
        writes=("verdicts", "incidents"),
    ),
    "creator": Needs("`riverkeeper topics`", creates=True),
}


def rights(pipeline: Pipeline, role: str) -> list[Right]:
    """All that a role needs, and nothing it can do without."""
    needs = ROLES[role]
    found = [Right(READ, "topic", pipeline.topic(suffix)) for suffix in needs.reads]
    found += [Right(WRITE, "topic", pipeline.topic(suffix)) for suffix in needs.writes]
    group = pipeline.agent_group(role)
    if needs.group:
        found.append(Right(READ, "group", group))
    found += [Right("Describe", "group", pipeline.agent_group(agent)) for agent in needs.shows]
    if needs.transactions:
        found.append(Right(WRITE, "transactional-id", f"{group}.", prefixed=True))
    if needs.creates:
        everything = pipeline.topic("")
        found += [Right(o, "topic", everything, prefixed=True) for o in CREATING]
    return found


def topic_rights(pipeline: Pipeline, roles: Iterable[str]) -> dict[str, list[str]]:
    """By topic, the operations that these roles need on it."""
    found: dict[str, list[str]] = {}
    for right in (right for role in roles for right in rights(pipeline, role)):
        if right.resource == "topic" and right.operation not in found.setdefault(right.name, []):
            found[right.name].append(right.operation)
    return found


def commands(rights: Sequence[Right], principal: str, broker: str) -> Iterator[str]:
    """`kafka-acls` commands, one for each kind of resource and operation."""
    kinds: dict[tuple[str, str, bool], list[str]] = {}
    for right in rights:
        kinds.setdefault((right.operation, right.resource, right.prefixed), []).append(right.name)
    for (operation, resource, prefixed), names in kinds.items():
        words = [
            "kafka-acls.sh",
            "--bootstrap-server",
            broker,
            "--command-config",
            "admin.properties",
            "--add",
        ]
        words += ["--allow-principal", principal, "--operation", operation]
        words += ["--resource-pattern-type", "prefixed"] if prefixed else []
        words += [word for name in names for word in (f"--{resource}", name)]
        yield shlex.join(words)


def document() -> str:
    """docs/security.md, from the table."""
    return "\n".join([*_HEAD, *(_row(role, needs) for role, needs in ROLES.items()), *_FOOT, ""])


def _row(role: str, needs: Needs) -> str:
    groups = [f"Read `<pipeline>.{role}`"] if needs.group else []
    groups += [f"Describe `<pipeline>.{agent}`" for agent in needs.shows]
    topics = [", ".join(f"`{suffix}`" for suffix in suffixes) for suffixes in (needs.reads, needs.writes)]
    if needs.creates:
        topics[1] = f"{', '.join(CREATING)} on `<pipeline>.` prefixed"
    transactions = f"Write `<pipeline>.{role}.` prefixed" if needs.transactions else ""
    return f"| {role} | {needs.what} | {topics[0]} | {topics[1]} | {', '.join(groups)} | {transactions} |"


_HEAD = [
    "# Security of the log",
    "",
    "Riverkeeper passes Kafka's own security on: TLS, SASL and access control lists. This page is made from the",
    "code: `python -m riverkeeper.acls > docs/security.md`.",
    "",
    "## Who we are, and who the broker is",
    "",
    "```sh",
    "export RIVERKEEPER_SECURITY_PROTOCOL=SASL_SSL",
    "export RIVERKEEPER_SASL_MECHANISM=SCRAM-SHA-512",
    "export RIVERKEEPER_SASL_USERNAME=flights-score",
    "export RIVERKEEPER_SASL_PASSWORD=...                # never a flag: command lines are public on a machine",
    "export RIVERKEEPER_SSL_CAFILE=/etc/kafka/ca.crt     # unless a public authority signed the broker's certificate",
    "```",
    "",
    "Every command takes them, and docs/settings.md lists them all. A wrong password, an unknown user, a mechanism",
    "that the broker does not have, a certificate that we do not trust or a missing right is one sentence on",
    "standard error and an exit status that is not 0: trying again would not help, so nothing does.",
    "",
    "## What each part needs",
    "",
    "`riverkeeper acls my_module:flights --broker kafka:9092` prints the `kafka-acls.sh` commands, each role with a",
    "user of its own; `--for score --principal User:scorer` those of one. A process that runs several agents needs",
    "the sum of their rights. Nothing else is needed: Read and Write imply Describe, and Write on any topic implies",
    "idempotent writes (Kafka 2.8 and later). Topic names are those below behind `<pipeline>.`.",
    "",
    "| role | does | Read on topics | Write on topics | consumer groups | transactional ids |",
    "|---|---|---|---|---|---|",
]
_FOOT = [
    "",
    "An agent looks at its rights on topics when it starts and names all that are missing, so that the right to",
    "write `verdicts`, say, is not missed for the first time when a model has to be taken out. A right that is taken",
    "away later ends the agent at the next use of it, with the same sentence.",
    "",
    "`riverkeeper skip` moves an agent's checkpoint, and needs that agent's rights.",
    "",
    "Nobody needs rights on the cluster, none but the creator may create topics, and none may delete or alter one.",
    "Whoever may write `verdicts` may take models out and put them back; whoever may write `models` cannot make an",
    "agent open a version, for that takes the signing key as well. `events` is the one topic that is open to what is",
    "not trusted.",
]


if __name__ == "__main__":
    sys.stdout.write(document())
