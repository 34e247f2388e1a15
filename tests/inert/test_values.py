"""Plain values, numpy arrays and models come out of every pickle protocol as they went in."""

import collections
import datetime as dt
import math
import pathlib
import pickle
import zoneinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.inert import Limits, decode
from mmserver.inert.records import Instance, ObjectArray, TimeZone, ZonedTime

PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3, 4, 5])

PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    255,
    65536,
    -1,
    2**31,
    -(2**63),
    2**70,
    1.5,
    math.inf,
    "text",
    "ünïcode 𝛼",
    "x" * 300,
    b"",
    b"\x00\xff" * 200,
    bytearray(b"ab"),
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, 4),
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": 1}, 2: None, (1, "x"): [], None: 0},
    pytest.param({1, "a"}, id="a set of two types"),  # each process prints it in its own order
    frozenset((1, 2)),
    1 + 2j,
    slice(1, None, 2),
    range(1, 10, 3),
    Decimal("-1.50"),
    UUID(int=2**127 + 5),
    dt.date(2024, 2, 29),
    dt.time(1, 2, 3, 4),
    dt.time(1, 2, tzinfo=dt.UTC),
    dt.datetime(2024, 2, 29, 12, 30, 1, 999999),
    dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=-5), "EST")),
    dt.timedelta(days=-1, seconds=5, microseconds=7),
    {f"key {at}": at for at in range(2500)},
    list(range(2500)),
]


@PROTOCOLS
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
def test_plain_values_come_out_equal_and_of_the_same_type(value: Any, protocol: int) -> None:
    decoded = decode(pickle.dumps(value, protocol))
    assert decoded == value
    assert type(decoded) is type(value)


def test_collections_become_dicts_and_lists() -> None:
    value = [
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        collections.deque([1, 2], maxlen=5),
        pathlib.PurePosixPath("/a/b"),
    ]
    for protocol in (2, 4, 5):
        decoded = decode(pickle.dumps(value, protocol))
        assert decoded == [{"b": 1, "a": 2}, {"a": [1]}, {"a": 2, "b": 1}, [1, 2], "/a/b"]
        assert list(decoded[0]) == ["b", "a"]


def test_fold_survives() -> None:
    assert decode(pickle.dumps(dt.datetime(2024, 10, 27, 2, 30, fold=1), 4)).fold == 1


