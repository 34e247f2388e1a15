"""Nested rows of a scoring request become exactly the model's rows, or are refused at their place."""

from typing import Any

import numpy as np
import pytest

from mmserver.errors import FeaturesInvalid, RequestInvalid, TooManyRows
from mmserver.serving.nested_rows import rows_from_nested

SHAPE = (2, 3)
ROWS = [[[1, 2.5, None], [4, 5, 6]], [[7, 8, 9], [-1e300, 0, 12]]]


def rows(document: object, shape: tuple[int, ...] = SHAPE, max_rows: int = 10) -> Any:
    return rows_from_nested(document, shape, max_rows=max_rows)


@pytest.mark.parametrize("field", ["instances", "inputs"])
def test_rows_are_flat_and_keep_every_number(field: str) -> None:
    found = rows({field: ROWS, "params": {}})
    assert (found.shape, found.dtype) == ((2, 6), np.float64)
    expected = np.array([[1, 2.5, np.nan, 4, 5, 6], [7, 8, 9, -1e300, 0, 12]])
    assert found.tobytes() == expected.tobytes()


def test_any_depth_is_taken() -> None:
    assert rows({"instances": [[[[1], [2]]], [[[3], [4]]]]}, (1, 2, 1)).tolist() == [[1, 2], [3, 4]]


def test_no_rows_have_the_models_width() -> None:
    assert rows({"instances": []}).shape == (0, 6)


@pytest.mark.parametrize(
    ("document", "loc", "why"),
    [
        pytest.param({"instances": [[1, 2, 3, 4, 5, 6]]}, "instances[0]", "an array of 2 is expected, found 6", id="flat"),
        pytest.param({"instances": ROWS[0]}, "instances[0]", "an array of 2 is expected, found 3", id="one row alone"),
        pytest.param({"inputs": [ROWS[0], [[1, 2, 3], [4, 5]]]}, "inputs[1][1]", "an array of 3 is expected, found 2", id="narrow"),
        pytest.param({"inputs": [ROWS[0], [[1, 2, 3], 4]]}, "inputs[1][1]", "an array of 3 is expected, found 4", id="a number"),
        pytest.param({"inputs": [ROWS[0], None]}, "inputs[1]", "found None", id="null"),
        pytest.param({"inputs": [ROWS[0], {"a": [1]}]}, "inputs[1]", "found {'a'", id="an object"),
        pytest.param({"inputs": [[[1, 2, 3], [4, "5", 6]]]}, "inputs[0][1][1]", "'5' is not a number", id="text"),
        pytest.param({"inputs": [[[1, 2, 3], [4, True, 6]]]}, "inputs[0][1][1]", "True is not a number", id="true"),
        pytest.param({"inputs": [[[1, 2, 3], [4, [5], 6]]]}, "inputs[0][1][1]", "an array is not a number", id="too deep"),
        pytest.param({"instances": [{"a": 1}]}, "instances", "2 × 3 numbers", id="records"),
        pytest.param({"instances": {"a": [1]}}, "instances", "2 × 3 numbers", id="named instances"),
        pytest.param({"inputs": {"a": [1]}}, "inputs", "2 × 3 numbers", id="columns"),
        pytest.param({"inputs": 7}, "inputs", "2 × 3 numbers", id="no list"),
        pytest.param({"dataframe_split": {"data": ROWS}}, "dataframe_split", "2 × 3 numbers", id="split"),
        pytest.param({"dataframe_records": []}, "dataframe_records", "2 × 3 numbers", id="dataframe records"),
    ],
)  # fmt: skip
def test_what_is_not_nested_so_is_refused_at_its_place(document: Any, loc: str, why: str) -> None:
    with pytest.raises(FeaturesInvalid) as caught:
        rows(document)
    assert caught.value.values["errors"][0]["loc"] == loc
    assert why in caught.value.values["reason"]


@pytest.mark.parametrize("document", [[], {}, {"instances": [], "inputs": []}, {"instances": [], "params": {"a": 1}}])
def test_what_is_no_scoring_request_is_refused(document: Any) -> None:
    with pytest.raises(RequestInvalid):
        rows(document)


def test_a_row_is_one_row_however_many_timesteps_it_has() -> None:
    assert len(rows({"instances": [ROWS[0]] * 3}, max_rows=3)) == 3
    with pytest.raises(TooManyRows, match="4 rows"):
        rows({"instances": [ROWS[0]] * 4}, max_rows=3)


def test_a_thousand_errors_are_not_all_listed() -> None:
    for bad in ([[["x"] * 3] * 2] * 1000, [[1]] * 1000):
        with pytest.raises(FeaturesInvalid) as caught:
            rows({"instances": bad}, max_rows=1000)
        assert len(caught.value.values["errors"]) == 20
