"""Kafka's default partitioner, a batch of keys at a time.

Outputs go to the partition that the *declared* count gives, computed here and never by the client
library, so that a replay lands where the first run landed and any language's default partitioner
agrees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from aiokafka.partitioner import murmur2
from numpy.typing import NDArray

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)
_WORD = 4  # bytes hashed at a time
_FEW = 8  # keys that are hashed sooner one by one: an array for some takes 25 us, a key of nine bytes 2


def partitions(keys: Sequence[bytes], count: int) -> list[int]:
    """The partition of each key among `count`: toPositive(murmur2(key)) % count."""
    if count == 1 or not keys:
        return [0] * len(keys)
    if len(keys) <= _FEW:
        return [(murmur2(key) & 0x7FFFFFFF) % count for key in keys]
    hashes = np.empty(len(keys), dtype=np.uint32)
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    for length in np.unique(lengths):
        where = np.flatnonzero(lengths == length)
        hashes[where] = _murmur2([keys[i] for i in where.tolist()], int(length))
    placed: list[int] = ((hashes & np.uint32(0x7FFFFFFF)) % np.uint32(count)).tolist()
    return placed


def partition(key: bytes, count: int) -> int:
    return partitions([key], count)[0]


def _murmur2(keys: Sequence[bytes], length: int) -> NDArray[np.uint32]:
    """MurmurHash2 of keys of one length, as in org.apache.kafka.common.utils.Utils.murmur2."""
    raw = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), length)
    hashes = np.full(len(keys), _SEED ^ np.uint32(length), dtype=np.uint32)
    words = length // _WORD
    body = np.ascontiguousarray(raw[:, : words * _WORD]).view("<u4")
    for i in range(words):
        k = body[:, i].astype(np.uint32) * _M
        k ^= k >> np.uint32(24)
        hashes = hashes * _M ^ k * _M
    tail = raw[:, words * _WORD :]
    for i in reversed(range(length - words * _WORD)):
        hashes ^= tail[:, i].astype(np.uint32) << np.uint32(8 * i)
    if tail.shape[1]:
        hashes = hashes * _M
    hashes ^= hashes >> np.uint32(13)
    hashes = hashes * _M
    return hashes ^ (hashes >> np.uint32(15))
