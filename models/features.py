"""Features: pure functions of a fact, composed by parameter name and compiled to one function over a batch.

    @feature
    def hour(f: Departure) -> int:          # the parameter annotated with the Fact is the fact
        return f.scheduled.hour

    @feature
    def rush(hour: int) -> bool:            # any other parameter is the feature of that name
        return 16 <= hour <= 20

    @fold(key="origin", start=0.0)
    def congestion(level: float, f: Departure) -> float:      # (state, fact) -> state
        return 0.9 * level + 0.1 * max(f.delay, 0.0)

    features=[hour, rush, congestion, "carrier"]     # a string stands for that field of the fact

Declaring runs nothing. `Graph.resolve` checks everything that is declared, drops what nobody wants,
orders the rest and compiles it.
"""

from __future__ import annotations

import ast
import difflib
import dis
import hashlib
import inspect
import keyword
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from enum import Enum
from functools import partial
from graphlib import CycleError, TopologicalSorter
from operator import attrgetter
from types import CodeType, FunctionType, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import msgspec
import numpy as np

from ..topics.messages import Envelope, Fact, Features, Scalar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
F = TypeVar("F", bound=Fact)

INT_RANGE = range(-(2**63), 2**64)  # what JSON readers carry without loss
MAX_FUNCTIONS = 1_000  # followed per fingerprint; a graph that calls more is calling a library
FOLD_PREFIX = b"fold/"
UNSEEN = object()


class PipelineError(ValueError):
    """A declaration that cannot work: says what, where, and what to do. Raised at import."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error message: the known name closest to `name`, or else `otherwise`."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else otherwise


# Declaring


class Feature(Generic[P, R]):
    """A pure function that derives one named value from a fact, or from other features."""

    def __init__(self, function: Callable[P, R], name: str | None = None) -> None:
        self.name = _legal_name(function, name)
        self.function = function
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"feature {self.name!r}"


class Fold(Generic[S, F]):
    """A pure function `(state, fact) -> state`, kept per value of the pipeline's key.

    As a feature of a fact it stands for the state *before* that fact. `start` is a JSON value, or a
    function without parameters that returns one. States are kept as JSON would give them back: None,
    bool, int, float, str, lists (a tuple becomes one) and dicts with str keys. The function must not
    change the state it is given.
    """

    def __init__(self, function: Callable[[S, F], S], key: str, start: Any, name: str | None) -> None:
        self.name = _legal_name(function, name)
        self.function = function
        self.key = key
        self.start = start
        self.__doc__ = function.__doc__

    def __call__(self, state: S, fact: F) -> S:
        return self.function(state, fact)

    def __repr__(self) -> str:
        return f"fold {self.name!r}"


Decorated: TypeAlias = Feature[..., Any] | Fold[Any, Any]
Declared: TypeAlias = Decorated | str


@overload
def feature(function: Callable[P, R], /) -> Feature[P, R]: ...
@overload
def feature(*, name: str) -> Callable[[Callable[P, R]], Feature[P, R]]: ...
def feature(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Declare a feature, named like the function or `name` (for functions made in a loop)."""
    if function is None:
        return partial(Feature, name=name)
    return Feature(function)


def fold(*, key: str, start: Any, name: str | None = None) -> Callable[[Callable[[S, F], S]], Fold[S, F]]:
    """Declare a fold of earlier facts with the same `key`, which must be the pipeline's; see `Fold`."""

    def declare(function: Callable[[S, F], S]) -> Fold[S, F]:
        return Fold(function, key, start, name)

    return declare


def _legal_name(function: Callable[..., Any], name: str | None) -> str:
    if not isinstance(function, FunctionType) or inspect.iscoroutinefunction(function):
        raise PipelineError(f"{function!r} is not a plain function; only those can be features or folds")
    name = name or function.__name__
    if not name.isidentifier() or keyword.iskeyword(name):
        raise PipelineError(
            f"{name!r} ({_place(function)}) cannot name a feature, for no parameter can ask for it; "
            "give name= an identifier"
        )
    return name


