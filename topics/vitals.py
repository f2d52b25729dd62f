"""How vitals travel: those of the pipeline each in a record of its own, those of models many to one.

A record costs Faust ten times what its contents cost the supervisor, and a process with a hundred models
would write two hundred a second.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import TypeAdapter

from .messages import Vitals

MODELS = b"*"  # the key of a record with vitals of models
MOST_BYTES = 200_000  # of one; a fifth of what a record may hold, and some 5 ms of the supervisor's time

_MANY = TypeAdapter(list[Vitals])


def pack(vitals: Iterable[Vitals]) -> list[tuple[bytes, bytes]]:
    """(key, value) of the records to write, in order."""
    found: list[tuple[bytes, bytes]] = []
    open_: list[bytes] = []
    size = 0
    for each in vitals:
        value = each.encode()
        if not each.model:
            found.append((b"", value))
            continue
        if open_ and size + len(value) > MOST_BYTES:
            found.append((MODELS, b"[%b]" % b",".join(open_)))
            open_, size = [], 0
        open_.append(value)
        size += len(value) + 1
    return [*found, (MODELS, b"[%b]" % b",".join(open_))] if open_ else found


def unpack(value: bytes) -> list[Vitals]:
    """All that a record holds. Raises pydantic.ValidationError for what is none."""
    return _MANY.validate_json(value) if value.startswith(b"[") else [Vitals.model_validate_json(value)]
