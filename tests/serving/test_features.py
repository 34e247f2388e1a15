"""Features become exactly the row that the model takes, or are refused by name."""

import math
import struct
from typing import Any

import numpy as np
import pytest

from mmserver.errors import FeaturesInvalid
from mmserver.serving.features import MAX_TOLD, RowLayout, ShapedLayout, row_layout

FACTORS = ("rsi", "volume", "spread")
LARGEST = 3.4028234663852886e38  # float32's largest


@pytest.fixture
def layout() -> RowLayout:
    return RowLayout(FACTORS, accepts_missing=True)


@pytest.fixture
def strict() -> RowLayout:
    """Of a model that takes no missing values."""
    return RowLayout(FACTORS, accepts_missing=False)


def refusal(call: Any, *arguments: Any) -> FeaturesInvalid:
    with pytest.raises(FeaturesInvalid) as caught:
        call(*arguments)
    return caught.value


def told(error: FeaturesInvalid) -> dict[str, str]:
    return {entry["loc"]: entry["msg"] for entry in error.values["errors"]}


def bits(value: float) -> bytes:
    return np.float32(value).tobytes()


@pytest.mark.parametrize("how", ["list", "names", "matrix", "tuple"])
def test_every_value_is_float32_of_what_was_sent(layout: RowLayout, how: str) -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**64, size=3000, dtype=np.uint64).view(np.float64)
    tame = patterns[np.isfinite(patterns) & (np.abs(patterns) < LARGEST)]
    halfway = [(float(a) + float(np.nextafter(a, np.float32(2)))) / 2 for a in np.float32([0.1, 1.0, 3e-45])]
    values = [*tame.tolist(), *halfway, 0.1, 1 / 3, 1e-46, -0.0, LARGEST, -LARGEST, 16777217.0]
    values += [0.0] * (-len(values) % 3)
    for start in range(0, len(values), 3):
        sent = values[start : start + 3]
        features: Any = {
            "list": sent,
            "names": dict(zip(FACTORS, sent, strict=True)),
            "matrix": [sent],
            "tuple": tuple(sent),
        }[how]
        row = layout.row(features)
        assert (row.shape, row.dtype, row.flags.c_contiguous) == ((1, 3), np.float32, True)
        assert row.tobytes() == b"".join(bits(value) for value in sent)


def test_whole_numbers_are_numbers(layout: RowLayout) -> None:
    assert layout.row([1, -2, 2**60]).tolist() == [[1.0, -2.0, float(2**60)]]  # type: ignore[list-item]


def test_names_may_come_in_any_order(layout: RowLayout) -> None:
    assert layout.row({"spread": 3.0, "rsi": 1.0, "volume": 2.0}).tolist() == [[1.0, 2.0, 3.0]]


def test_a_model_of_one_factor_takes_one_value() -> None:
    layout = RowLayout(("rsi",), accepts_missing=False)
    assert [layout.row(features).tolist() for features in ([5.0], [[5.0]], {"rsi": 5.0})] == [[[5.0]]] * 3


def test_rows_can_be_written_to(layout: RowLayout) -> None:
    row = layout.row([1.0, 2.0, 3.0])
    row[0, 0] = 9
    assert row.tolist() == [[9.0, 2.0, 3.0]]


# --- missing values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_is_nan_where_the_model_knows_it(layout: RowLayout, missing: float | None) -> None:
    for features in ([1.0, missing, 3.0], [[1.0, missing, 3.0]], {"rsi": 1.0, "volume": missing, "spread": 3.0}):
        row = layout.row(features)  # type: ignore[arg-type]
        assert (row[0, 0], row[0, 2]) == (1.0, 3.0)
        assert np.isnan(row[0, 1])


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_is_refused_by_name_where_it_does_not(strict: RowLayout, missing: float | None) -> None:
    by_place = told(refusal(strict.row, [missing, 2.0, missing]))
    assert sorted(by_place) == ["features[0]", "features[2]"]
    assert "rsi is missing" in by_place["features[0]"]
    assert list(told(refusal(strict.row, {"rsi": 1.0, "volume": missing, "spread": 3.0}))) == ["features.volume"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39, -1e39, 3.4028235677973366e38, 10**400, 2**200])
