"""What a broker with access control allows us, and what its refusals say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from .log import DeliveryError

CAUSES = 8  # links of a chain of exceptions that are followed: aiokafka and ours make three or four
OPERATIONS = {
    3: "Read",
    4: "Write",
    5: "Create",
    8: "Describe",
    10: "DescribeConfigs",
}  # Kafka's AclOperation


class Right(NamedTuple):
    """One operation on one resource, by Kafka's names."""

    operation: str
    resource: str  # topic, group, transactional-id or cluster
    name: str
    prefixed: bool = False  # the name is the beginning of names

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource} {self.name}"


class NotAllowed(Exception):
    """The broker's access control refuses us; trying again cannot help."""

    def __init__(self, missing: Sequence[Right]) -> None:
        super().__init__(
            f"the broker does not allow this user {', '.join(map(str, missing))}; "
            "`riverkeeper acls MODULE:PIPELINE` prints the commands that grant it"
        )
        self.missing = missing


def refusal(error: BaseException) -> NotAllowed | None:
    """What an exception, or one of those it came from, says was refused; None if nothing was."""
    operation = "Read"
    cause: BaseException | None = error
    for _ in range(CAUSES):
        match cause:
            case None:
                return None
            case NotAllowed():
                return cause
            case DeliveryError():
                operation = "Write"
            case TopicAuthorizationFailedError():
                return NotAllowed([Right(operation, "topic", _named(cause))])
            case GroupAuthorizationFailedError():
                return NotAllowed([Right("Read", "group", _named(cause))])
            case TransactionalIdAuthorizationFailed():
                return NotAllowed([Right("Write", "transactional-id", _named(cause))])
            case ClusterAuthorizationFailedError():
                return NotAllowed([Right(operation, "cluster", "kafka-cluster")])
        cause = cause.__cause__ or cause.__context__
    return None


def _named(error: BaseException) -> str:
    """aiokafka gives a name or a set of names."""
    given = error.args[0] if error.args else ""
    return ", ".join(sorted(given)) if isinstance(given, set | frozenset) else str(given)


async def operations(
    admin: AIOKafkaAdminClient, topics: Iterable[str]
) -> Mapping[str, frozenset[str] | None]:
    """By topic, what we may do with it; None for one that does not exist, as far as we may know."""
    answer = await admin._send_request(_WhatMayWe(list(topics)))
    return {topic: _allowed(for_code(code), bits) for code, topic, _, _, bits in answer.topics}


def _allowed(error: type[Exception], bits: int) -> frozenset[str] | None:
    if error is UnknownTopicOrPartitionError:
        return None
    if error is TopicAuthorizationFailedError:
        return frozenset()
    return frozenset(name for bit, name in OPERATIONS.items() if bits >> bit & 1)


class _Answer(Response):  # type: ignore[misc]  # aiokafka is untyped
    """Metadata, version 8: the first to tell rights; aiokafka knows them up to 5."""

    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _WhatMayWe(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class(self._topics, False, False, True)
