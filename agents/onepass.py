"""Plain events in one pass: from bytes to a fact's fields, checked as they are decoded.

Only where that says what the strict reader says. The two differ over what msgspec skips (numbers beyond any
float, bytes that are no text), and over integers beyond 64 bits. So nothing may be left over, integers are
bounded, and fields are flat. What is refused here is read again by the strict reader, which says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, inspect

from ..models.pipeline import EventFields
from ..topics.messages import Fact

OWN = ("_id", "_type", "_time")  # what an event says of itself, beside the fields that are declared
INTEGER = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TIME = Annotated[datetime, Meta(tz=True)]
Read = Callable[[bytes], Any]


def one_pass(
    declared: type[Fact], name: str, event: EventFields, own_id: object, narrowed: Mapping[str, object]
) -> Read | None:
    """The reader of plain events of a type, by its name; None if the type leaves room for differences.

    What it returns has the declared fields, and those in `OWN`, of which the id is an `own_id`; set to UNSET,
    these leave a record of the facts. Texts in `narrowed` are to be of that type. It raises whatever msgspec's
    decoder does, for what is to be read otherwise.
    """
    config = declared.__struct_config__
    if config.tag is not None or config.array_like or config.forbid_unknown_fields:
        return None
    if hasattr(declared, "__post_init__"):
        return None
    fields = msgspec.structs.fields(declared)
    types = [_bounded(field.type, narrowed.get(field.name)) for field in fields]
    own = dict(zip(OWN, (event.id, event.type, event.time), strict=True))
    names = {field.name: field.encode_name for field in fields}
    if None in types or names.keys() & own.keys() or set(names.values()) & set(own.values()):
        return None
    flat = msgspec.defstruct(
        declared.__name__,
        [
            *((field.name, type_, _default(field)) for field, type_ in zip(fields, types, strict=True)),
            *zip(OWN, (own_id, Literal[name], TIME), strict=True),
        ],
        rename=names | own,
        omit_defaults=config.omit_defaults,
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )
    return msgspec.json.Decoder(flat).decode


def _bounded(annotation: Any, narrowed: Any) -> Any:
    """The annotation, its integers bounded; None for what the two readers may not read alike."""
    info = inspect.type_info(annotation)
    if narrowed is not None:
        return narrowed if info == inspect.StrType() else None
    options = info.types if isinstance(info, inspect.UnionType) else (info,)
    said, *others = [option for option in options if not isinstance(option, inspect.NoneType)] or options
    if others:
        return None
    if isinstance(said, inspect.StrType | inspect.FloatType | inspect.BoolType):
        return annotation
    if said == inspect.IntType():
        return INTEGER if len(options) == 1 else INTEGER | None
    return None


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return field.default
