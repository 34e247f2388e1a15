"""Whatever users have as features reaches the model as the numbers that they are, or not at all."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from mmserver.client.features import encodable

VECTOR = [1.5, -2.0, 3.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(VECTOR, VECTOR, id="list"),
        pytest.param(tuple(VECTOR), VECTOR, id="tuple"),
        pytest.param([1, True, Decimal("2.5"), np.float32(0.5)], [1.0, 1.0, 2.5, 0.5], id="other-numbers"),
        pytest.param(np.array(VECTOR), VECTOR, id="float64"),
        pytest.param(np.array(VECTOR, np.float32), VECTOR, id="float32"),
        pytest.param(np.array(VECTOR, ">f4"), VECTOR, id="big-endian"),
        pytest.param(np.array(VECTOR, np.float16), VECTOR, id="float16"),
        pytest.param(np.array(VECTOR, np.longdouble), VECTOR, id="long-double"),
        pytest.param(np.array([[1.0, 9.0], [2.0, 9.0]])[:, 0], [1.0, 2.0], id="strided"),
        pytest.param(np.array([1, 2], np.int8), [1, 2], id="integers"),
        pytest.param(np.array([True, False]), [1.0, 0.0], id="booleans"),
        pytest.param(np.array(2.5), [2.5], id="scalar"),
        pytest.param(np.array([1.0, None], object), [1.0, None], id="objects"),
        pytest.param(np.array([1.0, np.nan]), [1.0, None], id="nan"),
        pytest.param(np.array([[1.0, np.nan]]), [[1.0, None]], id="nan-in-a-matrix"),
        pytest.param([1.0, math.nan, None], [1.0, None, None], id="nan-in-a-list"),
        pytest.param(np.ma.array([1.0, 2.0], mask=[False, True]), [1.0, None], id="masked"),
        pytest.param(np.ma.array([1, 2], mask=[False, True]), [1.0, None], id="masked-integers"),
        pytest.param(np.ones((2, 3)), [[1.0] * 3] * 2, id="matrix"),
        pytest.param([[1, 2.0], (3, None)], [[1.0, 2.0], [3.0, None]], id="matrix-of-lists"),
        pytest.param(np.ones((1, 1, 2, 3)), [[1.0] * 3] * 2, id="batch-of-one"),
        pytest.param({"a": 1, "b": np.float64("nan")}, {"a": 1.0, "b": None}, id="names"),
    ],
)
def test_features_keep_their_numbers(given: Any, expected: object) -> None:
    assert encodable(given) == expected


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        pytest.param([1.0, math.inf], ValueError, r"features\[1\] is infinite", id="infinite-in-a-list"),
        pytest.param([1.0, 10**400], TypeError, r"features\[1\]", id="integer-beyond-floats"),
        pytest.param(
            np.array([[1.0, 2.0], [3.0, -math.inf]]), ValueError, r"features\[1\]\[1\] is infinite", id="infinite"
        ),
        pytest.param(np.array(math.inf), ValueError, "infinite", id="infinite-scalar"),
        pytest.param({"a": math.inf}, ValueError, r"features\['a'\] is infinite", id="infinite-by-name"),
        pytest.param([[1.0, math.inf]], ValueError, "infinite", id="infinite-in-rows"),
        pytest.param(["1.0"], TypeError, "str is no number", id="text"),
        pytest.param("1.0", TypeError, "no vector", id="one-text"),
        pytest.param({1: 1.0}, TypeError, "is no text", id="a-name-that-is-none"),
        pytest.param({1.0, 2.0}, TypeError, "no vector", id="a-set-has-no-order"),
        pytest.param(np.array(["1"]), TypeError, "has no numbers", id="array-of-text"),
        pytest.param(np.array([1j]), TypeError, "has no numbers", id="complex"),
        pytest.param(np.array(["2024-01-01"], "M8[D]"), TypeError, "has no numbers", id="times"),
        pytest.param([[1.0], [1.0, 2.0]], ValueError, "different lengths", id="ragged"),
        pytest.param([[1.0], 2.0], ValueError, "different lengths", id="rows-and-numbers"),
        pytest.param([1.0, [2.0]], TypeError, "list is no number", id="numbers-and-rows"),
        pytest.param([], ValueError, "none", id="no-list"),
        pytest.param({}, ValueError, "none", id="no-names"),
        pytest.param(np.empty((0, 3)), ValueError, "empty", id="empty-array"),
        pytest.param([[]], ValueError, "empty", id="empty-row"),
        pytest.param(np.ones((2, 60, 110)), ValueError, r"\(2, 60, 110\) is not one sample", id="several-samples"),
        pytest.param(5.0, TypeError, "no vector", id="a-number"),
    ],
)
def test_what_is_not_one_sample_of_finite_numbers_is_refused(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        encodable(given)


def test_a_series_goes_by_its_names_whatever_their_order_and_a_table_is_refused() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"b": [1.0], "a": [2.0]})
    assert encodable(table.iloc[0]) == {"b": 1.0, "a": 2.0}
    assert encodable(pandas.Series([1.0, np.nan])) == [1.0, None], "an index of numbers names nothing"
    with pytest.raises(TypeError, match="a table"):
        encodable(table)
    with pytest.raises(ValueError, match="twice"):
        encodable(pandas.Series([1.0, 2.0], index=["a", "a"]))
