"""Opening a version's bytes without trusting them: an unpickler that knows River's vocabulary only.

A pickle is a program. Restricting `find_class` alone is not enough, because the program can also
call what it was given, set attributes on it and hand numpy states that reach outside its buffers.
So this one restricts three things:

- the names: River's estimator packages (classes defined where they are named, and the few
  functions that its own pickles hold), a short list of types of the standard library and numpy, and
  classes of the modules the user declared;
- the calls: only the constructors in `_CALLEES`, each with its arguments checked. An admitted name
  that is no constructor can be held in the model but not called while it is being opened;
- the states: only instances get one, never a class, a function or an enum member (the state of a
  class would be a patch of River in this process), no attribute begins with two underscores, and
  the states of numpy's objects are checked against the memory they index.

It runs on the interpreter's Python unpickler: the one in C cannot be told to refuse a state. That
takes about twice as long (3.0 s instead of 1.4 s for a 4.3 MB forest of two million opcodes, 0.6 ms for a
linear pipeline of 5 kB, on two busy cores), and lets other threads run meanwhile.
"""

from __future__ import annotations

import collections
import copy
import datetime
import enum
import functools
import importlib
import io
import math
import numbers
import pickle
import random
import re
import statistics
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy._core import multiarray, numeric
from numpy.random import _pickle as numpy_random
from numpy.random import bit_generator

# River's packages that hold estimators and their parts. Not among them: those that reach files,
# the network or `eval` (datasets, stream, evaluate, checks, compat) and bandit's environments.
RIVER_PACKAGES = frozenset(
    "_river_rust active anomaly bandit base cluster compose conf covariance drift dummy ensemble facto"
    " feature_extraction feature_selection forest imblearn linear_model metrics misc model_selection"
    " multiclass multioutput naive_bayes neighbors optim preprocessing proba reco rules sketch stats"
    " time_series tree utils".split()
)
_REFUSED_SEGMENTS = frozenset({"datasets", "envs"})

# The functions that River's estimators hold as values. Listed, because a function is code to run.
RIVER_FUNCTIONS = frozenset(
    {
        ("river._river_rust.vectordict", "euclidean_distance_dict"),
        ("river._river_rust.vectordict", "euclidean_distance_tuple"),
        ("river.feature_extraction.vectorize", "strip_accents_unicode"),
        ("river.feature_extraction.vectorize", "tokenize_using_regex_pattern"),
        ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_all"),
        ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_drop"),
        ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_off"),
        ("river.metrics.mutual_info", "_average_arithmetic"),
        ("river.metrics.mutual_info", "_average_geometric"),
        ("river.naive_bayes.gaussian", "GaussianNB._make_gaussian"),
        ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_multivariate"),
        ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_univariate"),
    }
)

# River classes that pickle as a call of themselves; the others are made empty and given a state.
_RIVER_CALLED = ("river._river_rust.", "river.time_series.holt_winters")

MAX_BYTES = 64 * 1024 * 1024  # bytes; see version.MAX_VERSION_BYTES


class UntrustedVersion(ValueError):
    """The bytes ask for something outside the allow-list, or are no pickle; the text names it."""


def _refuse(what: str) -> NoReturn:
    raise UntrustedVersion(f"refused to open the version: {what}")


def _name(thing: object) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', type(thing).__name__)}"


def bound(owner: object, name: str) -> object:
    """The method `name` of `owner`, for `getattr` in a pickle: how bound methods travel.

    Resolved on the class, statically: an instance's attributes, descriptors, dunders and
    `__getattr__` play no part, so nothing but a method of an admitted class comes out.
    """
    cls = owner if isinstance(owner, type) else type(owner)
    if name.startswith("__"):
        _refuse(f"attribute {name!r} of {_name(cls)}")
    if (cls, name) in _BUILTIN_METHODS:
        return getattr(owner, name)
    if not cls.__module__.startswith("river."):
        _refuse(f"method {name!r} of {_name(cls)}, which is not River's")
    found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    if isinstance(found, staticmethod):
        return found.__func__
    if isinstance(found, classmethod) or (isinstance(found, types.FunctionType) and owner is not cls):
        return found.__get__(None if owner is cls else owner, cls)
    _refuse(f"attribute {name!r} of {_name(cls)}, which is not a method")


_RANDOM_METHODS = "betavariate choice expovariate gauss randint random randrange sample shuffle uniform"
_BUILTIN_METHODS = frozenset(
    {(str, "lower"), (str, "upper"), (str, "strip")}
    | {(random.Random, name) for name in _RANDOM_METHODS.split()}
)

