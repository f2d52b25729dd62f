"""A Kafka broker inside this process, for a first run and for fast tests: librdkafka's mock cluster.

It speaks the Kafka protocol on loopback ports, keeps everything in memory, and is gone when closed.
What it cannot do is listed at `EmbeddedBroker`.
"""

import ctypes
import sys
import time
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiokafka.coordinator.assignors.range import RangePartitionAssignor

RETAINED_BYTES = 5 * 1024 * 1024  # bytes a partition keeps, newest batches first; fixed inside librdkafka
# Bytes up to which a batch stays readable. librdkafka sets the start of a partition before it appends, so
# that a batch which displaces all before it lies below the start: acknowledged, and lost.
MAX_BATCH_BYTES = RETAINED_BYTES // 2
AUTO_PARTITIONS = 4  # partitions of a topic that a client's metadata request brings into being; fixed, too
MAX_BROKERS = 9  # more proves nothing that three do not; each is a listening socket
EVERY_BROKER = -1  # what librdkafka takes for "all of them" where it takes a broker id

_CLUSTER_ID_PREFIX = "mockCluster"
_PRODUCER = 0  # RD_KAFKA_PRODUCER: the cluster needs a handle of either kind
_TOPIC_EXISTS = 36  # Kafka's TOPIC_ALREADY_EXISTS
_LEADER_WAIT = 0.05  # seconds; followers in other processes answer within a few ms
_ERROR_BYTES = 512  # room for librdkafka's error texts, the size its own examples use


class EmbeddedBrokerError(RuntimeError):
    """The embedded broker could not be loaded or started, or refused what it was asked to do."""


def is_embedded(cluster_id: str | None) -> bool:
    """Whether the cluster that reports this id in its metadata is an embedded broker, of any process.

    With aiokafka the id is `(await AIOKafkaAdminClient(...).describe_cluster())["cluster_id"]`.
    """
    return cluster_id is not None and cluster_id.startswith(_CLUSTER_ID_PREFIX)


