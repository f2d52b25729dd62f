"""From what went wrong to one sentence for the command line: what, where, and what to do."""

from __future__ import annotations

import errno
import logging
import re

from aiokafka.errors import (
    InvalidReplicationFactorError,
    KafkaConnectionError,
    KafkaError,
    for_code,
)
from pydantic import ValidationError

from .models.features import PipelineError
from .settings import PREFIX, SECRETS, SettingsError
from .topics.catalog import TopicMissing
from .topics.embedded import EmbeddedBrokerError
from .topics.rights import refusal
from .topics.store import RevisionMismatch

POLICY_VIOLATION = for_code(44)
SPEAKING = (PipelineError, SettingsError, TopicMissing, RevisionMismatch, EmbeddedBrokerError)


class LastWords(logging.Handler):
    """Remembers what aiokafka logged last: why a broker could not be reached is told nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.text = record.getMessage()


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group of groups; the exception itself if it is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def sentence(error: BaseException, heard: str = "") -> str | None:
    """What to tell; None if the exception is a fault of the program, whose traceback is wanted.

    `heard` is what the Kafka client said last.
    """
    told = [_sentence(leaf, heard) for leaf in leaves(error)]
    known = [each for each in told if each is not None]
    return known[0] if known and len(known) == len(told) else None


def _sentence(error: BaseException, heard: str) -> str | None:
    refused = refusal(error)
    if refused is not None:
        return str(refused)
    if isinstance(error, SPEAKING) or _speaks(error):
        return str(error)
    if isinstance(error, ValidationError) and error.title == "Settings":
        return "; ".join(
            _unfit(str(each["loc"][0]) if each["loc"] else "", each["msg"]) for each in error.errors()
        )
    if isinstance(error, KafkaConnectionError):
        return _unreachable(str(error), heard)
    if isinstance(error, InvalidReplicationFactorError):
        return (
            f"the cluster has too few brokers for the copies asked for ({_plain(error)}); on a single broker "
            "pass --replication 1 --min-insync 1, where nothing outlives its disk"
        )
    if isinstance(error, KafkaError):
        return f"Kafka: {_plain(error)}"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"the address for /livez, /readyz and /metrics is taken, perhaps by another run; choose one with --port "
            f"or {PREFIX}PORT, 0 for any that is free ({error.strerror})"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return None


def _speaks(error: BaseException) -> bool:
    """Whether its text was written for whoever runs the command; by name, for its module may not be loaded."""
    names = {
        "AgentFailed",
        "PartitionsDiffer",
        "DataMissing",
        "Overruled",
        "OtherStream",
        "NotAtWork",
        "NotFresh",
        "Stalled",
        "Unruly",
        "CannotAudit",
    }
    return type(error).__module__.startswith("riverkeeper.") and type(error).__name__ in names


def _unfit(field: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not field:
        return message
    flag = "" if field in SECRETS else f" or --{field.replace('_', '-')}"
    return f"{PREFIX}{field.upper()}{flag}: {message}"


def _unreachable(text: str, heard: str) -> str:
    hosts = ",".join(f"{host}:{port}" for host, port in re.findall(r"\('([^']+)', (\d+)", text))
    broker = f"the broker at {hosts}" if hosts else "the broker"
    why = re.sub(r"^Unable connect to \S+ ", "", heard)
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return (
            f"{broker} shows a certificate that we do not trust ({why}); name the authority that signed it with "
            f"--ssl-cafile or {PREFIX}SSL_CAFILE"
        )
    if "uthentication" in why or "UnsupportedSaslMechanism" in why:
        return (
            f"{broker} does not accept us ({why}); check {PREFIX}SASL_USERNAME, {PREFIX}SASL_PASSWORD "
            "and --sasl-mechanism"
        )
    because = f" ({why})" if why else ""
    return (
        f"no connection to {broker}{because}; is Kafka there, and does --security-protocol fit it? "
        f"Name it with --broker host:port or {PREFIX}BROKER, or start one with `riverkeeper broker`"
    )


def _plain(error: BaseException) -> str:
    return re.sub(r"^(\[Error \d+\] )?\w+: ", "", str(error)) or type(error).__name__
