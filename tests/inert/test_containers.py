"""joblib files, raw and in each container, and what a container may not do."""

import bz2
import gzip
import io
import lzma
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lz4.frame
import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.inert import Limits, decode

VALUE = {
    "c": np.arange(6.0).reshape(2, 3),
    "f": np.asfortranarray(np.arange(6, dtype="i4").reshape(2, 3)),
    "objects": np.array(["a", None, np.arange(2)], dtype=object),
    "again": [np.array(["x", "yy"]), np.float32(0.5)],
    "dates": np.array(["2020-01-01"], "M8[ns]"),
    "none": np.zeros((0, 2)),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("compress", [0, "zlib", "gzip", "bz2", "lzma", "xz", "lz4"])
def test_joblib_files_come_out_whole(tmp_path: Path, compress: Any, protocol: int) -> None:
    path = tmp_path / "value.joblib"
    joblib.dump(VALUE, path, compress=compress, protocol=protocol)
    decoded = decode(path.read_bytes())
    np.testing.assert_array_equal(decoded["c"], VALUE["c"])
    np.testing.assert_array_equal(decoded["f"], VALUE["f"])
    assert decoded["f"].dtype == np.dtype("i4")
    assert decoded["objects"][:2] == ["a", None]
    np.testing.assert_array_equal(decoded["objects"][2], [0, 1])
    assert (decoded["again"][0].tolist(), decoded["again"][1]) == (["x", "yy"], np.float32(0.5))
    assert decoded["dates"][0] == np.datetime64("2020-01-01")
    assert decoded["none"].shape == (0, 2)


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": lzma.compress,
    "lz4": lz4.frame.compress,
}
EACH = pytest.mark.parametrize("pack", CONTAINERS.values(), ids=CONTAINERS)


def _reason(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(Undecodable) as refused:
        decode(data, limits)
    return refused.value.reason


@EACH
def test_every_prefix_of_a_container_is_refused(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(pickle.dumps({"a": list(range(40)), "b": "text" * 20}))
    assert decode(packed)["b"] == "text" * 20
    reasons = {_reason(packed[:size]) for size in range(len(packed))}
    assert reasons <= {"empty", "torn", "malformed"}


@EACH
def test_a_second_member_or_anything_behind_is_refused(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(pickle.dumps([1, 2, 3]))
    assert _reason(packed + packed) == "trailing_data"
    assert _reason(packed + b"\x00") == "trailing_data"
    assert _reason(pack(pickle.dumps(1) + b"x")) == "trailing_data"


@EACH
def test_containers_do_not_nest(pack: Callable[[bytes], bytes]) -> None:
    assert _reason(pack(zlib.compress(pickle.dumps(1)))) == "unsupported"


@EACH
def test_a_bomb_is_refused_before_it_is_unpacked(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(bytes(64 << 20))
    assert _reason(packed, Limits(max_bytes=8 << 20)) == "too_large"
    if len(packed) < (64 << 20) // 200:
        assert _reason(packed) == "too_large"


def test_a_container_that_asks_for_a_huge_dictionary_is_refused() -> None:
    packed = bytearray(lzma.compress(pickle.dumps(1), lzma.FORMAT_ALONE))
    packed[1:5] = (1 << 31).to_bytes(4, "little")  # the dictionary size in the header
    assert _reason(bytes(packed)) == "too_large"


@pytest.mark.parametrize(
    ("magic", "what"), [(b"PK\x03\x04", "zip"), (b"\x93NUMPY\x01\x00", "npy"), (b"\x28\xb5\x2f\xfd", "zstandard")]
)
def test_other_formats_are_named(magic: bytes, what: str) -> None:
    with pytest.raises(Undecodable, match=f"unsupported: .*{what}"):
        decode(magic + bytes(40))


def test_an_object_array_cannot_hide_a_global(tmp_path: Path) -> None:
    path = tmp_path / "hiding.joblib"
    joblib.dump({"x": np.array([Path("/"), print], dtype=object)}, path)
    with pytest.raises(Undecodable, match=r"forbidden_global: builtins\.print"):
        decode(path.read_bytes())


def test_padding_of_inline_arrays_holds_nothing() -> None:
    file = io.BytesIO()
    joblib.dump(np.arange(3.0), file)
    written = file.getvalue()
    at = written.rindex(b"\xff")
    assert _reason(written[:at] + b"!" + written[at + 1 :]) == "malformed"
