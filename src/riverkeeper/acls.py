"""What each part of a pipeline needs of a broker with access control, and the commands that grant it.

One table: the commands are printed from it, docs/security.md is made from it, a process checks at its start
the topics it names.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .models.pipeline import Pipeline
from .topics.rights import Right

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
        "`riverkeeper status` and `riverkeeper audit`",
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
        "`riverkeeper quarantine` and `riverkeeper admit`", reads=("models", "verdicts"), writes=("verdicts",)
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
        found += [Right(o, "topic", everything, prefixed=True) for o in ("Create", "DescribeConfigs")]
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
