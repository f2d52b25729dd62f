"""Where a text stands between 0 and 1, for ever: shares are taken by it, and one that grows keeps what it has."""

from __future__ import annotations

import zlib

HASHES = 2**32  # values of crc32


def point(text: bytes) -> float:
    return zlib.crc32(text) / HASHES