def test_zones_are_known_by_name_only() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    value = [
        berlin,
        dt.datetime(2024, 6, 1, 12, tzinfo=berlin),
        dt.datetime(2024, 6, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    ]
    assert decode(pickle.dumps(value, 5)) == [
        TimeZone("Europe/Berlin"),
        ZonedTime(dt.datetime(2024, 6, 1, 12), "Europe/Berlin"),
        dt.datetime(2024, 6, 1, tzinfo=dt.UTC),
    ]


def test_a_shared_value_stays_shared() -> None:
    shared = [1, 2]
    decoded = decode(pickle.dumps([shared, shared]))
    assert decoded[0] is decoded[1]


ARRAYS = [
    *(np.array([0, 1, 3]).astype(code) for code in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")),
    np.array([1.5, np.nan, -np.inf]),
    np.array([True, False]),
    np.array([1 + 2j], "c8"),
    np.array([1 + 2j], "c16"),
    np.array(["ab", "", "𝛼"]),
    np.array([b"ab", b""]),
    np.array(["2020-01-01", "NaT"], "M8[ns]"),
    np.array(["2020-01-01"], "M8[D]"),
    np.array([1, -1], "m8[25us]"),
    np.arange(24).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(12.0).reshape(3, 4)[:, ::2],
    np.arange(5)[::-1],
    np.array(7.5),
    np.zeros((0, 3)),
    np.array([], "f4"),
    np.array([1, 2, 3], ">i4"),
    np.array([1, 2, 3], ">f8"),
    np.array([(1, 2.5, "x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U2")]),
    np.array([(1, [1.0, 2.0])], dtype=[("a", "i8"), ("b", "f8", (2,))]),
]


@PROTOCOLS
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}-{array.flags.c_contiguous}")
def test_arrays_come_out_equal_in_native_byte_order(array: np.ndarray, protocol: int) -> None:
    decoded = decode(pickle.dumps(array, protocol))
    assert type(decoded) is np.ndarray
    assert decoded.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(decoded, array)
    assert not decoded.flags.writeable


@PROTOCOLS
def test_object_arrays_become_lists(protocol: int) -> None:
    flat = np.array(["a", None, {"x": 1}], dtype=object)
    square = np.empty((2, 3), dtype=object)
    square[:] = [[1, 2, 3], [4, 5, 6]]
    decoded = decode(pickle.dumps([flat, square, np.asfortranarray(square)], protocol))
    assert decoded[0] == ["a", None, {"x": 1}]
    for each in decoded[1:]:
        assert isinstance(each, ObjectArray)
        assert (each.shape, each.values) == ((2, 3), [1, 2, 3, 4, 5, 6])


@PROTOCOLS
def test_numpy_scalars_keep_their_type(protocol: int) -> None:
    value = [
        np.float32(0.1),
        np.float64(0.1),
        np.int64(-7),
        np.uint8(255),
        np.bool_(True),
        np.str_("x"),
        np.bytes_(b"x"),
    ]
    decoded = decode(pickle.dumps(value, protocol))
    assert decoded == value
    assert [type(each) for each in decoded] == [type(each) for each in value]
    (moment,) = decode(pickle.dumps([np.datetime64("2020-01-01T12")], protocol))
    assert moment == np.datetime64("2020-01-01T12")


@PROTOCOLS
def test_names_of_numpy_1_are_read_too(protocol: int) -> None:
    # The text opcode carries its length, so both are rewritten.
    written = pickle.dumps({"a": np.arange(3.0), "s": np.float32(2)}, protocol)
    for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = module.replace(b"_core", b"core")
        written = written.replace(bytes([len(module)]) + module, bytes([len(old)]) + old).replace(module, old)
    if protocol >= 4:  # the frame is a few bytes shorter now; its length only has to fit
        written = written[:3] + (1).to_bytes(8, "little") + written[11:]
    decoded = decode(written)
    assert b"_core" not in written
    np.testing.assert_array_equal(decoded["a"], np.arange(3.0))
    assert decoded["s"] == np.float32(2)


@PROTOCOLS
def test_a_model_is_its_class_name_its_parameters_and_the_bytes_of_its_booster(protocol: int) -> None:
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed (the extra test)")
    x = np.arange(60.0).reshape(20, 3)
    model = xgboost.XGBRegressor(n_estimators=3, max_depth=2, n_jobs=1).fit(x, x[:, 0])
    decoded = decode(pickle.dumps(model, protocol))
    assert isinstance(decoded, Instance)
    assert decoded.global_name == "xgboost.sklearn.XGBRegressor"
    assert (decoded.state["n_estimators"], decoded.state["max_depth"]) == (3, 2)
    booster = decoded.state["_Booster"]
    assert booster.global_name == "xgboost.core.Booster"
    assert type(booster.state["handle"]) is bytes
    assert booster.state["handle"] == bytes(model.get_booster().__getstate__()["handle"])


def test_scikit_learn_objects_are_named_data() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="sklearn is not installed (the extra test)")
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="sklearn is not installed (the extra test)")
    pipeline = pytest.importorskip("sklearn.pipeline", reason="sklearn is not installed (the extra test)")
    x = np.arange(12.0).reshape(6, 2)
    fitted = pipeline.make_pipeline(preprocessing.StandardScaler(), linear.Ridge()).fit(x, x[:, 0])
    decoded = decode(pickle.dumps(fitted))
    assert decoded.global_name == "sklearn.pipeline.Pipeline"
    assert [step.global_name.rpartition(".")[2] for _, step in decoded.state["steps"]] == ["StandardScaler", "Ridge"]


def test_a_refusal_within_a_model_names_the_model() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="sklearn is not installed (the extra test)")
    forest = ensemble.RandomForestRegressor(2).fit(np.eye(4), np.arange(4.0))
    with pytest.raises(
        Undecodable, match=r"unsupported: .* \(within a sklearn\.ensemble\._forest\.RandomForestRegressor\)"
    ):
        decode(pickle.dumps(forest))


def test_limits_are_honoured() -> None:
    with pytest.raises(Undecodable, match="too_large"):
        decode(pickle.dumps("x" * 100), Limits(max_bytes=50))
    with pytest.raises(Undecodable, match="too_complex"):
        decode(pickle.dumps([[[[1]]]]), Limits(max_depth=3))
    with pytest.raises(Undecodable, match="too_complex"):
        decode(pickle.dumps(list(range(5000))), Limits(max_ops=4000))
    with pytest.raises(Undecodable, match="too_complex"):
        decode(pickle.dumps([str(at) for at in range(50)]), Limits(max_memo=10))
    with pytest.raises(Undecodable, match="too_slow"):
        decode(pickle.dumps([1]), Limits(deadline_s=-1.0))
