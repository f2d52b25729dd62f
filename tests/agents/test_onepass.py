"""An event read in one pass is read as the strict reader reads it, to the byte, or is left to that."""

import json
import random
from typing import Annotated, Any

import msgspec
import pytest

from riverkeeper import Fact
from riverkeeper.agents import ingest
from riverkeeper.agents.ingest import ID, PLACE, Parsed, Parser
from riverkeeper.agents.onepass import one_pass
from riverkeeper.models.pipeline import EventFields, Pipeline
from riverkeeper.topics.messages import BadRecord, ErrorCode
from tests.agents.tiny import Sale, Stored, paid, sale, tiny


class Reading(Fact, rename={"unit": "unit of it"}):
    basket: str
    shop: str
    amount: float
    count: int
    whole: int | None = None
    level: Annotated[float, msgspec.Meta(ge=-100)] | None = 0.5
    good: bool = False
    unit: Annotated[str, msgspec.Meta(max_length=5)] | None = "m"


PIPELINE = tiny(facts=Reading)
READING = {
    "id": "r1",
    "type": "reading",
    "time": "2024-01-01T10:00:00.25+01:00",
    "basket": "b1",
    "shop": "größe",
    "amount": 2.5,
    "count": 7,
    "whole": -3,
    "level": -1.25e-3,
    "good": True,
    "unit of it": "\u2028 𝄞",
}
BASES = [
    json.dumps(READING, ensure_ascii=False).encode(),
    json.dumps(READING).encode(),
    json.dumps({name: READING[name] for name in ("count", "amount", "shop", "basket", "time", "type", "id")}).encode(),
    paid("p1"),
]  # fmt: skip


def read(parser: Parser, value: bytes) -> Parsed | ErrorCode:
    try:
        return parser.parse(Stored(0, value))
    except BadRecord as bad:
        return bad.code


def strictly(pipeline: Pipeline = PIPELINE) -> Parser:
    parser = Parser(pipeline)
    parser._quick = []
    return parser


def agree(value: bytes) -> bool:
    """Whether the event was read in one pass, if both readers make the same of it."""
    QUICK._at_once = QUICK._otherwise = 0
    assert read(QUICK, value) == read(STRICT, value), value
    return QUICK._at_once == 1


QUICK, STRICT = Parser(PIPELINE), strictly()


@pytest.mark.parametrize("value", BASES)
def test_it_is_read_in_one_pass(value: bytes) -> None:
    assert agree(value)


def test_of_bytes_that_were_shaken() -> None:
    rng = random.Random(7)
    at_once = 0
    for _ in range(20_000):
        value = bytearray(rng.choice(BASES))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(value))
            value[place : place + rng.randrange(2)] = bytes(
                [rng.choice(b'0123456789"{}[]:,.-+eTZ\\u \n\x00\x1f\x7f\xc3\xff')]
            )
        at_once += agree(bytes(value))
    assert at_once > 500, "nothing but bad events would prove nothing"


# What takes the place of the number that `amount` is, and of the integer that `count` is.
NUMBERS = [
    "5", "-0", "-0.0", "0.0", "1e3", "1E+2", "1e-400", "4.9e-324", "2.2250738585072011e-308", "1.7976931348623159e308",
    "1e999", "-1e999", "NaN", "Infinity", "null", "true", '"5"', "01", "1.", ".5", "-", "+1", "1e", "0x1", "1_0", "[1]",
    "1.0", "1.5", "9" * 18, "9" * 19, "9" * 25, "9" * 400, "9" * 5000, "9007199254740993", "9007199254740993.0",
    "0.1000000000000000055511151231257827021181583404541015625",
    str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), str(-(2**63)), str(-(2**63) - 1),
]  # fmt: skip


@pytest.mark.parametrize("field", ["amount", "count", "whole", "level", "unknown"])
@pytest.mark.parametrize("number", NUMBERS)
def test_of_numbers(field: str, number: str) -> None:
    agree(json.dumps({**READING, field: "@"}).replace('"@"', number).encode())