# Names outside River, by what a pickle calls them, and what they open as.
VALUES: Mapping[tuple[str, str], object] = {
    **{
        ("builtins", kind.__name__): kind
        for kind in (bool, bytearray, bytes, complex, dict, float, frozenset, int, iter, list, object)
    },
    **{("builtins", kind.__name__): kind for kind in (range, set, slice, str, tuple)},
    ("builtins", "getattr"): bound,
    ("collections", "Counter"): collections.Counter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "deque"): collections.deque,
    ("copy", "deepcopy"): copy.deepcopy,
    **{
        ("datetime", kind.__name__): kind
        for kind in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone)
    },
    ("functools", "partial"): functools.partial,
    **{
        ("numbers", kind.__name__): kind
        for kind in (numbers.Number, numbers.Complex, numbers.Real, numbers.Rational, numbers.Integral)
    },
    ("numpy", "array"): np.array,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "ones"): np.ones,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "scalar"): multiarray.scalar,
    ("numpy._core.numeric", "_frombuffer"): numeric._frombuffer,  # type: ignore[attr-defined]
    ("numpy.random._mt19937", "MT19937"): np.random.MT19937,
    ("numpy.random._pcg64", "PCG64"): np.random.PCG64,
    ("numpy.random._pickle", "__bit_generator_ctor"): numpy_random.__bit_generator_ctor,
    ("numpy.random._pickle", "__generator_ctor"): numpy_random.__generator_ctor,
    ("numpy.random._pickle", "__randomstate_ctor"): numpy_random.__randomstate_ctor,
    ("numpy.random.bit_generator", "SeedSequence"): np.random.SeedSequence,
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): getattr(
        bit_generator, "__pyx_unpickle_SeedSequence"
    ),
    ("random", "Random"): random.Random,
    ("statistics", "NormalDist"): statistics.NormalDist,
}

# Plain numbers and fixed-width text: no objects (pointers), no structures.
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US]\d{1,4}")
_GENERATORS = (np.random.MT19937, np.random.PCG64)

Check = Callable[[tuple[Any, ...]], bool]


def _of(*kinds: type) -> Check:
    """Exactly these types, in order."""
    return lambda args: tuple(map(type, args)) == kinds


def _anything(args: tuple[Any, ...]) -> bool:
    return True


def _numbers(args: tuple[Any, ...]) -> bool:
    return all(isinstance(a, (int, float)) or a is None for a in args)


def _plain_dtype(args: tuple[Any, ...]) -> bool:
    return (
        len(args) == 3
        and type(args[0]) is str
        and _PLAIN_DTYPE.fullmatch(args[0]) is not None
        and args[1:] == (False, True)
    )


def _buffer(args: tuple[Any, ...]) -> bool:
    return len(args) == 4 and type(args[0]) in (bytes, bytearray) and isinstance(args[1], np.dtype)


def _scalar(args: tuple[Any, ...]) -> bool:
    return len(args) == 2 and isinstance(args[0], np.dtype) and type(args[1]) is bytes


def _datetime(args: tuple[Any, ...]) -> bool:
    return all(isinstance(a, (int, float, bytes, str, datetime.timedelta, datetime.tzinfo)) for a in args)


# What may be called while a version is opened, and with what.
_CALLABLE: Mapping[object, Check] = {
    bound: lambda args: len(args) == 2 and type(args[1]) is str,
    complex: _numbers,
    range: _numbers,
    slice: _numbers,
    iter: _of(list),
    collections.Counter: _of(dict),
    collections.OrderedDict: _of(),
    collections.defaultdict: lambda args: len(args) <= 1,
    collections.deque: lambda args: not args or (len(args) == 2 and args[0] == ()),
    datetime.date: _datetime,
    datetime.datetime: _datetime,
    datetime.time: _datetime,
    datetime.timedelta: _datetime,
    datetime.timezone: _datetime,
    # Holding a callable is what an estimator does; a partial is never itself called in here.
    functools.partial: lambda args: len(args) == 1,
    np.dtype: _plain_dtype,
    multiarray._reconstruct: lambda args: args == (np.ndarray, (0,), b"b"),
    multiarray.scalar: _scalar,
    numeric._frombuffer: _buffer,  # type: ignore[attr-defined]
    numpy_random.__bit_generator_ctor: lambda args: len(args) == 1 and args[0] in _GENERATORS,
    numpy_random.__generator_ctor: lambda args: _of(*_GENERATORS[:1])(args) or _of(*_GENERATORS[1:])(args),
    numpy_random.__randomstate_ctor: lambda args: _of(*_GENERATORS[:1])(args) or _of(*_GENERATORS[1:])(args),
    getattr(bit_generator, "__pyx_unpickle_SeedSequence"): lambda args: (
        len(args) == 3 and args[0] is np.random.SeedSequence and args[2] is None
    ),
    random.Random: _of(),
}
# By identity: an object of the pickle's own making may compare equal to whatever it likes.
_CALLEES = {id(func): check for func, check in _CALLABLE.items()}


