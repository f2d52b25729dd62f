"""A seat in a consumer group that a process finds again when it is started anew.

A member that was killed keeps its partitions until its session is over. Kafka gives them at once to a
member that comes back under the same name (`group.instance.id`), so a name must belong to one live process
and be the same for the one that takes its place. An abstract Unix socket is such a name: the kernel keeps
it for one process at a time, a stopped one included, and frees it when the process ends, however it ends.
"""

from __future__ import annotations

import hashlib
import socket
import sys
from pathlib import Path

MAX_SEATS = 64  # replicas of one agent in one network namespace; those beyond have no name
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # one for each run of a kernel, so for each machine
_NETWORK = Path("/proc/self/ns/net")  # the namespace in which abstract sockets are unique


class Seat:
    """The least name of a group that is free here, held until `leave` or the end of the process.

    `name` is None where names cannot be held (not Linux, too many replicas): then a killed member's
    partitions wait for its session.
    """

    def __init__(self, group: str) -> None:
        self.name: str | None = None
        self._held: socket.socket | None = None
        here = _here()
        if here is None:
            return
        for n in range(MAX_SEATS):
            held = _hold(f"riverkeeper {group} {n}")
            if held is not None:
                self.name, self._held = f"{here}-{n}", held
                return

    def leave(self) -> None:
        if self._held is not None:
            self._held.close()


def _here() -> str | None:
    """A name for everything that can see the same abstract sockets."""
    if sys.platform != "linux":
        return None
    try:
        inode = _NETWORK.stat().st_ino
        return hashlib.sha256(f"{_BOOT.read_text().strip()} {inode}".encode()).hexdigest()[:16]
    except OSError:  # a sandbox without /proc
        return None


def _hold(name: str) -> socket.socket | None:
    # A digest, for a pipeline's name may be longer than an address.
    address = b"\0riverkeeper-" + hashlib.sha256(name.encode()).hexdigest().encode()
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(address)
    except OSError:
        held.close()
        return None
    return held