class EmbeddedBroker:
    """A running cluster of `brokers` brokers with ids from 1; stops at `close` or at the end of `with`.

    It differs from Apache Kafka in ways that clients notice:

    - topics come from `create_topic`, not by request; but a client that asks for an unknown one brings it
      into being with `AUTO_PARTITIONS` partitions;
    - a partition keeps its newest `RETAINED_BYTES`; a fetch below that is OffsetOutOfRange;
    - a batch above `MAX_BATCH_BYTES` may be acknowledged and lost; a fetch returns one batch per partition;
    - idempotent producers are accepted, but a batch that is sent again is written again;
    - transactions neither hide nor roll back, and their markers fail the CRC check of aiokafka;
    - the append time in its acknowledgements is always 1234, and no offset can be found by time;
    - a rebalance takes the group's session timeout less 1 s;
    - a group of more than one member needs `PatientRangeAssignor`;
    - a broker that is down keeps its partitions: move them with `set_leader`.
    """

    def __init__(self, brokers: int = 1) -> None:
        """Start listening on free ports of 127.0.0.1. Raises EmbeddedBrokerError."""
        if not 1 <= brokers <= MAX_BROKERS:
            raise ValueError(f"embedded broker: brokers={brokers} is outside 1..{MAX_BROKERS}")
        self._rd = _library()
        self._brokers = brokers
        self._partitions: dict[str, int] = {}
        self._handle: int | None = _new_handle(self._rd)
        self._cluster: int | None = self._rd.rd_kafka_mock_cluster_new(self._handle, brokers)
        if self._cluster is None:
            self._destroy_handle()
            raise EmbeddedBrokerError("embedded broker: librdkafka could not listen on 127.0.0.1")
        # Its default of 3 s is what a first consumer of each group would wait.
        self._rd.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.address: str = self._rd.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int) -> None:
        """Create the topic; nothing happens if it exists with that many partitions.

        Raises EmbeddedBrokerError if it exists with another number.
        """
        if partitions < 1:
            raise ValueError(f"embedded broker: topic {name!r} needs at least 1 partition, not {partitions}")
        err = self._rd.rd_kafka_mock_topic_create(self._running(), name.encode(), partitions, self._brokers)
        if err == _TOPIC_EXISTS:
            return self._require_partitions(name, partitions)
        self._check(err, f"create topic {name!r}")
        self._partitions[name] = partitions

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Forget what lies below offset `before`, as retention does: whole batches only."""
        cluster = self._running()
        err = self._rd.rd_kafka_mock_partition_delete_records(cluster, topic.encode(), partition, before)
        self._check(err, f"delete records of {topic}-{partition}")

    def set_down(self, broker_id: int = EVERY_BROKER) -> None:
        """Cut the broker's connections and refuse new ones. Leaders stay where they are."""
        err = self._rd.rd_kafka_mock_broker_set_down(self._running(), broker_id)
        self._check(err, f"take down {broker_id}")

    def set_up(self, broker_id: int = EVERY_BROKER) -> None:
        """Accept connections again; what the broker's partitions held is still there."""
        err = self._rd.rd_kafka_mock_broker_set_up(self._running(), broker_id)
        self._check(err, f"bring up {broker_id}")

    def set_leader(self, topic: str, partition: int, broker_id: int) -> None:
        """Make the broker lead the partition, with all that it holds; -1 leaves it without a leader."""
        cluster = self._running()
        err = self._rd.rd_kafka_mock_partition_set_leader(cluster, topic.encode(), partition, broker_id)
        self._check(err, f"move {topic}-{partition} to {broker_id}")

    def set_coordinator(self, group: str, broker_id: int) -> None:
        """Make the broker coordinate the consumer group."""
        err = self._rd.rd_kafka_mock_coordinator_set(self._running(), b"group", group.encode(), broker_id)
        self._check(err, f"let {broker_id} coordinate {group!r}")

    def set_rtt(self, milliseconds: int, broker_id: int = EVERY_BROKER) -> None:
        """Delay every response of the broker by so much; 0 ends it."""
        err = self._rd.rd_kafka_mock_broker_set_rtt(self._running(), broker_id, milliseconds)
        self._check(err, f"delay {broker_id}")

    def push_request_errors(self, api_key: int, errors: Sequence[int]) -> None:
        """Answer the next requests of that kind with these error codes of the protocol, one each.

        A produce request that is answered so was not written. 0 lets one request pass.
        """
        codes = (ctypes.c_int * len(errors))(*errors)
        self._rd.rd_kafka_mock_push_request_errors_array(self._running(), api_key, len(errors), codes)

    def clear_request_errors(self, api_key: int) -> None:
        """Drop the errors pushed for that kind of request and not yet given out."""
        self._rd.rd_kafka_mock_clear_request_errors(self._running(), api_key)

    def close(self) -> None:
        """Stop, and forget every record. Does nothing the second time."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            self._rd.rd_kafka_mock_cluster_destroy(cluster)
        self._destroy_handle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _destroy_handle(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._rd.rd_kafka_destroy(handle)

    def _running(self) -> int:
        if self._cluster is None:
            raise EmbeddedBrokerError("embedded broker: it is closed")
        return self._cluster

    def _require_partitions(self, name: str, partitions: int) -> None:
        found = self._partitions.get(name, AUTO_PARTITIONS)
        if found == partitions:
            return
        asked = "a client asked for it first; create topics before clients start"
        cause = "it was created so" if name in self._partitions else asked
        raise EmbeddedBrokerError(
            f"embedded broker: topic {name!r} has {found} partitions, not {partitions}: {cause}"
        )

    def _check(self, err: int, action: str) -> None:
        if err:
            text: str = self._rd.rd_kafka_err2str(err).decode()
            raise EmbeddedBrokerError(f"embedded broker: could not {action}: {text}")


class PatientRangeAssignor(RangePartitionAssignor):  # type: ignore[misc]  # aiokafka is not typed
    """aiokafka's range assignor, for groups on the embedded broker whose members are in different processes.

    The embedded broker answers all members when the leader's assignment arrives, and refuses a member that
    asks later (InvalidRequestError, which aiokafka does not survive). So the leader blocks its loop for 50 ms
    per rebalance. Members that share a loop cannot be helped: give each its own process or thread.
    """

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> Any:
        time.sleep(_LEADER_WAIT)
        return super().assign(cluster, members)


def _new_handle(rd: ctypes.CDLL) -> int:
    conf = rd.rd_kafka_conf_new()
    # Without this librdkafka writes to stderr of its own accord, e.g. when a client drops its connection.
    rd.rd_kafka_conf_set_log_cb(conf, None)
    text = ctypes.create_string_buffer(_ERROR_BYTES)
    handle: int | None = rd.rd_kafka_new(_PRODUCER, conf, text, _ERROR_BYTES)
    if handle is None:
        rd.rd_kafka_conf_destroy(conf)
        raise EmbeddedBrokerError(f"embedded broker: librdkafka did not start: {text.value.decode()}")
    return handle


@cache
def _library() -> ctypes.CDLL:
    """The shared object in the `confluent-kafka` wheel, with the signatures of what is called here."""
    path = _library_path()
    try:
        rd = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(rd, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EmbeddedBrokerError(
            f"embedded broker: {path} does not fit ({error}); install confluent-kafka 2.16 or a newer 2.x"
        ) from error
    return rd


def _library_path() -> Path:
    spec = find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise EmbeddedBrokerError("embedded broker: it needs confluent-kafka: pip install confluent-kafka")
    package = Path(spec.origin).parent
    # auditwheel and delocate, which bundle libraries into wheels, each have their own place for them.
    folder = package / ".dylibs" if sys.platform == "darwin" else package.with_name("confluent_kafka.libs")
    found = sorted(folder.glob("librdkafka*"))
    if not found:
        raise EmbeddedBrokerError(
            f"embedded broker: no librdkafka in {folder}; this confluent-kafka was built from source: "
            "pip install --force-reinstall --only-binary :all: confluent-kafka"
        )
    return found[0]


_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_I16, _I32, _I64, _SIZE = ctypes.c_int16, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_destroy": (None, [_POINTER]),
    "rd_kafka_conf_set_log_cb": (None, [_POINTER, _POINTER]),
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, _SIZE]),
    "rd_kafka_destroy": (None, [_POINTER]),
    "rd_kafka_err2str": (_TEXT, [_INT]),
    "rd_kafka_mock_cluster_new": (_POINTER, [_POINTER, _INT]),
    "rd_kafka_mock_cluster_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, [_POINTER]),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [_POINTER, _I32]),
    "rd_kafka_mock_topic_create": (_INT, [_POINTER, _TEXT, _INT, _INT]),
    "rd_kafka_mock_partition_delete_records": (_INT, [_POINTER, _TEXT, _I32, _I64]),
    "rd_kafka_mock_partition_set_leader": (_INT, [_POINTER, _TEXT, _I32, _I32]),
    "rd_kafka_mock_coordinator_set": (_INT, [_POINTER, _TEXT, _TEXT, _I32]),
    "rd_kafka_mock_broker_set_down": (_INT, [_POINTER, _I32]),
    "rd_kafka_mock_broker_set_up": (_INT, [_POINTER, _I32]),
    "rd_kafka_mock_broker_set_rtt": (_INT, [_POINTER, _I32, _INT]),
    "rd_kafka_mock_push_request_errors_array": (None, [_POINTER, _I16, _SIZE, ctypes.POINTER(_INT)]),
    "rd_kafka_mock_clear_request_errors": (None, [_POINTER, _I16]),
}
