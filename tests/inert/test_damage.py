"""Torn and damaged pickles are refused or decoded, never anything else."""

import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmserver.errors import Undecodable
from mmserver.inert import Limits, decode, to_jsonable

REASONS = {
    *("empty", "torn", "malformed", "trailing_data", "forbidden_opcode", "forbidden_global", "unsupported"),
    *("too_large", "too_complex", "too_slow"),
}
TIGHT = Limits(max_bytes=32 << 20, max_ops=200_000, deadline_s=5.0)
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.pickle"))


def _outcome(data: bytes) -> str:
    try:
        value = decode(data, TIGHT)
    except Undecodable as refused:
        assert refused.reason in REASONS
        return refused.reason
    try:
        to_jsonable(value, max_items=100_000)
    except Undecodable as refused:
        assert refused.reason in {"too_large", "too_complex", "unsupported"}
    return "decoded"


def test_every_prefix_is_refused(seeds: list[bytes]) -> None:
    for seed in seeds:
        assert {_outcome(seed[:size]) for size in range(len(seed))} <= {"empty", "torn"}


@pytest.mark.parametrize("path", [path for path in CORPUS if "protocol_2" not in path.stem], ids=lambda path: path.stem)
def test_every_prefix_of_a_written_frame_is_refused(path: Path) -> None:
    data = path.read_bytes()
    cuts = range(0, len(data), 7)
    assert {_outcome(data[:size]) for size in cuts} <= {"empty", "torn", "malformed"}


def test_one_flipped_byte_anywhere_is_refused_or_decoded(seeds: list[bytes]) -> None:
    outcomes = set()
    for seed in seeds:
        for at in range(len(seed)):
            for mask in (0x01, 0x80, 0xFF):
                outcomes.add(_outcome(seed[:at] + bytes([seed[at] ^ mask]) + seed[at + 1 :]))
    assert "decoded" in outcomes  # a flipped digit of a number is still a number
    assert {"malformed", "torn", "forbidden_opcode", "forbidden_global"} <= outcomes


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_random_damage_to_frames_is_refused_or_decoded(path: Path) -> None:
    dice = random.Random(path.stem)
    data = path.read_bytes()
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 4))):
            at = dice.randrange(len(damaged))
            match dice.randrange(4):
                case 0:
                    damaged[at] = dice.randrange(256)
                case 1:
                    del damaged[at : at + dice.randrange(1, 9)]
                case 2:
                    damaged[at:at] = damaged[at - 8 : at]
                case _:
                    other = dice.randrange(len(damaged))
                    damaged[at : at + 4] = damaged[other : other + 4]
        _outcome(bytes(damaged))


OPCODES = st.sampled_from(
    [bytes([code]) for code in b"N\x88\x89)]}\x8f(tae\x90\x91us\x85\x86\x87\x94Rb\x81\x93"]
    + [b"K\x01", b"h\x00", b"h\x01", b"h\x02", b"\x8c\x01a", b"C\x01b", b"G" + bytes(8), b"J\xff\xff\xff\xff"]
    + [b"c" + name + b"\n" for name in (b"numpy\ndtype", b"numpy\nndarray", b"builtins\nset", b"pandas\nSeries")]
    + [b"c" + name + b"\n" for name in (b"pandas\nDataFrame", b"xgboost.core\nBooster", b"uuid\nUUID", b"pandas\nNA")]
    + [b"c" + name + b"\n" for name in (b"numpy.core.multiarray\n_reconstruct", b"numpy.core.multiarray\nscalar")]
    + [b"c" + name + b"\n" for name in (b"pandas\nRangeIndex", b"pandas.core.indexes.base\n_new_Index")]
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(OPCODES, max_size=30))
def test_any_sequence_of_opcodes_is_refused_or_decoded(opcodes: list[bytes]) -> None:
    _outcome(b"\x80\x04" + b"".join(opcodes) + b".")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    ),
    st.integers(2, 5),
)
def test_any_plain_value_comes_out_as_it_went_in(value: object, protocol: int) -> None:
    assert decode(pickle.dumps(value, protocol)) == value