def test_what_float32_cannot_hold_is_refused_and_never_infinite(layout: RowLayout, value: float) -> None:
    error = refusal(layout.row, [1.0, value, 3.0])
    assert told(error) == {"features[1]": "volume is not finite in float32"}
    assert error.values["reason"] == "volume is not finite in float32"
    assert list(told(refusal(layout.row, {"rsi": 1.0, "volume": 2.0, "spread": value}))) == ["features.spread"]
    assert list(told(refusal(layout.row, [[value, 2.0, 3.0]]))) == ["features[0][0]"]


@pytest.mark.parametrize("value", ["1", b"1", [1.0], {}, object(), 1j])
def test_what_is_no_number_is_refused(layout: RowLayout, value: Any) -> None:
    assert told(refusal(layout.row, [1.0, value, 3.0])) == {"features[1]": "volume is not a number"}


@pytest.mark.parametrize(("features", "found"), [([], 0), ([1.0], 1), ([1.0] * 4, 4), ([[]], 0), ([[1.0, 2.0]], 2)])
def test_a_wrong_count_says_what_was_expected_and_found(layout: RowLayout, features: Any, found: int) -> None:
    assert refusal(layout.row, features).values["reason"] == f"3 features are expected, found {found}"


def test_several_rows_are_sent_to_the_batch(layout: RowLayout) -> None:
    error = refusal(layout.row, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert "batch" in error.values["reason"]


def test_every_unknown_and_missing_name_is_named(layout: RowLayout) -> None:
    error = refusal(layout.row, {"rsi": 1.0, "Volume": 2.0, "RSI": 3.0})
    assert told(error) == {
        "features.volume": "missing",
        "features.spread": "missing",
        "features.Volume": "the model has no such factor",
        "features.RSI": "the model has no such factor",
    }
    assert error.values["reason"].endswith("2 missing, 2 unknown")


def test_an_extra_name_is_refused(layout: RowLayout) -> None:
    assert list(told(refusal(layout.row, {"rsi": 1.0, "volume": 2.0, "spread": 3.0, "x": 4.0}))) == ["features.x"]


def test_a_thousand_errors_are_counted_and_not_all_listed() -> None:
    wide = RowLayout([f"f{at}" for at in range(1000)], accepts_missing=False)
    by_name = refusal(wide.row, {"x" * 5000: 1.0})
    assert (len(by_name.values["errors"]), "1000 missing" in by_name.values["reason"]) == (MAX_TOLD, True)
    by_value = refusal(wide.row, [None] * 1000)
    assert (len(by_value.values["errors"]), by_value.values["reason"][:4]) == (MAX_TOLD, "1000")
    by_table = refusal(wide.rows, np.full((100, 1000), np.inf))
    assert (len(by_table.values["errors"]), by_table.values["reason"][:6]) == (MAX_TOLD, "100000")


def test_a_long_unknown_name_is_not_sent_back_whole(layout: RowLayout) -> None:
    error = refusal(layout.row, {"rsi": 1.0, "volume": 2.0, "spread": 3.0, "x" * 5000: 4.0})
    assert all(len(loc) < 200 for loc in told(error))


# --- the quick way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features",
    [None, 5, "abc", [], [1.0], [1.0, None, 3.0], [1.0, math.nan, 3.0], [1.0, math.inf, 3.0], [math.inf, -math.inf, 3.0],
     [1.0, 1e39, 3.0], ["1", "2", "3"], [[1.0, 2.0, 3.0]], {}, {"rsi": 1.0}, {"rsi": 1.0, "volume": 2.0, "x": 3.0},
     {"rsi": 1.0, "volume": 2.0, "spread": None}, [1.0, 10**400, 3.0]],
)  # fmt: skip
def test_the_quick_way_leaves_what_is_not_plain_to_the_other(layout: RowLayout, features: Any) -> None:
    assert layout.plain_row(features) is None