def _array_fits(state: Any) -> bool:
    """Shape, type and bytes agree: numpy would read past a buffer that is too short."""
    if type(state) is not tuple or len(state) != 5:
        return False
    _, shape, dtype, _, raw = state
    if not (isinstance(dtype, np.dtype) and not dtype.hasobject and type(raw) is bytes):
        return False
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        return False
    return len(raw) == math.prod(shape) * dtype.itemsize


def _twister_fits(state: Any) -> bool:
    """The Mersenne twister's position indexes its key of 624 words, unchecked by numpy."""
    inner = state[0] if type(state) is tuple else state
    if type(inner) is not dict or type(inner.get("state")) is not dict:
        return False
    if inner.get("bit_generator") != "MT19937":
        return inner.get("bit_generator") == "PCG64"
    key, position = inner["state"].get("key"), inner["state"].get("pos")
    fits = isinstance(key, np.ndarray) and key.shape == (624,) and key.dtype == np.uint32
    return fits and type(position) is int and 0 <= position <= 624


def _seed_fits(state: Any) -> bool:
    if type(state) is not tuple or len(state) != 5:
        return False
    pool, size = state[2:4]
    return isinstance(pool, np.ndarray) and pool.dtype == np.uint32 and pool.shape == (size,)


def _partial_fits(state: Any) -> bool:
    if type(state) is not tuple or len(state) != 4:
        return False
    func, args, kwargs, attributes = state
    return callable(func) and type(args) is tuple and type(kwargs) is dict and attributes is None


# Objects outside River that take a state through their own `__setstate__`, and which states.
_STATES: Mapping[type, Callable[[Any], bool]] = {
    functools.partial: _partial_fits,
    np.ndarray: _array_fits,
    np.random.MT19937: _twister_fits,
    np.random.PCG64: _twister_fits,
    np.random.RandomState: _twister_fits,
    np.random.Generator: lambda state: state is None,
    np.random.SeedSequence: _seed_fits,
    random.Random: lambda state: type(state) is tuple,
    type(iter([])): lambda state: type(state) is int,
}


class AllowList:
    """Which estimators may be opened: River's, and classes of the modules named in `trusted`.

    A trusted module is one of the user's own that defines estimators. Its classes are made and
    called as they wish to be; its functions, and what it imported from elsewhere, are not admitted.
    """

    def __init__(self, trusted: frozenset[str] = frozenset()) -> None:
        self.trusted = trusted

    def opens(self, data: bytes) -> object:
        """The object that was dumped. Raises `UntrustedVersion`; nothing outside was changed then."""
        if len(data) > MAX_BYTES:
            _refuse(f"{len(data)} bytes; at most {MAX_BYTES} are opened")
        try:
            return _Opener(data, self).load()
        except UntrustedVersion:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 hostile bytes raise anything; a panic in Rust is no Exception
            raise UntrustedVersion(f"the version does not open: {type(error).__name__}: {error}") from error

    def admits(self, module: str, name: str) -> object:
        """What a pickle's global stands for. Raises `UntrustedVersion`, naming it, if it may not be used."""
        if (module, name) in VALUES:
            return VALUES[module, name]
        if not (_is_river(module) or module in self.trusted):
            _refuse(f"{module}.{name} is not on the allow-list")
        found = _walk(module, name)
        if (module, name) in RIVER_FUNCTIONS:
            return found
        if isinstance(found, type) and found.__module__ == module and found.__qualname__ == name:
            return found
        _refuse(f"{module}.{name} is not a class defined there")

    def owns(self, cls: type) -> bool:
        """Whether `cls` is River's or the user's, so that its instances hold attributes."""
        return _is_river(cls.__module__) or cls.__module__ in self.trusted


def _is_river(module: str) -> bool:
    root, _, rest = module.partition(".")
    segments = rest.split(".")
    return root == "river" and segments[0] in RIVER_PACKAGES and _REFUSED_SEGMENTS.isdisjoint(segments)


def _walk(module: str, name: str) -> object:
    """The attribute at a dotted path, through classes only and without running a descriptor."""
    found: object = importlib.import_module(module)
    for step in name.split("."):
        if not isinstance(found, (type, types.ModuleType)) or step not in vars(found):
            _refuse(f"{module}.{name} does not exist")
        if isinstance(found, types.ModuleType) and found.__name__ != module:
            _refuse(f"{module}.{name} leads into another module")
        found = vars(found)[step]
        found = found.__func__ if isinstance(found, staticmethod) else found
    return found


