"""The slices that models are judged apart by: the facts that show one value of a declared feature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .sketch import MAX_TEXT


def slices_of(names: Iterable[str], row: Mapping[str, object]) -> list[str]:
    """The slices that a row belongs to, as "name=value"."""
    return [f"{name}={str(row[name])[:MAX_TEXT]}" for name in names if name in row]