def test_the_quick_way_takes_the_largest_numbers(layout: RowLayout) -> None:
    row = layout.plain_row([LARGEST, LARGEST, LARGEST])
    assert row is not None
    assert row.tolist() == [[LARGEST] * 3]


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i8", "u1", "<f2"])
def test_a_table_of_any_numbers_becomes_float32(layout: RowLayout, dtype: str) -> None:
    table = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    found = layout.rows(table)
    assert (found.dtype, found.flags.c_contiguous, found.tolist()) == (np.dtype("=f4"), True, table.tolist())


def test_a_table_that_lies_otherwise_in_memory_is_the_same_table(layout: RowLayout) -> None:
    table = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))[::2]
    assert layout.rows(table).tolist() == [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0]]


def test_missing_values_of_a_table_are_kept_or_refused_by_row_and_name(layout: RowLayout, strict: RowLayout) -> None:
    table = np.array([[1, 2, 3], [4, np.nan, 6]], np.float32)
    assert np.isnan(layout.rows(table)[1, 1])
    assert told(refusal(strict.rows, table)) == {
        "features[1][1]": "volume is missing, and the model takes no missing values"
    }


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_a_table_with_what_float32_cannot_hold_is_refused(layout: RowLayout, value: float) -> None:
    table = np.array([[1, 2, 3], [4, 5, value], [np.nan, 5, 6]])
    assert told(refusal(layout.rows, table)) == {"features[1][2]": "spread is not finite in float32"}


@pytest.mark.parametrize(
    "table",
    [np.zeros(3), np.zeros((2, 4)), np.zeros((1, 2, 3)), np.zeros((0, 3)), np.zeros(()), np.array([["a", "b", "c"]]),
     np.array([[1, None, 2]], object), np.zeros((2, 3), bool), np.zeros((2, 3), complex)],
)  # fmt: skip
def test_a_table_of_another_shape_or_kind_is_refused(layout: RowLayout, table: Any) -> None:
    refusal(layout.rows, table)


def test_the_layout_packs_as_the_machine_stores_float32() -> None:
    assert struct.pack("<f", 1.0) == np.float32(1.0).tobytes()


# --- models whose rows are not flat -----------------------------------------------------------------------------------

WINDOW = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [10.0, 11.0, 12.0]]


@pytest.fixture
def window() -> RowLayout:
    """Four timesteps of three features; no missing values."""
    return row_layout(FACTORS, (4, 3), accepts_missing=False)


def test_only_a_row_that_is_not_flat_has_a_layout_of_its_own() -> None:
    assert type(row_layout(FACTORS, (3,), accepts_missing=True)) is RowLayout
    assert type(row_layout(FACTORS, (1, 3), accepts_missing=True)) is ShapedLayout


@pytest.mark.parametrize("how", ["matrix", "flat", "tuples"])
def test_a_matrix_of_timesteps_is_one_row(window: RowLayout, how: str) -> None:
    flat = [value for line in WINDOW for value in line]
    features: Any = {"matrix": WINDOW, "flat": flat, "tuples": tuple(map(tuple, WINDOW))}[how]
    for row in (window.row(features), window.plain_row(features)):
        assert row is not None
        assert (row.shape, row.dtype, row.flags.c_contiguous) == ((1, 12), np.float32, True)
        assert row.tobytes() == np.array(flat, np.float32).tobytes()
    assert len(features) in window.lengths