FIELDS: dict[str, list[Any]] = {
    "id": ["", 7, None, True, "x" * 512, "x" * 513, "𝄞" * 512, [], "\ud800"],
    "unit of it": ["", "123456", None, "x\x00y", "\ud83d\ude00"],
    "shop": ["", None, 5, "x\x00y", "x" * 256, "x" * 257],
    "basket": ["x" * 256, "x" * 257, "𝄞" * 256, "x" * 1024, "x" * 1025],
    "type": ["paid", "other", None, "reading ", "READING"],
    "unknown": [1, "x", {"a": [{}]}, None],
    "time": [
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00Z",
        "1970-01-01T00:30:00+01:00",
        "2199-12-31T23:59:59.999999Z",
        "2200-01-01T00:00:00Z",
        "2200-01-01T00:30:00+01:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2024-01-01T10:00:00",
        "2024-01-01",
        "2024-01-01 10:00:00Z",
        "2024-01-01T10:00:00.123456789Z",
        "2024-02-30T10:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T10:00:60Z",
        1_704_103_200_500,
        -1,
        1.5,
        None,
    ],
}


@pytest.mark.parametrize("field", FIELDS)
def test_of_fields(field: str) -> None:
    for said in FIELDS[field]:
        agree(json.dumps({**READING, field: said}).encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"{", b'{"count": "x", '),
        (b"}", b', "count": 9}'),
        (b"}", b', "id": "r2", "time": "2024-01-01T00:00:00Z"}'),
        (b"}", b', "type": "paid"}'),
        (b"}", b"} "),
        (b"}", b"}x"),
        (b"}", b"}}"),
        (b"{", b"\xef\xbb\xbf{"),
        (b"{", b"\x0c{"),
        (b"{", b"[{"),
        (b'"id"', b'"\\u0069d"'),
        (b'"b1"', b'"\xed\xa0\x80"'),
        (b'"b1"', b'"a\nb"'),
        (b"}", b',"x":"\xff"}'),
        (b"}", b',"x":1e999}'),
    ],
)
def test_of_unusual_json(old: bytes, new: bytes) -> None:
    agree(BASES[0].replace(old, new, 1))


class Nested(Fact):
    basket: str
    shop: str
    note: Any = None


class Strict(Fact, forbid_unknown_fields=True):
    basket: str
    shop: str


class Checked(Fact):
    basket: str
    shop: str

    def __post_init__(self) -> None:
        if self.shop == "closed":
            raise ValueError("closed")


class Timed(Fact):
    basket: str
    shop: str
    time: str


class Positive(Fact):
    basket: str
    shop: str
    count: Annotated[int, msgspec.Meta(ge=0)]


class Closed(Fact):
    basket: str
    shop: Annotated[str, msgspec.Meta(max_length=5)]


class Either(Fact):
    basket: str
    shop: str
    count: int | float


@pytest.mark.parametrize("declared", [Nested, Strict, Checked, Timed, Positive, Closed, Either, Sale])
def test_a_type_that_may_be_read_otherwise_is_left_to_the_strict_reader(declared: type[Fact]) -> None:
    assert one_pass(declared, "x", EventFields(), ID, {"shop": PLACE}) is None


def test_fields_may_have_other_names() -> None:
    pipeline = tiny(facts=Reading, event=EventFields(id="uid", time="when", type="kind"))
    value = json.dumps(
        {**{"uid": "u", "kind": "reading", "when": READING["time"]}, **dict(list(READING.items())[3:])}
    ).encode()
    quick = Parser(pipeline)
    assert read(quick, value) == read(strictly(pipeline), value)
    assert quick._at_once == 1


def test_where_it_seldom_does_it_is_not_tried_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_OTHERWISE", 5)
    parser = Parser(PIPELINE)
    for _ in range(3):
        read(parser, BASES[0])
    for _ in range(8):
        assert parser._quick
        read(parser, sale())
    assert read(parser, sale()) == read(strictly(), sale())
    assert not parser._quick
    assert read(parser, BASES[0]) == read(strictly(), BASES[0])
