"""Every River estimator opens after it was dumped; nothing else does, whatever a pickle asks for."""

import collections
import copy
import datetime
import functools
import importlib
import inspect
import io
import itertools
import pickle
import pickletools
import pkgutil
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import river
from hypothesis import given, settings
from hypothesis import strategies as st
from river import base, compose, datasets, drift, dummy, linear_model, optim, preprocessing, utils

from riverkeeper.models import unpickle
from riverkeeper.models.unpickle import RIVER_PACKAGES, AllowList, UntrustedVersion

HERE = __name__
# River types these incompletely.
ADWIN: Any = drift.ADWIN
TrumpApproval: Any = datasets.TrumpApproval


class Doubler(base.Transformer):
    """One of the user's own estimators, with an attribute, a slot and a method as a value."""

    def __init__(self) -> None:
        self.factor = 2

    def transform_one(self, x: dict[Any, Any]) -> dict[Any, Any]:
        return {name: value * self.factor for name, value in x.items()}


class _Kept:
    shared: ClassVar[object] = ()


def helper(x: dict[str, Any]) -> dict[str, Any]:
    return x


def opened(data: bytes) -> object:
    return AllowList().opens(data)


# Every estimator.


def _classes() -> Iterator[type]:
    seen = set()
    for package in sorted(RIVER_PACKAGES - {"_river_rust"}):
        module = importlib.import_module(f"river.{package}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__.startswith("river.") and not inspect.isabstract(cls) and cls not in seen:
                seen.add(cls)
                yield cls


def _made(cls: Any) -> Iterator[object]:
    """Instances as River's own checks make them. A class without such parameters is a part of others."""
    params = cls._unit_test_params() if hasattr(cls, "_unit_test_params") else [{}]
    for kwargs in itertools.islice(params, 2):
        try:
            yield cls(**kwargs)
        except (TypeError, ValueError, RuntimeError):
            return


SHAPES: dict[str, list[tuple[Any, Any]]] = {
    "numbers": [(x, y) for x, y in TrumpApproval().take(50)],
    "classes": [(x, y) for x, y in datasets.Phishing().take(50)],
    "outputs": [(x, {"a": y, "b": not y}) for x, y in datasets.Phishing().take(50)],
    "amounts": [(x, {"a": float(y), "b": 1.0}) for x, y in datasets.Phishing().take(50)],
    "texts": [(f"the word {i % 7} of {i}", i % 2 == 0) for i in range(50)],
}


def _taught(thing: Any, examples: list[tuple[Any, Any]]) -> None:
    for x, y in examples:
        if not hasattr(thing, "learn_one"):
            thing.update(float(len(str(x)) % 9))
        elif "y" in inspect.signature(thing.learn_one).parameters:
            thing.learn_one(x, y)
        else:
            thing.learn_one(x)


def _learned(thing: Any) -> object:
    """After fifty examples of the first kind that it can learn from; else as it was."""
    for examples in SHAPES.values():
        candidate = copy.deepcopy(thing)
        try:
            _taught(candidate, examples)
        except Exception:  # noqa: BLE001 River's estimators raise what they like at what they cannot learn
            continue
        return candidate
    return thing


@pytest.mark.parametrize("cls", list(_classes()), ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_every_river_estimator_opens_after_it_has_learned(cls: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # River's own, about settings and small samples
        for made in _made(cls):
            learned = _learned(made)
            again = opened(pickle.dumps(learned, 5))
            assert type(again) is type(learned)
            assert pickle.dumps(opened(pickle.dumps(again, 5)), 5) == pickle.dumps(again, 5) or _holds_sets(
                again
            )


def _holds_sets(thing: object) -> bool:
    """Sets of texts iterate in another order in each copy."""
    codes = {code.name for code, _, _ in pickletools.genops(pickle.dumps(thing, 5))}
    return bool(codes & {"EMPTY_SET", "FROZENSET"})


def test_most_classes_are_really_tried_and_have_learned() -> None:
    made = [thing for cls in _classes() for thing in _made(cls)]
    taught = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thing in made:
            taught += hasattr(thing, "learn_one") and _learned(thing) is not thing
    assert len(made) >= 250
    assert taught >= 125  # of 135; the others learn from users and items, or from time


def test_a_pipeline_answers_as_before_after_it_was_opened() -> None:
    numbers = compose.Select("age_of_domain", "ip_in_url") | preprocessing.StandardScaler()
    places = compose.Select("long_url") | preprocessing.OneHotEncoder()
    model = (numbers + places) | linear_model.LogisticRegression(optimizer=optim.Adam())
    for x, y in datasets.Phishing().take(50):
        model.learn_one(x, y)
    again: Any = opened(pickle.dumps(model, 5))
    for x, _ in datasets.Phishing().take(50):
        # Select holds a set: opened, it may iterate in another order, and sums then differ in their last bit.
        assert again.predict_proba_one(x) == pytest.approx(model.predict_proba_one(x), abs=1e-12)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.array(["a", "bcd"]),
        np.float64(3.5),
        np.random.RandomState(3),
        np.random.default_rng(3),
        np.random.SeedSequence(3),
        np.random.Generator(np.random.MT19937(3)),
        random.Random(3),
        datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC),
        datetime.timedelta(hours=3),
        collections.deque([1, 2], maxlen=4),
        collections.Counter("abca"),
        functools.partial(utils.Rolling, window_size=3),
        complex(1, 2),
        slice(1, 2, 3),
        bytearray(b"abc"),
        frozenset({1, 2}),
        utils.VectorDict({"a": 1.0}),
        ADWIN(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_estimators_hold_opens(value: object) -> None:
    data = pickle.dumps(value, 5)
    assert pickle.dumps(opened(data), 5) == pickle.dumps(pickle.loads(data), 5)


# The user's own.


def test_a_class_of_a_trusted_module_opens_and_of_another_does_not() -> None:
    data = pickle.dumps(Doubler() | linear_model.LinearRegression(), 5)
    assert isinstance(AllowList(frozenset({HERE})).opens(data), compose.Pipeline)
    with pytest.raises(UntrustedVersion, match=f"{HERE}.Doubler"):
        opened(data)


@pytest.mark.parametrize(
    "name", ["helper", "pickle", "collections", "base", "Iterator", "HERE", "_Kept.shared"]
)
def test_of_a_trusted_module_only_its_own_classes_are_admitted(name: str) -> None:
    with pytest.raises(UntrustedVersion, match=name):
        AllowList(frozenset({HERE})).opens(named(HERE, name))


# Attacks. A pickle is put together by hand from these.


def text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def glob(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def whole(*parts: bytes) -> bytes:
    return pickle.PROTO + b"\x05" + b"".join(parts) + pickle.STOP


def named(module: str, name: str) -> bytes:
    return whole(glob(module, name))


def called(func: bytes, *args: bytes) -> bytes:
    return func + pickle.MARK + b"".join(args) + pickle.TUPLE + pickle.REDUCE


def pickled(value: object) -> bytes:
    """The body of a value's pickle, to stand inside another. Only for what needs no memo or frame."""
    data = pickle.dumps(value, 5)
    optimised = pickletools.optimize(data)
    start = 11 if optimised[2:3] == pickle.FRAME else 2
    return optimised[start:-1]


def mapping(**items: bytes) -> bytes:
    pairs = b"".join(text(name) + value for name, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def slots(**items: bytes) -> bytes:
    return pickle.NONE + mapping(**items) + pickle.TUPLE2


NEW_SCALER = glob("river.preprocessing.scale", "StandardScaler") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
LINEAR = glob("river.linear_model.lin_reg", "LinearRegression")
GETATTR = glob("builtins", "getattr")

NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "compile"),
    ("builtins", "open"),
    ("builtins", "__import__"),
    ("builtins", "type"),
    ("builtins", "setattr"),
    ("builtins", "globals"),
    ("builtins", "print"),
    ("builtins", "breakpoint"),
    ("builtins", "map"),
    ("builtins", "str.format"),
    ("builtins", "object.__subclasses__"),
    ("copyreg", "_reconstructor"),
    ("copyreg", "add_extension"),
    ("functools", "reduce"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("types", "FunctionType"),
    ("types", "CodeType"),
    ("codecs", "decode"),
    ("importlib", "import_module"),
    ("collections", "namedtuple"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("numpy", "vectorize"),
    ("numpy", "f2py"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.ctypeslib", "load_library"),
    ("random", "SystemRandom"),
    ("random", "_urandom"),
    ("statistics", "sys"),
    ("riverkeeper.models.unpickle", "AllowList"),
    ("riverkeeper.models.unpickle", "bound"),
    # River's packages that reach files, the network or eval, and what its modules import.
    ("river.datasets.base", "RemoteDataset"),
    ("river.datasets.synth.agrawal", "Agrawal"),
    ("river.stream.cache", "Cache"),
    ("river.bandit.datasets.base", "BanditDataset"),
    ("river.drift.datasets", "AirlinePassengers"),
    ("river.checks", "check_estimator"),
    ("river.evaluate.progressive_validation", "progressive_val_score"),
    ("river", "api"),
    ("river.api", "linear_model"),
    ("river.utils.pretty", "os"),
    ("river.utils.pretty", "sys"),
    ("river.utils", "pretty.sys"),
    ("river.base.base", "sys"),
    ("river.base.base", "sys.modules"),
    ("river.base.base", "sys.modules.__getitem__"),
    ("river.base.base", "inspect.os.system"),
    ("river.base.base", "_log_method_calls"),
    ("river.base.base", "Base.clone"),
    ("river.base.base", "Base.mutate"),
    ("river.base.base", "Base.__init_subclass__"),
    ("river.base.base", "Base.__class__"),
    ("river.linear_model.lin_reg", "LinearRegression.__init__.__globals__"),
    ("river.linear_model", "LinearRegression"),  # a re-export: defined elsewhere
    ("river.preprocessing.scale", "collections.OrderedDict"),
    ("river.preprocessing.scale", "Counter"),
    ("river.preprocessing.scale", "functools.partial"),
    ("river.preprocessing.scale", "numbers.Number"),
    ("river.preprocessing.scale", "safe_div"),
    ("river..linear_model", "LinearRegression"),
    (".river.linear_model", "LinearRegression"),
    ("riverkeeper", "cli"),
    ("river_evil", "X"),
    ("river", "__builtins__"),
    ("river.linear_model.lin_reg", "__builtins__"),
    ("", "eval"),
]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=".".join)
def test_a_name_outside_the_list_is_refused_and_named(module: str, name: str) -> None:
    with pytest.raises(UntrustedVersion) as refusal:
        opened(named(module, name))
    assert module in str(refusal.value)


def test_no_module_and_no_unlisted_function_of_river_is_admitted() -> None:
    """Every attribute of every River module: what is admitted is a class defined there, or listed."""
    admitted = []
    for info in pkgutil.walk_packages(river.__path__, "river."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            continue
        for name in vars(module):
            try:
                found = AllowList().admits(info.name, name)
            except UntrustedVersion:
                continue
            admitted.append(found)
            if not isinstance(found, type):
                assert (info.name, name) in unpickle.RIVER_FUNCTIONS
    assert len(admitted) > 350


CALLS = {
    "bytearray(10**12)": called(glob("builtins", "bytearray"), pickled(10**12)),
    "int of many digits": called(glob("builtins", "int"), text("9" * 20)),
    "str(object, 'utf-8')": called(glob("builtins", "str"), text("x")),
    "numpy.ones(10**12)": called(glob("numpy", "ones"), pickled(10**12)),
    "numpy.array(object)": called(glob("numpy", "array"), pickle.EMPTY_LIST),
    "deepcopy at once": called(glob("copy", "deepcopy"), LINEAR),
    "a River constructor": called(LINEAR),
    "a River function": called(glob("river.metrics.mutual_info", "_average_arithmetic"), b"K\x01", b"K\x01"),
    "a partial of a class": called(called(glob("functools", "partial"), glob("builtins", "list"))),
    "a bound method": called(called(GETATTR, NEW_SCALER, text("learn_one")), pickle.EMPTY_DICT),
    "getattr __class__": called(GETATTR, NEW_SCALER, text("__class__")),
    "getattr __init__": called(GETATTR, NEW_SCALER, text("__init__")),
    "getattr __globals__": called(
        GETATTR, glob("river.metrics.mutual_info", "_average_geometric"), text("__globals__")
    ),
    "getattr of an attribute": called(GETATTR, NEW_SCALER, text("_mutable_attributes")),
    "getattr unbound": called(GETATTR, LINEAR, text("predict_one")),
    "getattr of a dict": called(GETATTR, pickle.EMPTY_DICT, text("update")),
    "getattr format": called(GETATTR, text("{0.__class__}"), text("format")),
    "getattr seed": called(GETATTR, called(glob("random", "Random")), text("__reduce__")),
    "getattr with a default": called(GETATTR, NEW_SCALER, text("x"), pickle.NONE),
    "getattr of a name that is no text": called(GETATTR, NEW_SCALER, b"K\x01"),
    "dtype of objects": called(glob("numpy", "dtype"), text("O"), pickle.NEWFALSE, pickle.NEWTRUE),
    "dtype of a structure": called(glob("numpy", "dtype"), text("i4,O"), pickle.NEWFALSE, pickle.NEWTRUE),
    "a shared dtype": called(glob("numpy", "dtype"), text("f8"), pickle.NEWFALSE, pickle.NEWFALSE),
    "a class as a bit generator": called(
        glob("numpy.random._pickle", "__bit_generator_ctor"),
        glob("river.linear_model.lin_reg", "LinearRegression"),
    ),
    "a constructor for a random state": called(
        glob("numpy.random._pickle", "__randomstate_ctor"), text("x"), glob("builtins", "list")
    ),
    "another class as a SeedSequence": called(
        glob("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"), LINEAR, b"K\x01", pickle.NONE
    ),
    "an array of another class": called(
        glob("numpy._core.multiarray", "_reconstruct"), LINEAR, b"K\x00\x85", pickle.SHORT_BINBYTES + b"\x01b"
    ),
    "iter of a callable": called(glob("builtins", "iter"), glob("builtins", "list"), b"K\x01"),
    "a default dictionary with items": called(
        glob("collections", "defaultdict"), pickle.NONE, pickle.EMPTY_LIST
    ),
    "Counter of an estimator": called(glob("collections", "Counter"), NEW_SCALER),
    "Random seeded by an object": called(glob("random", "Random"), text("x")),
    "a call of an instance": called(NEW_SCALER),
    "a call of a text": called(text("x")),
    "arguments that are no tuple": LINEAR + pickle.EMPTY_LIST + pickle.REDUCE,
    "arguments that are an estimator": glob("collections", "OrderedDict") + NEW_SCALER + pickle.REDUCE,
}


@pytest.mark.parametrize("attack", CALLS.values(), ids=CALLS.keys())
def test_a_call_that_is_no_checked_constructor_is_refused(attack: bytes) -> None:
    with pytest.raises(UntrustedVersion, match="refused to open"):
        opened(whole(attack))


STATES = {
    "a class": LINEAR + slots(predict_one=LINEAR),
    "a class, plainly": LINEAR + mapping(predict_one=LINEAR),
    "a class with __setstate__": glob("river.preprocessing.scale", "StandardScaler") + mapping(x=pickle.NONE),
    "a function": glob("river.metrics.mutual_info", "_average_geometric") + slots(__defaults__=b"K\x01\x85"),
    "a function's attributes": glob("river.metrics.mutual_info", "_average_geometric") + mapping(x=b"K\x01"),
    "a numpy function": glob("numpy", "ones") + slots(__defaults__=b"K\x01\x85"),
    "getattr itself": GETATTR + mapping(x=b"K\x01"),
    "deepcopy": glob("copy", "deepcopy") + slots(__kwdefaults__=pickle.EMPTY_DICT),
    "a builtin class": glob("builtins", "dict") + slots(get=LINEAR),
    "__class__": NEW_SCALER + slots(__class__=LINEAR),
    "__dict__": NEW_SCALER + slots(__dict__=pickle.EMPTY_DICT),
    "__reduce_ex__": NEW_SCALER + mapping(__reduce_ex__=LINEAR),
    "__deepcopy__": NEW_SCALER + mapping(__deepcopy__=LINEAR),
    "a name that is no text": NEW_SCALER + pickle.EMPTY_DICT + b"K\x01" + pickle.NONE + pickle.SETITEM,
    "a bound method": called(GETATTR, NEW_SCALER, text("learn_one")) + mapping(x=pickle.NONE),
    "an ordered dictionary": called(glob("collections", "OrderedDict")) + mapping(x=pickle.NONE),
    "a default dictionary": called(glob("collections", "defaultdict"), pickle.NONE) + mapping(x=pickle.NONE),
    "a number": b"K\x01" + mapping(x=pickle.NONE),
    "a partial with attributes": called(glob("functools", "partial"), LINEAR)
    + pickle.MARK + LINEAR + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT
    + mapping(__deepcopy__=LINEAR) + pickle.TUPLE,
    "a partial of a number": called(glob("functools", "partial"), LINEAR)
    + pickle.MARK + b"K\x01" + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NONE + pickle.TUPLE,
}  # fmt: skip


@pytest.mark.parametrize("attack", STATES.values(), ids=STATES.keys())
def test_a_state_for_what_is_no_plain_instance_is_refused_and_changes_nothing(attack: bytes) -> None:
    def seen() -> object:
        return dict(vars(linear_model.LinearRegression)), vars(copy.deepcopy).copy(), dir(np.ones)

    before = seen()
    with pytest.raises(UntrustedVersion):
        opened(whole(attack, pickle.BUILD))
    assert seen() == before


def test_the_plain_unpickler_would_have_let_a_class_be_patched() -> None:
    """The wrong subject: what the guard on states is for."""
    module, name = HERE, "_Kept"
    pickle.loads(whole(glob(module, name), slots(shared=b"K\x01"), pickle.BUILD))
    assert _Kept.shared == 1
    _Kept.shared = ()


def _state_of(value: Any, change: Callable[[Any], Any]) -> bytes:
    """The value's pickle with another state than it wrote."""

    class Changed(pickle._Pickler):
        def save_reduce(
            self, func: Any, args: Any, state: Any = None, *rest: Any, obj: Any = None, **kw: Any
        ) -> None:
            if obj is value:
                state = change(state)
            super().save_reduce(func, args, state, *rest, obj=obj, **kw)  # type: ignore[misc]

    out = io.BytesIO()
    Changed(out, 5).dump(value)
    return out.getvalue()


def _position(state: Any, pos: int) -> Any:
    inner = state[0] if isinstance(state, tuple) else state
    changed = {**inner, "state": {**inner["state"], "pos": pos}}
    return (changed, state[1]) if isinstance(state, tuple) else changed


STRIDED = np.arange(12.0).reshape(3, 4)[:, ::2]
BAD_STATES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a twister far beyond its key": (np.random.MT19937(1), lambda s: _position(s, 10**8)),
    "a random state beyond its key": (np.random.RandomState(1), lambda s: _position(s, 625)),
    "a negative position": (np.random.RandomState(1), lambda s: _position(s, -1)),
    "a short key": (
        np.random.RandomState(1),
        lambda s: {**s, "state": {"key": np.zeros(3, dtype=np.uint32), "pos": 3}},
    ),
    "a seed pool that is too short": (np.random.SeedSequence(1), lambda s: (s[0], s[1], s[2], 4000, s[4])),
    "an array larger than its bytes": (STRIDED, lambda s: (s[0], (1000, 1000), *s[2:])),
    "an array of negative size": (STRIDED, lambda s: (s[0], (-3, -2), *s[2:])),
    "an array of other bytes": (STRIDED, lambda s: (*s[:4], [object] * 6)),
    "a dtype that claims to hold objects": (np.dtype("f8"), lambda s: (*s[:7], 63)),
    "a dtype with a size of its own": (np.dtype("U3"), lambda s: (*s[:5], 10**6, *s[6:])),
    "a Rust state of garbage": (ADWIN()._helper, lambda s: [255] * 200),
    "a Rust state of nothing": (ADWIN()._helper, lambda s: []),
    "a Rust state of text": (ADWIN()._helper, lambda s: "x"),
    "a random generator of text": (random.Random(1), lambda s: "x"),
}


@pytest.mark.parametrize(("value", "change"), BAD_STATES.values(), ids=BAD_STATES.keys())
def test_a_state_that_reaches_outside_its_object_is_refused(value: Any, change: Callable[[Any], Any]) -> None:
    opened(_state_of(value, lambda state: state))
    with pytest.raises(UntrustedVersion):
        opened(_state_of(value, change))


OPCODES = {
    "GLOBAL": b"cos\nsystem\n.",
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"\x80\x05(" + LINEAR + b"o.",
    "EXT1": b"\x80\x05\x82\x01.",
    "PERSID": b"Pabc\n.",
    "BINPERSID": b"\x80\x05K\x01Q.",
    "PUT": b"\x80\x05K\x01p0\n.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "a buffer of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b".",
    "items for an estimator": whole(NEW_SCALER, text("a"), pickle.NONE, pickle.SETITEM),
    "items for a class": whole(LINEAR, text("a"), pickle.NONE, pickle.SETITEM),
    "an append to an estimator": whole(NEW_SCALER, pickle.NONE, pickle.APPEND),
    "members of an estimator": whole(NEW_SCALER, pickle.MARK, pickle.NONE, pickle.ADDITEMS),
    "an instance of list": whole(glob("builtins", "list"), pickle.EMPTY_TUPLE, pickle.NEWOBJ),
    "an instance of dtype": whole(glob("numpy", "dtype"), text("O"), pickle.TUPLE1, pickle.NEWOBJ),
    "an instance of a text": whole(text("x"), pickle.EMPTY_TUPLE, pickle.NEWOBJ),
    "a truncated one": pickle.dumps(linear_model.LinearRegression(), 5)[:-20],
    "nothing": b"",
    "no pickle": b"hello",
    "protocol 9": b"\x80\x09N.",
}


@pytest.mark.parametrize("attack", OPCODES.values(), ids=OPCODES.keys())
def test_a_stream_that_dump_does_not_write_is_refused(attack: bytes) -> None:
    with pytest.raises(UntrustedVersion):
        opened(attack)


def test_bytes_beyond_the_limit_are_not_looked_at() -> None:
    with pytest.raises(UntrustedVersion, match="at most"):
        opened(bytes(unpickle.MAX_BYTES + 1))


def test_an_object_that_passes_for_a_constructor_is_not_called() -> None:
    """Admitted constructors are recognised by identity; equality is the pickle's to fake."""
    spoof = dummy.NoChangeClassifier()
    with pytest.raises(UntrustedVersion):
        opened(whole(pickled(spoof) + pickle.EMPTY_TUPLE + pickle.REDUCE))


SAMPLE = pickle.dumps(
    (preprocessing.StandardScaler() | linear_model.LinearRegression(), np.arange(4.0), random.Random(1)), 5
)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(2, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_altered_bytes_open_or_are_refused_but_never_raise_anything_else(
    changes: list[tuple[int, int]],
) -> None:
    altered = bytearray(SAMPLE)
    for at, byte in changes:
        altered[at] = byte
    try:
        opened(bytes(altered))
    except UntrustedVersion:
        pass