def test_a_matrix_of_one_timestep_or_of_one_factor_is_taken() -> None:
    assert row_layout(FACTORS, (1, 3), accepts_missing=False).row([[1.0, 2.0, 3.0]]).tolist() == [[1, 2, 3]]
    column = row_layout(("rsi",), (3, 1), accepts_missing=False)
    for features in ([[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0]):
        assert column.row(features).tolist() == [[1, 2, 3]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "locs", "why"),
    [
        pytest.param(WINDOW[:3], ["features"], "a matrix of 4 timesteps, each of 3 features, is expected, found 3 timesteps", id="short"),
        pytest.param([*WINDOW, WINDOW[0]], ["features"], "found 5 timesteps", id="long"),
        pytest.param([*WINDOW[:3], [1.0, 2.0]], ["features[3]"], "features[3]: 3 numbers are expected, found 2", id="narrow line"),
        pytest.param([[1.0] * 4] * 4, [f"features[{at}]" for at in range(4)], "4 timesteps do not fit", id="wide lines"),
        pytest.param([list(line) for line in zip(*WINDOW, strict=True)], ["features"], "found 3 timesteps", id="transposed"),
        pytest.param([[float(at) for at in range(12)]], ["features"], "found 1 timesteps", id="flat in a list"),
        pytest.param([WINDOW], ["features"], "found 1 timesteps", id="batch of one"),
        pytest.param([1.0] * 11, ["features"], "or its 12 numbers in one list are expected, found 11", id="flat short"),
        pytest.param([1.0] * 4, ["features"], "found 4", id="one number a timestep"),
        pytest.param([], ["features"], "found 0", id="nothing"),
        pytest.param([*WINDOW[:3], None], ["features[3]"], "a list of 3 numbers", id="no line"),
        pytest.param([1.0, *WINDOW[1:]], ["features[0]"], "a list of 3 numbers", id="mixed"),
        pytest.param(["abc"] * 4, ["features"], "found 4", id="texts"),
        pytest.param(dict(zip(FACTORS, WINDOW[0], strict=True)), ["features"], "takes no features by name", id="names"),
        pytest.param({name: [1.0] * 4 for name in FACTORS}, ["features"], "takes no features by name", id="series"),
        pytest.param({}, ["features"], "takes no features by name", id="no names"),
    ],
)  # fmt: skip
def test_another_shape_is_refused_with_the_one_that_is_expected(
    window: RowLayout, features: Any, locs: list[str], why: str
) -> None:
    error = refusal(window.row, features)
    assert list(told(error)) == locs
    assert why in error.values["reason"]
    assert window.plain_row(features) is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 1e39, "1", [1.0]])
def test_a_bad_value_of_a_matrix_is_named_by_its_timestep(window: RowLayout, value: Any) -> None:
    bad = [list(line) for line in WINDOW]
    bad[3][1] = value
    error = refusal(window.row, bad)
    assert list(told(error)) == ["features[3][1]"]
    assert error.values["reason"].startswith("volume of timestep 3 is")
    flat = [value for line in bad for value in line]
    if not isinstance(value, list):
        assert list(told(refusal(window.row, flat))) == ["features[10]"]


def test_a_missing_value_of_a_matrix_is_nan_where_the_model_knows_it() -> None:
    layout = row_layout(FACTORS, (4, 3), accepts_missing=True)
    sent: Any = [*WINDOW[:3], [10.0, None, math.nan]]
    assert np.isnan(layout.row(sent)).tolist() == [[False] * 10 + [True, True]]


def test_a_deeper_shape_is_taken_flat_only() -> None:
    layout = row_layout(("a", "b"), (2, 1, 2), accepts_missing=False)
    assert layout.row([1.0, 2.0, 3.0, 4.0]).tolist() == [[1, 2, 3, 4]]
    error = refusal(layout.row, [[[1.0, 2.0]], [[3.0, 4.0]]])
    assert "2 × 1 × 2 numbers: send its 4 numbers in one flat list" in error.values["reason"]
    assert "found 3" in refusal(layout.row, [1.0, 2.0, 3.0]).values["reason"]


def test_a_large_matrix_full_of_errors_is_not_all_listed() -> None:
    layout = row_layout([f"f{at}" for at in range(110)], (60, 110), accepts_missing=False)
    error = refusal(layout.row, [[None] * 110] * 60)
    assert (len(error.values["errors"]), error.values["reason"][:4]) == (MAX_TOLD, "6600")
    assert error.values["errors"][0]["loc"] == "features[0][0]"
    assert len(refusal(layout.row, [[1.0]] * 60).values["errors"]) == MAX_TOLD


def test_rows_of_a_table_with_timesteps_are_flat_and_named_by_timestep(window: RowLayout) -> None:
    table = np.arange(24, dtype=np.float64).reshape(2, 12)
    assert window.rows(table).tobytes() == table.astype(np.float32).tobytes()
    table[1, 10] = np.inf
    assert told(refusal(window.rows, table)) == {"features[1][3][1]": "volume of timestep 3 is not finite in float32"}
    assert "found the shape [2, 4, 3]" in refusal(window.rows, table.reshape(2, 4, 3)).values["reason"]
