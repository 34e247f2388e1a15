"""Hostile pickles, assembled opcode by opcode."""

import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _global(dotted: str) -> bytes:
    module, _, name = dotted.rpartition(".")
    return _text(module) + _text(name) + b"\x93"


def _raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def _call(dotted: str, args: bytes) -> bytes:
    return _global(dotted) + b"(" + args + b"tR"


def _whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def _int(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def _dtype(code: str, order: str = "<", middle: bytes = b"NNN", tail: bytes = b"") -> bytes:
    state = b"(K\x03" + _text(order) + middle + _int(-1) + _int(-1) + b"K\x00" + tail + b"t"
    return _call("numpy.dtype", _text(code) + b"\x89\x88") + state + b"b"


def _array(shape: bytes, dtype: bytes, content: bytes) -> bytes:
    made = _call("numpy._core.multiarray._reconstruct", _global("numpy.ndarray") + b"K\x00\x85C\x01b")
    return made + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + content + b"tb"


def _newobj(dotted: str, args: bytes = b")") -> bytes:
    return _global(dotted) + args + b"\x81"


def _forbidden() -> dict[str, tuple[bytes, str, str]]:
    names = [
        "os.system",
        "posix.system",
        "nt.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
        "builtins.open",
        "builtins.print",
        "builtins.map",
        "builtins.filter",
        "builtins.type",
        "builtins.object",
        "builtins.globals",
        "__builtin__.eval",
        "pip.main",
        "runpy.run_path",
        "pkgutil.resolve_name",
        "importlib.import_module",
        "operator.attrgetter",
        "operator.methodcaller",
        "functools.partial",
        "codecs.open",
        "socket.socket",
        "ctypes.CDLL",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
        "cloudpickle.cloudpickle._make_function",
        "types.FunctionType",
        "numpy.load",
        "numpy.memmap.x",
        "numpy.fromfile",
        "numpy.genfromtxt",
        "numpy.DataSource",
        "numpy.vectorize",
        "numpy.matrix",
        "numpy.testing._private.utils.runstring",
        "numpy.testing._private.utils.rundocs",
        "numpy.f2py.crackfortran.myeval",
        "numpy.core.multiarray.fromfile",
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.__builtins__",
        "numpy.ma.core._mareconstruct",
        "pandas.eval",
        "pandas.read_pickle",
        "pandas.read_csv",
        "pandas.io.common.get_handle",
        "pandas.core.computation.eval.eval",
        "joblib.load",
        "joblib.numpy_pickle.NDArrayWrapper",
        "joblib.numpy_pickle.ZNDArrayWrapper",
        "joblib.numpy_pickle.load",
        "xgboost.core.ctypes",
        "xgboost.core._load_lib",
        "xgboost.sklearn.os",
        "sklearn.base.np",
        "sklearn.utils.load",
        "torch._utils._rebuild_tensor_v2",
        "collections.namedtuple",
    ]
    cases = {name: (_whole(_call(name, _text("x"))), "forbidden_global", name) for name in names}
    for module, name in (
        ("joblib.numpy_pickle", "os.system"),
        ("xgboost.core", "ctypes.CDLL"),
        ("numpy", "core.multiarray.scalar"),
        ("sklearn.base", "np.load"),
        ("sklearn.a", "Np.load"),
        ("builtins", "getattr.__class__"),
        ("sklearn.base\nos", "System"),
        ("", ""),
    ):
        body = _text(module) + _text(name) + b"\x93"
        cases[f"dotted {module!r} {name}"] = (_whole(body + _text("x") + b"\x85R"), "forbidden_global", "")
    cases["only named, never called"] = (_whole(_global("os.system")), "forbidden_global", "os.system")
    cases["named by the text opcode"] = (b"\x80\x02cos\nsystem\n(tR.", "forbidden_global", "os.system")
    cases["payload before a broken tail"] = (
        b"\x80\x04" + _call("os.system", _text("x")),
        "forbidden_global",
        "os.system",
    )
    lookup = _global("zoneinfo.ZoneInfo")
    for what, args in {
        "getattr of another name": lookup + _text("__init_subclass__"),
        "getattr of another object": _global("numpy.dtype") + _text("_unpickle"),
        "getattr of three": lookup + _text("_unpickle") + b"N",
        "getattr of text": _text("os") + _text("_unpickle"),
    }.items():
        cases[what] = (_whole(_call("builtins.getattr", args)), "forbidden_global", "getattr")
    return cases


def _opcodes() -> dict[str, tuple[bytes, str, str]]:
    bodies = {
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "PERSID": b"Pos\n",
        "BINPERSID": b"NQ",
        "NEXT_BUFFER": b"\x97",
        "READONLY_BUFFER": b"N\x98",
        "INST": b"(ios\nsystem\n",
        "OBJ": b"(" + _global("numpy.dtype") + b"o",
        "INT": b"I1\n",
        "LONG": b"L1L\n",
        "FLOAT": b"F1.5\n",
        "STRING": b"S'x'\n",
        "UNICODE": b"Vx\n",
        "BINSTRING": b"T\x01\x00\x00\x00x",
        "SHORT_BINSTRING": b"U\x01x",
        "LIST": b"(l",
        "DICT": b"(d",
        "GET": b"g0\n",
        "PUT": b"Np0\n",
        "DUP": b"N2",
        "POP": b"NN0",
        "POP_MARK": b"N(1",
        "NEWOBJ_EX": _global("uuid.UUID") + b")}\x92",
        "second PROTO": b"\x80\x04N",
        "unknown": b"\xff",
        "NUL": b"\x00",
    }
    return {name: (_whole(body), "forbidden_opcode", "") for name, body in bodies.items()}


def _gadgets() -> dict[str, tuple[bytes, str, str]]:
    f8 = _dtype("f8")
    eight = _raw(bytes(8))
    fields = b"(" + _text("a") + b"t}(" + _text("a") + _dtype("f8") + b"J" + struct.pack("<i", 10**9) + b"\x86u"
    in_void = b"(" + _text("a") + b"t}(" + _text("a") + _dtype("O8", "|") + b"K\x00\x86u"
    wrapper = b"}(" + _text("subclass") + _global("numpy.ndarray") + _text("shape") + b"K\x03\x85" + _text("order")
    wrapper += _text("C") + _text("dtype")
    joblib = _newobj("joblib.numpy_pickle.NumpyArrayWrapper") + wrapper
    xgb = "xgboost.sklearn.XGBRegressor"
    m, u = "malformed", "unsupported"
    return {
        "field offset of 1e9": (_dtype("V8", "|", b"N" + fields), u, "padding"),
        "object field in V8": (_dtype("V8", "|", b"N" + in_void), u, "objects"),
        "bare V8": (_dtype("V8", "|"), m, ""),
        "object array from bytes": (_array(b"K\x01", _dtype("O8", "|"), eight), m, ""),
        "object array by _frombuffer": (
            _call("numpy._core.numeric._frombuffer", eight + _dtype("O8", "|") + b"K\x01\x85" + _text("C")),
            m,
            "",
        ),
        "short object list": (_array(b"K\x05", _dtype("O8", "|"), b"](NNe"), m, ""),
        "short bytes": (_array(b"K\x05", f8, eight), m, ""),
        "negative shape": (_array(_int(-1), f8, eight), m, ""),
        "shape product that wraps": (_array(_int(1 << 39) + _int(1 << 25), f8, eight), m, ""),
        "shape of text": (_array(_text("1"), f8, eight), m, ""),
        "empty array of huge extent": (_array(_int(1 << 39) + b"K\x00", f8, _raw(b"")), "too_large", ""),
        "boolean of 2": (_array(b"K\x01", _dtype("b1", "|"), _raw(b"\x02")), m, "boolean"),
        "character beyond Unicode": (_array(b"K\x01", _dtype("U1"), _raw(b"\xff\xff\xff\x7f")), m, "characters"),
        "surrogate": (_array(b"K\x01", _dtype("U1"), _raw(b"\x00\xd8\x00\x00")), m, "characters"),
        "unknown dtype": (_dtype("f16"), u, "f16"),
        "dtype by a comma string": (_dtype("f8,O8"), u, ""),
        "dtype of size 0": (_dtype("U0"), u, ""),
        "dtype without state": (_array(b"K\x01", _call("numpy.dtype", _text("f8")), eight), m, ""),
        "state given twice": (f8 + b"(tb", m, ""),
        "datetime of no unit": (_dtype("M8", tail=b"N" + b"(" + _raw(b"zz") + b"K\x01K\x01K\x01t\x86"), m, "unit"),
        "scalar too short": (_call("numpy._core.multiarray.scalar", f8 + _raw(b"1234")), m, ""),
        "scalar of an object": (_call("numpy._core.multiarray.scalar", _dtype("O8", "|") + b"N"), m, ""),
        "reconstruct another class": (
            _call("numpy._core.multiarray._reconstruct", _global("pandas.DataFrame") + b"K\x00\x85C\x01b"),
            m,
            "",
        ),
        "state for a class": (_global("pandas.Index") + b"N}(" + _text("get_loc") + b"Nu\x86b", m, "pandas.Index"),
        "state for a function": (_global("numpy._core.numeric._frombuffer") + b"N}\x86b", m, "_frombuffer"),
        "state for a list": (b"]}b", m, "list"),
        "items for a text": (_text("x") + b"Na", m, ""),
        "items for a tuple": (b")(NNu", m, ""),
        "items for an instance": (_newobj(xgb) + b"(NNu", m, ""),
        "dict key without value": (b"}(Nu", m, ""),
        "Booster from a path": (_call("xgboost.core.Booster", b"N]" + _text("/etc/passwd")), u, "Booster"),
        "new Booster from a path": (_newobj("xgboost.core.Booster", b"(N]" + _text("/x") + b"t"), m, "Booster"),
        "Booster without state": (_newobj("xgboost.core.Booster"), m, "never got its state"),
        "Booster of text": (_newobj("xgboost.core.Booster") + b"}" + _text("handle") + _text("x") + b"sb", m, ""),
        "model called": (_call(xgb, _text("x")), u, xgb),
        "joblib wrapper of a memmap path": (
            _newobj("joblib.numpy_pickle.NumpyArrayWrapper") + b"}" + _text("filename") + _text("/etc/passwd") + b"sb",
            m,
            "",
        ),
        "joblib array longer than the file": (joblib + f8 + b"ub" + bytes(8), "torn", ""),
        "joblib object array of a global": (
            joblib + _dtype("O8", "|") + b"ub" + _whole(_global("os.system")),
            "forbidden_global",
            "os.system",
        ),
        "joblib object array of another shape": (joblib + _dtype("O8", "|") + b"ub" + _whole(b"]Na"), m, "shape"),
        "codec other than latin1": (_call("_codecs.encode", _text("x") + _text("rot13")), m, ""),
        "bytearray of a huge count": (_call("builtins.bytearray", _int(1 << 40)), m, ""),
        "set of text": (_call("builtins.set", _text("abc")), m, ""),
        "a function as value": (b"](" + _global("numpy.ndarray") + b"e", u, "numpy.ndarray"),
        "part of a frame as value": (_call("pandas._libs.internals._unpickle_block", b"NNN"), m, "Block"),
        "frame without manager": (_newobj("pandas.DataFrame") + b"}b", m, ""),
        "callable that is text": (_text("os.system") + b")R", m, ""),
        "arguments that are a list": (_global("builtins.set") + b"]R", m, ""),
        "global named by a number": (b"K\x01K\x02\x93", m, ""),
        "datetime out of range": (_call("datetime.datetime", _raw(b"\x07\xe8\x0d\x63\xff\xff\xff\xff\xff\xff")), m, ""),
        "range without step": (_call("builtins.range", b"K\x01K\x02K\x00"), m, ""),
        "text that is not UTF-8": (b"\x8c\x01\xff", m, ""),
        "lone surrogate": (b"\x8c\x03\xed\xa0\x80", m, ""),
        "memo that was never stored": (b"h\x05", m, ""),
        "stack underflow": (b"NN\x87N", m, ""),
        "two values at STOP": (b"NN", m, ""),
        "nothing at STOP": (b"", m, ""),
        "mark at STOP": (b"N(", m, ""),
        "set of lists": (b"\x8f(]\x90", u, "list"),
    }


def _bombs() -> dict[str, tuple[bytes, str, str]]:
    c = "too_complex"
    laughs = b"](NNNNNNNNNNe\x94" + b"".join(
        b"](" + b"h" + bytes([at]) + (b"h" + bytes([at])) * 9 + b"e\x94" for at in range(12)
    )
    laughs += b"\x86" * 12
    deep_key = b"N\x85\x94" + b"".join(b"h" + bytes([at]) + b"h" + bytes([at]) + b"\x86\x94" for at in range(60))
    modulus = (1 << 61) - 1
    pairs = b"".join(_int(modulus * (at + 1)) + b"N" for at in range(30_000))
    members = b"".join(_int(modulus * (at + 1)) for at in range(30_000))
    singles = b"".join(_int(modulus * (at + 1)) + b"Ns" for at in range(3_000))
    return {
        "billion laughs": (laughs, c, ""),
        "tuple nested 400 000 times": (b")" + b"\x85" * 400_000, c, "deeper"),
        "list nested 400 000 times": (b"]" * 400_000 + b"a" * 399_999, c, "deeper"),
        "marks nested 400 000 times": (b"(" * 400_000, c, "deeper"),
        "list that contains itself": (b"]\x94h\x00a", c, "itself"),
        "dict that contains itself": (b"}\x94Nh\x00s", c, "itself"),
        "instance that contains itself": (
            _newobj("xgboost.sklearn.XGBRegressor") + b"\x94}" + _text("x") + b"h\x00sb",
            c,
            "itself",
        ),
        "30 000 keys with one hash": (b"}(" + pairs + b"u", c, "hash"),
        "keys with one hash one by one": (b"}" + singles, c, "hash"),
        "set members with one hash": (b"\x8f(" + members + b"\x90", c, "hash"),
        "key whose hash doubles with each level": (deep_key + b"}h\x3cNs", "unsupported", "key"),
        "LONG4 of 50 MB": (b"\x8b" + struct.pack("<i", 50_000_000), "too_large", "integer"),
        "LONG1 of 255 bytes": (b"\x8a\xff" + bytes(255), "too_large", "integer"),
        "LONG4 of negative size": (b"\x8b" + struct.pack("<i", -1), "too_large", "integer"),
        "BINBYTES8 of 1e15": (b"\x8e" + struct.pack("<Q", 10**15) + b"x", "torn", ""),
        "BYTEARRAY8 of 2**64 - 1": (b"\x96" + struct.pack("<Q", 2**64 - 1) + b"x", "torn", ""),
        "BINUNICODE8 of 1e15": (b"\x8d" + struct.pack("<Q", 10**15) + b"x", "torn", ""),
        "FRAME of 1e15": (b"\x95" + struct.pack("<Q", 10**15) + b"N", "torn", ""),
        "sets without end": (b"\x8f\x94" * 2_400_000, "too_complex", ""),
        "copies of one list": (
            b"](" + b"N" * 100_000 + b"e\x94" + _global("builtins.set") + b"\x94" + b"h\x01h\x00\x85R" * 20_000,
            "too_large",
            "",
        ),
        "RangeIndex of 2**62 rows": (
            _call(
                "pandas.core.indexes.base._new_Index",
                _global("pandas.RangeIndex")
                + b"}("
                + _text("start")
                + b"K\x00"
                + _text("stop")
                + _int(1 << 62)
                + _text("step")
                + b"K\x01u",
            ),
            "too_large",
            "",
        ),
    }


def attacks() -> dict[str, tuple[bytes, str, str]]:
    """Every attack by name: its bytes, the reason it must be refused with, and what the detail must say."""
    found = {**_forbidden(), **_opcodes()}
    found |= {
        name: (_whole(body), reason, detail) for name, (body, reason, detail) in {**_gadgets(), **_bombs()}.items()
    }
    plain = pickle.dumps({"a": 1}, 4)
    zipped = b"PK\x05\x06" + bytes(18)
    found |= {
        "nothing": (b"", "empty", ""),
        "second pickle": (plain + plain, "trailing_data", ""),
        "zip behind a pickle": (plain + zipped, "trailing_data", ""),
        "protocol 0": (pickle.dumps([1, 2], 0), "malformed", ""),
        "protocol 6": (b"\x80\x06N.", "unsupported", "6"),
        "protocol 1 by name": (b"\x80\x01N.", "unsupported", "1"),
        "HTML": (b"<html></html>", "malformed", ""),
        "name without end": (b"\x80\x02c" + b"a" * 1000, "malformed", ""),
    }
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `attack` each attack in turn."""
    if "attack" in metafunc.fixturenames:
        found = attacks()
        metafunc.parametrize("attack", found.values(), ids=found)


@pytest.fixture(scope="session")
def all_attacks() -> dict[str, tuple[bytes, str, str]]:
    """All attacks, by name."""
    return attacks()


@pytest.fixture(scope="session")
def seeds() -> list[bytes]:
    """Small honest pickles that use every part of the decoder, to damage."""
    value: dict[str, Any] = {
        "a": np.arange(3.0),
        "b": [np.float32(1), True, None, {"x": (1, 2)}, {1, 2}, 2**40, -5, 1.5, b"raw", bytearray(b"raw")],
        "c": np.array(["x", None], dtype=object),
        "d": np.array(["2020-01-01"], "M8[ns]"),
        "e": np.array([(1, 2.0)], dtype=[("p", "i4"), ("q", "f8")]),
    }
    return [pickle.dumps(value, protocol) for protocol in (2, 3, 4, 5)]


@pytest.fixture(scope="session")
def whole() -> Callable[[bytes], bytes]:
    """Opcodes to a pickle."""
    return _whole
