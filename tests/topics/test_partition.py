"""Outputs land where any Kafka client's default partitioner puts their keys."""

import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper.topics.partition import partition, partitions

KEYS = st.lists(st.binary(max_size=40), max_size=50)  # fewer are hashed one by one, more together

# From org.apache.kafka.common.utils.UtilsTest.testMurmur2.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@given(KEYS, st.integers(1, 1000))
def test_a_batch_is_placed_as_aiokafka_places_each_key(keys: list[bytes], count: int) -> None:
    assert partitions(keys, count) == [(murmur2(key) & 0x7FFFFFFF) % count for key in keys]


@pytest.mark.parametrize(("key", "hashed"), JAVA.items())
def test_a_key_is_placed_as_java_places_it(key: bytes, hashed: int) -> None:
    # A prime above every count in use, so that nearly all of the hash shows.
    assert partition(key, 2**31 - 1) == (hashed & 0x7FFFFFFF) % (2**31 - 1)
    assert partition(key, 7) == (hashed & 0x7FFFFFFF) % 7