def _place(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{function.__module__}, line {code.co_firstlineno}"


# Reading declarations


@dataclass(frozen=True)
class _Node:
    """A declared feature, fold or field, with its annotations resolved.

    `wants` maps each parameter filled by another node to its annotation; `fact` is the annotation
    of the parameter that takes the fact, None if there is none. Annotations that are missing are Any.
    """

    kind: Literal["feature", "fold", "field"]
    name: str
    function: Callable[..., Any]
    returns: Any
    arguments: tuple[str, ...] = ()  # as the call is written
    wants: Mapping[str, Any] = field(default_factory=dict)
    fact: type[Fact] | None = None
    key: str = ""
    start: bytes = b""  # JSON

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class _Reader:
    """Turns declarations into nodes, for one pipeline."""

    pipeline: str
    fact_type: type[Fact]
    key: str

    def error(self, message: str) -> PipelineError:
        return PipelineError(f"{self.pipeline}: {message}")

    def read(self, declared: Declared) -> _Node:
        if isinstance(declared, str):
            return self._field(declared)
        if isinstance(declared, Feature):
            return self._feature(declared)
        if isinstance(declared, Fold):
            return self._fold(declared)
        raise self.error(f"{declared!r} in features is no @feature, @fold or name of a field; decorate it")

    def _field(self, name: str) -> _Node:
        fields = field_types(self.fact_type)
        if name not in fields:
            hint = did_you_mean(name, fields, f"; it has {', '.join(fields)}")
            raise self.error(f"features names {name!r}, no field of {self.fact_type.__name__}{hint}")
        return _Node("field", name, attrgetter(name), fields[name])

    def _feature(self, declared: Feature[..., Any]) -> _Node:
        signature, hints = self._signature(declared)
        wants: dict[str, Any] = {}
        arguments: list[str] = []
        facts: list[type[Fact]] = []
        for parameter in signature.parameters.values():
            annotation = hints.get(parameter.name, Any)
            self._composable(declared, parameter)
            if _is_fact(annotation):
                facts.append(self._reads(declared, annotation))
            else:
                wants[parameter.name] = annotation
            value = "fact" if _is_fact(annotation) else f"v_{parameter.name}"
            keyword_only = parameter.kind is parameter.KEYWORD_ONLY
            arguments.append(f"{parameter.name}={value}" if keyword_only else value)
        if len(facts) > 1:
            raise self.error(f"{declared} takes the fact twice; once is enough")
        returns = hints.get("return", Any)
        fact = facts[0] if facts else None
        return _Node("feature", declared.name, declared.function, returns, tuple(arguments), wants, fact)

    def _fold(self, declared: Fold[Any, Any]) -> _Node:
        signature, hints = self._signature(declared)
        parameters = list(signature.parameters.values())
        for parameter in parameters:
            self._composable(declared, parameter)
        if len(parameters) != 2 or any(p.kind is p.KEYWORD_ONLY for p in parameters):
            raise self.error(f"{declared} must take (state, fact), not {signature}")
        state, fact = (hints.get(parameter.name, Any) for parameter in parameters)
        if declared.key != self.key:
            raise self.error(
                f"{declared} is keyed by {declared.key!r}, but the pipeline by {self.key!r}: its "
                f"state would be split over partitions; key the fold by {self.key!r}, or the pipeline by "
                f"{declared.key!r}"
            )
        fact = self._reads(declared, self.fact_type if fact is Any else fact)
        returns = state if (given := hints.get("return", Any)) is Any else given
        start = self._start(declared, state, returns)
        arguments = (f"v_{declared.name}", "fact")
        return _Node(
            "fold", declared.name, declared.function, returns, arguments, {}, fact, declared.key, start
        )

    def _start(self, declared: Fold[Any, Any], state: Any, returns: Any) -> bytes:
        try:
            start = _state(declared.start() if callable(declared.start) else declared.start)
        except (TypeError, ValueError) as error:
            raise self.error(f"{declared} cannot start: {error}") from error
        for what, given in (("starts with", type(start)), ("returns", returns)):
            if not _accepts(state, given):
                raise self.error(f"{declared} {what} {_shown(given)}, but takes its state as {_shown(state)}")
        return msgspec.json.encode(start)

    def _signature(self, declared: Decorated) -> tuple[inspect.Signature, dict[str, Any]]:
        try:
            return inspect.signature(declared.function), get_type_hints(declared.function)
        except NameError as error:
            raise self.error(
                f"{declared} ({_place(declared.function)}) has an annotation that cannot be read: {error}; "
                "define or import it at module level, also at run time"
            ) from error

    def _composable(self, declared: Decorated, parameter: inspect.Parameter) -> None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise self.error(f"{declared} takes '{parameter}', but parameters are filled by name; name each")
        if parameter.default is not parameter.empty:
            raise self.error(
                f"{declared} has a default for {parameter.name!r}, but parameters are filled by name; "
                "make the value a constant of the module"
            )

    def _reads(self, declared: Decorated, annotation: Any) -> type[Fact]:
        if _is_fact(annotation) and issubclass(self.fact_type, annotation):
            return self.fact_type
        raise self.error(
            f"{declared} reads {_shown(annotation)}, but the pipeline's facts are "
            f"{self.fact_type.__name__}; annotate it with {self.fact_type.__name__}, or drop it from features"
        )


def field_types(fact_type: type[Fact]) -> dict[str, Any]:
    """The fields of a fact, by name in order of declaration, with their annotations."""
    return {each.name: each.type for each in msgspec.structs.fields(fact_type)}


def _is_fact(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Fact)


def _shown(annotation: Any) -> str:
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    return annotation.__name__ if plain else str(annotation)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The classes that values of an annotation may have; Any where that cannot be told."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return tuple(kind for each in get_args(annotation) for kind in _kinds(each))
    if origin is Literal:
        return tuple(type(each) for each in get_args(annotation))
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if annotation is None:
        return (NoneType,)
    kind = origin or annotation
    return (kind,) if isinstance(kind, type) and kind is not object else (Any,)


def _accepts(wanted: Any, given: Any) -> bool:
    """Whether every value of `given` may stand for `wanted`; True where either says nothing."""
    kinds = _kinds(wanted)
    return all(any(_is_kind(each, kind) for kind in kinds) for each in _kinds(given))


def _is_kind(given: Any, wanted: Any) -> bool:
    if given is Any or wanted is Any or (wanted is float and issubclass(given, int)):
        return True
    try:
        return issubclass(given, wanted)
    except TypeError:  # a protocol that cannot be checked at run time
        return True


def _carried(annotation: Any) -> bool:
    """Whether a record can carry values of an annotation as a feature."""
    return _accepts(bool | int | float | str | None | Enum | np.generic, annotation)


# Values


def _scalar(value: Any) -> Scalar:
    """The value as a record carries it. Raises TypeError or ValueError if none can."""
    kind = type(value)
    if kind is float:
        if math.isfinite(value):
            return value  # type: ignore[no-any-return]
        raise ValueError(f"{value} is not finite")
    if kind is bool or value is None:
        return value  # type: ignore[no-any-return]
    if kind is str:
        # Lone surrogates have no UTF-8 form: they raise here, not when the whole batch is encoded.
        return value if value.isascii() or value.encode() else value  # type: ignore[no-any-return]
    if kind is int:
        if value in INT_RANGE:
            return value  # type: ignore[no-any-return]
        raise ValueError("an integer of more than 64 bits")
    return _scalar(_unwrapped(value))


def _unwrapped(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not one of bool, int, float, str, None")


def _state(value: Any) -> Any:
    """A fold's state as the store would give it back, apart from what the fold holds on to."""
    if isinstance(value, (list, tuple)):
        return [_state(each) for each in value]
    if isinstance(value, dict):
        if not all(type(name) is str for name in value):
            raise TypeError("a state's dicts must have str keys: others do not come back from the store")
        return {name: _state(each) for name, each in value.items()}
    return _scalar(value)


@dataclass(frozen=True, slots=True)
class FeatureFailure:
    """A fact has no features: which one failed, and how. The traceback begins in the feature."""

    feature: str
    error: BaseException


def _failure(feature_name: str, error: BaseException) -> FeatureFailure:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    # The outermost frame is the batch's own; kept, it would hold the whole batch in memory.
    trace = error.__traceback__
    return FeatureFailure(feature_name, error.with_traceback(trace.tb_next if trace else None))


class FoldState:
    """The states of folds, by fold and key. One per partition of `facts`; not for several threads.

    Grows with the number of keys in the partition.
    """

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}
        # Dicts for their order: the same facts give the same changes in the same order.
        self._touched: dict[str, dict[str, None]] = {}

    @classmethod
    def restore(cls, items: Iterable[tuple[bytes, bytes]]) -> FoldState:
        """The states as `changes` gave them, the last of each store key; other store keys are passed over."""
        folds = cls()
        for store_key, value in items:
            if store_key.startswith(FOLD_PREFIX):
                _, name, key = store_key.decode().split("/", 2)
                folds.of(name)[0][key] = msgspec.json.decode(value)
        return folds

    def of(self, name: str) -> tuple[dict[str, Any], dict[str, None]]:
        """One fold's states by key, and the keys that changed; whoever sets the first adds to the second."""
        return self._states.setdefault(name, {}), self._touched.setdefault(name, {})

    def changes(self) -> dict[bytes, bytes]:
        """Store key → JSON of every state set since the last call, which forgets them."""
        changed = {
            f"fold/{name}/{key}".encode(): msgspec.json.encode(self._states[name][key])
            for name, keys in self._touched.items()
            for key in keys
        }
        for keys in self._touched.values():
            keys.clear()
        return changed


# The graph

Extract: TypeAlias = Callable[[FoldState, Sequence[Envelope[Any]]], list[Features | FeatureFailure]]


@dataclass(frozen=True)
class Graph:
    """What some wanted features need, checked, ordered and compiled.

    `extract(folds, facts)` returns a row per fact, in order: the `wanted` features by name, or the
    `FeatureFailure` of a fact that has none because a feature or a fold raised, or gave what a record
    cannot carry (not finite, not a scalar). A failing fact changes nothing for the others; a failing
    fold keeps its state. The folds take in each fact after its features are computed, whether or not
    these failed, at `Envelope.key`. Does not block.

    `fingerprint` changes with the code of what is wanted, see `_fingerprint`.
    """

    wanted: tuple[str, ...]
    extract: Extract = field(repr=False)
    fingerprint: str
    source: str = field(repr=False)  # of `extract`

    @classmethod
    def resolve(
        cls,
        pipeline_name: str,
        features: Sequence[Declared],
        wanted: Iterable[str],
        fact_type: type[Fact],
        key: str,
    ) -> Graph:
        """Raises PipelineError for any fault in `features`, wanted or not.

        Rows hold what is wanted in the order of `features`.
        """
        reader = _Reader(pipeline_name, fact_type, key)
        nodes = _by_name(reader, features)
        order = _ordered(reader, nodes)
        outputs = _outputs(reader, nodes, frozenset(wanted))
        needed = _needed(nodes, outputs)
        kept = [nodes[name] for name in order if name in needed]
        source = _source(kept, outputs)
        return cls(outputs, _compiled(source, kept), _fingerprint(kept, outputs), source)


def _by_name(reader: _Reader, features: Sequence[Declared]) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    for node in map(reader.read, features):
        if node.name in nodes:
            raise reader.error(
                f"{nodes[node.name]} and another {node.kind} of that name are both in features; "
                "drop one, or rename it: @feature(name=...)"
            )
        nodes[node.name] = node
    for node in nodes.values():
        for wish, annotation in node.wants.items():
            _check_wish(reader, nodes, node, wish, annotation)
    return nodes


def _check_wish(reader: _Reader, nodes: Mapping[str, _Node], node: _Node, wish: str, annotation: Any) -> None:
    giver = nodes.get(wish)
    if giver is None:
        raise reader.error(f"{node} asks for {wish!r}, which nothing provides{_remedy(reader, nodes, wish)}")
    if not _accepts(annotation, giver.returns):
        raise reader.error(
            f"{node} takes {wish!r} as {_shown(annotation)}, but {giver} gives {_shown(giver.returns)}; "
            "make the annotations agree"
        )


def _remedy(reader: _Reader, nodes: Mapping[str, _Node], name: str) -> str:
    fact = reader.fact_type.__name__
    if name in field_types(reader.fact_type):
        return f"; it is a field of {fact}: add {name!r} to features"
    return did_you_mean(name, nodes, f"; add it to features, or annotate it with {fact} if it is the fact")


def _ordered(reader: _Reader, nodes: Mapping[str, _Node]) -> tuple[str, ...]:
    try:
        return tuple(TopologicalSorter({name: node.wants for name, node in nodes.items()}).static_order())
    except CycleError as error:
        ring = " asks for ".join(repr(name) for name in reversed(error.args[1]))
        raise reader.error(f"features form a cycle: {ring}; let one of them read the fact instead") from None


def _outputs(reader: _Reader, nodes: Mapping[str, _Node], wanted: frozenset[str]) -> tuple[str, ...]:
    for name in sorted(wanted - nodes.keys()):
        raise reader.error(f"{name!r} is wanted, but nothing provides it{_remedy(reader, nodes, name)}")
    outputs = tuple(name for name in nodes if name in wanted)
    for node in (nodes[name] for name in outputs):
        if not _carried(node.returns):
            raise reader.error(
                f"{node} is wanted by a model, but gives {_shown(node.returns)}, and models read bool, int, "
                "float, str or None; derive one of these from it, and leave it out of Model(features=...)"
            )
    return outputs


def _needed(nodes: Mapping[str, _Node], outputs: Iterable[str]) -> frozenset[str]:
    needed: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending.extend(nodes[name].wants)
    return frozenset(needed)


COMPILED = "<features>"  # the file that a traceback names for compiled features

# Compiling. Values are v_<name>, functions f_<name>, and rows are built from r_<name>.


def _source(kept: Sequence[_Node], outputs: Sequence[str]) -> str:
    folds = [node.name for node in kept if node.kind == "fold"]
    numbers = [node for node in kept if node.name in outputs and _is_number(node)]
    named = {node.name for node in numbers}
    row = ", ".join(f"{name!r}: {'v' if name in named else 'r'}_{name}" for name in outputs)
    lines = [
        "def extract(folds, facts):",
        *(f"    s_{name}, t_{name} = folds.of({name!r})" for name in folds),
        "    rows = []",
        "    for envelope in facts:",
        "        fact, key = envelope.data, envelope.key",
        *(line for name in folds for line in _read_fold(name)),
        "        try:",
        *(line for node in kept for line in _evaluate(node, node.name in outputs and node.name not in named)),
        *_check(numbers),
        f"            row = {{{row}}}",
        "        except BaseException as error:",
        "            row = failure(at, error)",
        *(line for name in folds for line in _advance(name)),
        "        rows.append(row)",
        "    return rows",
    ]
    return "\n".join(lines) + "\n"


def _read_fold(name: str) -> Iterator[str]:
    yield f"        v_{name} = s_{name}.get(key, unseen)"
    yield f"        if v_{name} is unseen:"
    yield f"            v_{name} = start_{name}()"


def _evaluate(node: _Node, is_output: bool) -> Iterator[str]:
    if node.kind != "field" or is_output:  # a declared field is there
        yield f"            at = {node.name!r}"
    if node.kind == "field":
        yield f"            v_{node.name} = fact.{node.name}"
    elif node.kind == "feature":
        yield f"            v_{node.name} = f_{node.name}({', '.join(node.arguments)})"
    if is_output:
        yield f"            r_{node.name} = scalar(v_{node.name})"


def _is_number(node: _Node) -> bool:
    """Whether the node is a field of the fact that is declared as a float: decoded, it is one, and finite."""
    return node.kind == "field" and node.returns is float


def _check(numbers: Sequence[_Node]) -> Iterator[str]:
    """Numbers that are declared as such are looked at together: their sum is a finite float only if each
    of them is one that a record carries. Else, and where the sum overflows, each is looked at by itself."""
    if not numbers:
        return
    yield "            try:"
    yield f"                total = {' + '.join(['0.0', *(f'v_{node.name}' for node in numbers)])}"
    yield "            except (TypeError, OverflowError):"
    yield "                total = None"
    yield "            if type(total) is not float or not lowest < total < highest:"
    for node in numbers:
        yield f"                at = {node.name!r}"
        yield f"                v_{node.name} = scalar(v_{node.name})"


def _advance(name: str) -> Iterator[str]:
    yield "        try:"
    yield f"            s_{name}[key] = state(f_{name}(v_{name}, fact))"
    yield f"            t_{name}[key] = None"
    yield "        except BaseException as error:"
    yield f"            failed = failure({name!r}, error)"
    yield "            row = failed if type(row) is dict else row"


def _compiled(source: str, kept: Sequence[_Node]) -> Extract:
    scope: dict[str, Any] = {"unseen": UNSEEN, "scalar": _scalar, "state": _state, "failure": _failure}
    scope |= {"lowest": -math.inf, "highest": math.inf}
    scope |= {f"f_{node.name}": node.function for node in kept}
    # Decoding gives every key a start of its own, and cannot fail.
    scope |= {f"start_{n.name}": partial(msgspec.json.decode, n.start) for n in kept if n.kind == "fold"}
    exec(compile(source, COMPILED, "exec"), scope)
    extract: Extract = scope["extract"]
    return extract


# The fingerprint


def _fingerprint(kept: Sequence[_Node], outputs: Sequence[str]) -> str:
    """16 hex digits over the wanted features: names, wiring, annotations, folds' keys and starts, code.

    Code is a function's source without comments, docstrings and its own decorators, and what it
    names: functions of the same top-level package, and constants made of numbers, strings, times
    and containers of these. Other packages, classes and attributes of modules count by name only.
    Stable over processes and hash seeds; not over minor versions of Python.
    """
    seen: set[CodeType] = set()
    parts = [repr(outputs)]
    for node in sorted(kept, key=lambda node: node.name):
        annotations = sorted((name, _shown(annotation)) for name, annotation in node.wants.items())
        parts.append(repr((node.kind, node.name, node.arguments, annotations, _shown(node.returns))))
        parts.append(repr((node.key, node.start)))
        if isinstance(node.function, FunctionType):
            parts.append(_function_text(node.function, _package(node.function), seen))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _package(function: FunctionType) -> str:
    return function.__module__.partition(".")[0]


def _function_text(function: FunctionType, package: str, seen: set[CodeType]) -> str:
    """A function's code, then what it names; each function's once."""
    if function.__code__ in seen or len(seen) >= MAX_FUNCTIONS:
        return function.__qualname__
    seen.add(function.__code__)
    named = sorted(_named(function).items())
    texts = [f"{name} = {_text(value, package, seen)}" for name, value in named]
    return "\n".join([_code_text(function), *texts])


def _named(function: FunctionType) -> dict[str, Any]:
    """The globals and closed-over variables that the code reads and that exist."""
    scope = function.__globals__
    names = {name: scope[name] for name in _globals(function.__code__) if name in scope}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    return names


def _globals(code: CodeType) -> set[str]:
    names = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    nested = (const for const in code.co_consts if isinstance(const, CodeType))
    return names.union(*map(_globals, nested))


def _code_text(function: FunctionType) -> str:
    if function.__name__ == "<lambda>":  # its source is the whole line it stands on
        return _bytecode_text(function.__code__)
    try:
        # By the code, for by the function inspect would look past a wrapper.
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, SyntaxError):
        return _bytecode_text(function.__code__)
    return ast.unparse(_bare(tree))


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings and the outermost decorators."""
    for each in ast.walk(tree):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(each, clean=False) is not None:
                each.body = each.body[1:] or [ast.Pass()]
    if isinstance(outermost := tree.body[0], ast.FunctionDef):
        outermost.decorator_list = []
    return tree


def _bytecode_text(code: CodeType) -> str:
    consts = [
        _bytecode_text(const) if isinstance(const, CodeType) else _text(const, "", set())
        for const in code.co_consts
    ]
    return repr((code.co_code, consts, code.co_names, code.co_varnames))


def _text(value: Any, package: str, seen: set[CodeType]) -> str:
    """What changes when the value does, as far as `_fingerprint` promises; otherwise its class."""
    value = inspect.unwrap(value.function if isinstance(value, (Feature, Fold)) else value)
    if isinstance(value, FunctionType) and _package(value) == package:
        return _function_text(value, package, seen)
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_text(each, package, seen) for each in value)})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_text(each, package, seen) for each in value))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(_text(each, package, seen) for each in value.items()))}}}"
    if isinstance(value, (NoneType, bool, int, float, complex, str, bytes, Enum, date, time, timedelta)):
        return repr(value)
    return type(value).__qualname__