class _Opener(pickle._Unpickler):
    """One opening. Relies on the interpreter's `pickle._Unpickler`: its stack and its table of opcodes."""

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readinto: Callable[[bytearray], int]

    def __init__(self, data: bytes, allow: AllowList) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False)
        self._allow = allow
        self._size = len(data)

    def find_class(self, module: str, name: str) -> Any:
        return self._allow.admits(module, name)

    def persistent_load(self, pid: object) -> NoReturn:
        _refuse("a persistent id")

    def pop_mark(self) -> list[Any]:
        return super().pop_mark()  # type: ignore[misc, no-any-return]

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        func = self.stack[-1]
        if type(args) is not tuple or not self._may_call(func, args):
            _refuse(f"a call of {_name(func)} with the arguments it was given")
        self.stack[-1] = func(*args)

    def _may_call(self, func: object, args: tuple[Any, ...]) -> bool:
        check = _CALLEES.get(id(func))
        if check is not None:
            return check(args)
        if not isinstance(func, type):
            return False
        return func.__module__.startswith(_RIVER_CALLED) or func.__module__ in self._allow.trusted

    def _load_newobj(self) -> None:
        self._new(self.stack.pop(), {})

    def _load_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        self._new(self.stack.pop(), kwargs)

    def _new(self, args: Any, kwargs: Any) -> None:
        cls = self.stack.pop()
        if not isinstance(cls, type) or not (self._allow.owns(cls) or cls is statistics.NormalDist):
            _refuse(f"an instance of {_name(cls)}")
        self.append(cls.__new__(cls, *args, **kwargs))

    def _load_build(self) -> None:
        state = self.stack.pop()
        inst = self.stack[-1]
        cls = type(inst)
        if isinstance(inst, np.dtype):
            if state != inst.__reduce__()[2]:
                _refuse(f"the state of a {inst}")
        elif cls in _STATES:
            if not _STATES[cls](state):
                _refuse(f"the state of a {_name(cls)}")
            inst.__setstate__(state)
        elif isinstance(inst, (type, enum.Enum)) or not (
            self._allow.owns(cls) or cls is statistics.NormalDist
        ):
            _refuse(f"a state for {_name(inst)}")
        else:
            self._give(inst, state)

    def _give(self, inst: Any, state: Any) -> None:
        """The state of an estimator or of a part of one, as `object.__reduce_ex__` wrote it."""
        for name in _attributes(state):
            if type(name) is not str or name.startswith("__"):
                _refuse(f"attribute {name!r} of {_name(type(inst))}")
        if hasattr(type(inst), "__setstate__"):
            inst.__setstate__(state)
            return
        plain, slots = state if type(state) is tuple else (state, None)
        for name, value in (plain or {}).items():
            inst.__dict__[sys.intern(name)] = value
        for name, value in (slots or {}).items():
            setattr(inst, name, value)

    def _load_append(self) -> None:
        value = self.stack.pop()
        self._target(list, collections.deque).append(value)

    def _load_appends(self) -> None:
        items = self.pop_mark()
        self._target(list, collections.deque).extend(items)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._target(dict)[key] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = self._target(dict)
        for i in range(0, len(items), 2):
            target[items[i]] = items[i + 1]

    def _load_additems(self) -> None:
        items = self.pop_mark()
        self._target(set).update(items)

    def _target(self, *kinds: type) -> Any:
        if not isinstance(self.stack[-1], kinds):
            _refuse(f"items for {_name(type(self.stack[-1]))}")
        return self.stack[-1]

    def _load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:  # the plain one allocates what is announced, then reads
            _refuse(f"a buffer of {size} bytes in {self._size}")
        buffer = bytearray(size)
        self.readinto(buffer)
        self.append(buffer)


def _attributes(state: Any) -> Iterator[object]:
    for part in state if type(state) is tuple else (state,):
        if type(part) is dict:
            yield from part


# What `version.dump` writes, and nothing older: no other way to name a global, no persistent ids, no
# extension registry, no buffers out of band.
_PLAIN = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT"
    " SHORT_BINBYTES BINBYTES BINBYTES8 SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1"
    " TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT EMPTY_SET FROZENSET STACK_GLOBAL BINGET LONG_BINGET MEMOIZE"
)
_GUARDED = "REDUCE NEWOBJ NEWOBJ_EX BUILD APPEND APPENDS SETITEM SETITEMS ADDITEMS BYTEARRAY8"


def _opcode(name: str) -> int:
    code: bytes = getattr(pickle, name)
    return code[0]


def _no_such_opcode(opener: Any) -> NoReturn:
    _refuse("an opcode that versions do not use")


_Opener.dispatch = {
    **dict.fromkeys(range(256), _no_such_opcode),
    **{_opcode(name): pickle._Unpickler.dispatch[_opcode(name)] for name in _PLAIN.split()},
    **{_opcode(name): getattr(_Opener, f"_load_{name.lower()}") for name in _GUARDED.split()},
}
